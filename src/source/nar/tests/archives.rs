//! NARs that are truncated, changed or too long, and data that is not a NAR.

use super::*;

#[test]
fn a_nar_truncated_anywhere_is_an_error() {
    let nar = small();
    for len in 0..nar.len() {
        let cut = NarTree::parse(&nar[..len], nar.len() as u64).unwrap_err();
        assert!(
            matches!(cut, NarError::Truncated { at } if at == len as u64),
            "{len}: {cut}"
        );
        let short = NarTree::parse(&nar[..], len as u64).unwrap_err();
        assert!(
            matches!(
                short,
                NarError::Tree {
                    fault: TreeFault::TooLarge { .. },
                    ..
                } | NarError::Truncated { .. }
            ),
            "{len}: {short}"
        );
    }
}

#[test]
fn every_changed_byte_is_an_error_or_changes_the_tree() {
    let nar = small();
    let tree = parse(&nar).unwrap();
    for at in 0..nar.len() {
        let mut wrong = nar.clone();
        wrong[at] ^= 0x01;
        let same = parse(&wrong).is_ok_and(|other| other == tree);
        let in_contents = (0..10).any(|n| at >= n && nar[at - n..].starts_with(b"#!/bin/sh\n"))
            || (0..8).any(|n| at >= n && nar[at - n..].starts_with(b"abcdefgh"));
        assert_eq!(same, in_contents, "byte {at}");
    }
}

#[test]
fn trailing_bytes_and_other_sizes_are_errors() {
    let nar = small();
    let len = nar.len() as u64;
    let longer = [&nar[..], b"\0"].concat();
    assert!(
        matches!(NarTree::parse(&longer[..], len), Err(NarError::Trailing { at }) if at == len)
    );
    let other = NarTree::parse(&longer[..], len + 1).unwrap_err();
    assert!(
        matches!(other, NarError::Size { found, expected } if (found, expected) == (len, len + 1))
    );
    let other = NarTree::parse(&nar[..], len + 8).unwrap_err().to_string();
    assert_eq!(
        other,
        format!("the NAR has {len} bytes, but its narinfo says {}", len + 8)
    );
}

/// Reads only one byte more than the declared size.
#[test]
fn an_endless_nar_is_read_up_to_its_size() {
    struct Endless<'n>(&'n [u8], u64);
    impl Read for Endless<'_> {
        fn read(&mut self, to: &mut [u8]) -> std::io::Result<usize> {
            let len = if self.0.is_empty() {
                to.fill(0);
                to.len()
            } else {
                self.0.read(to)?
            };
            self.1 += len as u64;
            Ok(len)
        }
    }
    let nar = small();
    let mut reader = Endless(&nar, 0);
    assert!(NarTree::parse(&mut reader, nar.len() as u64).is_err());
    assert_eq!(reader.1, nar.len() as u64 + 1);
    let huge = [
        words(&[b"nix-archive-1", b"(", b"type", b"regular", b"contents"]),
        (1_u64 << 40).to_le_bytes().to_vec(),
    ]
    .concat();
    let mut reader = Endless(&huge, 0);
    let error = NarTree::parse(&mut reader, 1 << 20)
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        "the NAR is malformed: at byte 96, the tree needs more than the 1048576 bytes of its narinfo"
    );
    assert!(reader.1 <= 1 << 17);
}

#[test]
fn names_that_no_file_can_have() {
    let long = vec![b'x'; NAME_MAX + 1];
    let longest = vec![b'x'; NAME_MAX];
    let with = |name: &[u8]| archive(&directory(&[entry(name, &file(b""))]));
    assert!(parse(&with(&longest)).is_ok());
    for name in [
        &b""[..],
        b".",
        b"..",
        b"a/b",
        b"/",
        b"a\0b",
        b"../../etc/passwd",
    ] {
        let error = refused(&with(name));
        assert!(error.ends_with("is not a file name"), "{error}");
        let json = serde_json::to_string(str::from_utf8(name).unwrap()).unwrap();
        let json = format!(
            r#"{{"version":1,"root":{{"type":"directory","entries":{{{json}:{{"type":"regular","size":0}}}}}}}}"#
        );
        let error = refused_listing(&json);
        assert!(error.ends_with("is not a file name"), "{error}");
    }
    assert!(refused(&with(&long)).contains("expected a short string"));
}

#[test]
fn entries_are_sorted_and_unique() {
    let with = |names: &[&[u8]]| {
        let entries: Vec<_> = names.iter().map(|name| entry(name, &file(b""))).collect();
        archive(&directory(&entries))
    };
    assert!(parse(&with(&[b"-", b".a", b"A", b"a", b"a.", b"aa", b"\xff"])).is_ok());
    assert!(refused(&with(&[b"a", b"a"])).ends_with("the name \"a\" occurs twice"));
    assert!(refused(&with(&[b"b", b"a"])).ends_with("the name \"a\" comes after \"b\""));
    assert!(refused(&with(&[b"\xff", b"a"])).contains("comes after"));
    // Names are only compared within their directory.
    let nested = directory(&[
        entry(b"z", &directory(&[entry(b"a", &file(b""))])),
        entry(b"zz", &file(b"")),
    ]);
    assert!(parse(&archive(&nested)).is_ok());
    let nested = directory(&[
        entry(b"b", &directory(&[entry(b"c", &file(b""))])),
        entry(b"b", &file(b"")),
    ]);
    assert!(refused(&archive(&nested)).ends_with("the name \"b\" occurs twice"));
}

/// Sequences of words that resemble a root node but are invalid.
const WRONG_WORDS: &[&[&[u8]]] = &[
    &[b"(", b"type", b"fifo", b")"],
    &[b"(", b"type", b"regular", b")"],
    &[
        b"(",
        b"type",
        b"regular",
        b"executable",
        b"x",
        b"contents",
        b"",
        b")",
    ],
    &[
        b"(",
        b"type",
        b"regular",
        b"executable",
        b"",
        b"executable",
        b"",
        b"contents",
        b"",
        b")",
    ],
    &[
        b"(",
        b"type",
        b"regular",
        b"contents",
        b"",
        b"executable",
        b"",
        b")",
    ],
    &[b"(", b"type", b"directory", b"contents", b"", b")"],
    &[b"(", b"type", b"symlink", b"contents", b"", b")"],
    &[
        b"(", b"type", b"symlink", b"target", b"x", b"target", b"y", b")",
    ],
    &[
        b"(",
        b"type",
        b"directory",
        b"entry",
        b"(",
        b"node",
        b"(",
        b"type",
        b"directory",
        b")",
        b")",
        b")",
    ],
    &[
        b"(",
        b"type",
        b"directory",
        b"entry",
        b"(",
        b"name",
        b"x",
        b")",
        b")",
    ],
    &[b"type", b"directory"],
];

#[test]
fn wrong_words_are_refused() {
    assert!(refused(b"").contains("ends after 0 bytes"));
    assert!(refused(&words(&[b"nix-archive-2"])).contains("expected \"nix-archive-1\" at byte "));
    for root in WRONG_WORDS {
        assert!(refused(&nar(root)).contains("expected"), "{root:?}");
    }
}

#[test]
fn lengths_that_overflow() {
    for length in [u64::MAX, u64::MAX - 7, 1 << 63, 1 << 32, 17] {
        let magic = length.to_le_bytes();
        assert!(refused(&magic).contains("a short string"));
        let begin = words(&[b"nix-archive-1", b"(", b"type", b"regular", b"contents"]);
        let nar = [&begin[..], &length.to_le_bytes()].concat();
        let error = NarTree::parse(&nar[..], u64::MAX).unwrap_err();
        let json = format!(r#"{{"version":1,"root":{{"type":"regular","size":{length}}}}}"#);
        let listed = NarTree::from_listing(json.as_bytes(), u64::MAX);
        match length
            .checked_next_multiple_of(8)
            .and_then(|length| length.checked_add(120))
        {
            Some(_) => assert!(matches!(error, NarError::Truncated { .. }), "{error}"),
            None => {
                assert!(
                    matches!(
                        error,
                        NarError::Tree {
                            fault: TreeFault::TooLarge { .. },
                            ..
                        }
                    ),
                    "{error}"
                );
                assert!(matches!(
                    listed,
                    Err(ListingError::Tree(TreeFault::TooLarge { .. }))
                ));
            }
        }
    }
    let two = r#"{"version":1,"root":{"type":"directory","entries":{"a":{"type":"regular","size":9223372036854775807},"b":{"type":"regular","size":9223372036854775807}}}}"#;
    assert!(matches!(
        NarTree::from_listing(two.as_bytes(), u64::MAX),
        Err(ListingError::Tree(TreeFault::TooLarge { .. }))
    ));
}

#[test]

fn targets_that_no_symlink_can_have() {
    let with = |target: &[u8]| nar(&[b"(", b"type", b"symlink", b"target", target, b")"]);
    assert!(parse(&with(&vec![b'x'; TARGET_MAX])).is_ok());
    for target in [&b""[..], b"a\0b"] {
        assert!(refused(&with(target)).ends_with("is not a symlink target"));
    }
    assert!(refused(&with(&vec![b'x'; TARGET_MAX + 1])).contains("a short string"));
    let long = format!(
        r#"{{"version":1,"root":{{"type":"symlink","target":"{}"}}}}"#,
        "x".repeat(TARGET_MAX + 1)
    );
    assert!(refused_listing(&long).ends_with("is not a symlink target"));
}

/// Deep enough to overflow the stack of any recursive parser.
#[test]
fn a_million_levels_do_not_overflow_the_stack() {
    let level = words(&[
        b"(",
        b"type",
        b"directory",
        b"entry",
        b"(",
        b"name",
        b"a",
        b"node",
    ]);
    let deep = [words(&[b"nix-archive-1"]), level.repeat(1_000_000)].concat();
    let error = refused(&deep);
    assert!(
        error.ends_with("the path of \"a\" has more than 4096 bytes"),
        "{error}"
    );
    let level = r#"{"type":"directory","entries":{"a":"#;
    let error = refused_listing(&format!(
        "{{\"version\":1,\"root\":{}",
        level.repeat(900_000)
    ));
    assert!(
        error.ends_with("the path of \"a\" has more than 4096 bytes"),
        "{error}"
    );
    let nested = format!("{{\"version\":1,\"x\":{}", "[".repeat(1_000_000));
    assert!(matches!(
        NarTree::from_listing(nested.as_bytes(), 120),
        Err(ListingError::Json { .. })
    ));
    let nested = nested.replace('[', "{\"a\":");
    assert!(matches!(
        NarTree::from_listing(nested.as_bytes(), 120),
        Err(ListingError::Json { .. })
    ));
}

#[test]
fn the_deepest_path_that_nix_can_restore_is_accepted() {
    let levels = PATH_MAX / 2;
    let begin = words(&[b"(", b"type", b"directory"]);
    let into = words(&[b"entry", b"(", b"name", b"a", b"node"]);
    let out = words(&[b")", b")"]);
    let nar = [
        words(&[b"nix-archive-1"]),
        [&begin[..], &into].concat().repeat(levels),
        file(b"x"),
        out.repeat(levels),
    ]
    .concat();
    // Remove the last two words, which end an entry and its directory.
    let tree = parse(&nar).unwrap();
    let path = vec!["a"; levels].join("/");
    assert_eq!(tree.stat(path.as_bytes()).unwrap().size_bytes, 1);
    let json = format!(
        "{}{}{}",
        r#"{"type":"directory","entries":{"a":"#.repeat(levels),
        r#"{"type":"regular","size":1}"#,
        "}}".repeat(levels)
    );
    let json = format!("{{\"version\":1,\"root\":{json}}}");
    assert_eq!(
        NarTree::from_listing(json.as_bytes(), nar.len() as u64).unwrap(),
        tree
    );
}

/// Each target takes 4095 bytes of the NAR and of memory.
#[test]
fn memory_is_bounded_for_any_size_of_the_nar() {
    let target = vec![b'x'; TARGET_MAX];
    let link = words(&[b"(", b"type", b"symlink", b"target", &target, b")"]);
    let begin = words(&[b"nix-archive-1", b"(", b"type", b"directory"]);
    let count = NAMES_MAX_BYTES / TARGET_MAX + 1;
    let entries = (0..count).map(|n| entry(format!("{n:08}").as_bytes(), &link));
    let nar = [begin, entries.collect::<Vec<_>>().concat()].concat();
    let error = refused(&nar);
    assert!(
        error.ends_with("names and symlink targets have more than 67108864 bytes"),
        "{error}"
    );
}
