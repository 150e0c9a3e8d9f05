mod archives;
mod listings;

use proptest::prelude::*;

use super::builder::{NAME_MAX, PATH_MAX, TARGET_MAX};
use super::*;

/// Encodes the strings as in a NAR.
fn words(words: &[&[u8]]) -> Vec<u8> {
    let mut nar = Vec::new();
    for word in words {
        nar.extend((word.len() as u64).to_le_bytes());
        nar.extend_from_slice(word);
        nar.resize(nar.len().next_multiple_of(8), 0);
    }
    nar
}

/// Returns a NAR whose root consists of these words.
fn nar(root: &[&[u8]]) -> Vec<u8> {
    [words(&[b"nix-archive-1"]), words(root)].concat()
}

fn file(contents: &[u8]) -> Vec<u8> {
    words(&[b"(", b"type", b"regular", b"contents", contents, b")"])
}

fn entry(name: &[u8], node: &[u8]) -> Vec<u8> {
    let begin = words(&[b"entry", b"(", b"name", name, b"node"]);
    [&begin, node, &words(&[b")"])].concat()
}

fn directory(entries: &[Vec<u8>]) -> Vec<u8> {
    let begin = words(&[b"(", b"type", b"directory"]);
    [begin, entries.concat(), words(&[b")"])].concat()
}

fn archive(root: &[u8]) -> Vec<u8> {
    [&words(&[b"nix-archive-1"]), root].concat()
}

fn parse(nar: &[u8]) -> Result<NarTree, NarError> {
    NarTree::parse(nar, nar.len() as u64)
}

fn refused(nar: &[u8]) -> String {
    parse(nar).unwrap_err().to_string()
}

fn refused_listing(json: &str) -> String {
    NarTree::from_listing(json.as_bytes(), 1 << 20)
        .unwrap_err()
        .to_string()
}

fn small() -> Vec<u8> {
    small_with(b"\xff")
}

/// Like `small`, with another name for its last file.
fn small_with(last: &[u8]) -> Vec<u8> {
    let bin = words(&[
        b"(",
        b"type",
        b"regular",
        b"executable",
        b"",
        b"contents",
        b"#!/bin/sh\n",
        b")",
    ]);
    let link = words(&[b"(", b"type", b"symlink", b"target", b"bin/tool", b")"]);
    archive(&directory(&[
        entry(b"bin", &directory(&[entry(b"tool", &bin)])),
        entry(b"empty", &file(b"")),
        entry(b"link", &link),
        entry(last, &file(b"abcdefgh")),
    ]))
}

#[test]
fn a_nar_gives_its_tree() {
    let nar = small();
    let tree = parse(&nar).unwrap();
    assert_eq!((tree.nar_size(), tree.node_count()), (nar.len() as u64, 6));
    let regular = |path: &[u8]| match tree.node(path) {
        Some(NarNode::Regular {
            size_bytes,
            offset,
            executable,
        }) => {
            let [start, len] = [offset, size_bytes].map(|n| usize::try_from(n).unwrap());
            (&nar[start..start + len], executable)
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(regular(b"bin/tool"), (&b"#!/bin/sh\n"[..], true));
    assert_eq!(regular(b"empty"), (&b""[..], false));
    assert_eq!(regular(b"\xff"), (&b"abcdefgh"[..], false));
    assert_eq!(
        tree.node(b"link"),
        Some(NarNode::Symlink {
            target: b"bin/tool"
        })
    );
    assert_eq!(tree.node(b""), Some(NarNode::Directory));
    for absent in [
        &b"bin/"[..],
        b"/bin",
        b"bin/tool/x",
        b"bim",
        b"bio",
        b"a",
        b".",
        b"bin//tool",
        b"link/x",
    ] {
        assert_eq!(tree.node(absent), None);
        assert!(tree.stat(absent).is_none() && tree.list(absent).is_none());
    }
}

#[test]
fn listings_and_attributes() {
    let tree = parse(&small()).unwrap();
    let listing = tree.list(b"").unwrap();
    let names: Vec<&[u8]> = listing.entries().iter().map(|e| listing.name(e)).collect();
    assert_eq!(names, [&b"bin"[..], b"empty", b"link", b"\xff"]);
    let entries = listing.entries();
    assert_eq!(listing.target(&entries[2]), b"bin/tool");
    let kinds: Vec<_> = entries
        .iter()
        .map(|entry| (entry.stat.kind, entry.stat.size_bytes))
        .collect();
    let [regular, dir, link] = [FileKind::Regular, FileKind::Directory, FileKind::Symlink];
    assert_eq!(kinds, [(dir, 0), (regular, 0), (link, 0), (regular, 8)]);
    assert_eq!(tree.stat(b"bin/tool").unwrap().permissions, 0o555);
    assert_eq!(tree.stat(b"empty").unwrap().permissions, 0o444);
    assert_eq!(tree.list(b"bin").unwrap().entries().len(), 1);
    assert!(tree.list(b"empty").is_none());
}

#[test]
fn the_root_can_be_a_file_or_a_symlink() {
    let tree = parse(&archive(&file(b"abc"))).unwrap();
    assert_eq!(
        (tree.nar_size(), tree.stat(b"").unwrap().size_bytes),
        (120, 3)
    );
    assert!(tree.list(b"").is_none());
    assert_eq!(tree.node(b"x"), None);
    let link = nar(&[b"(", b"type", b"symlink", b"target", b"/x", b")"]);
    assert_eq!(
        parse(&link).unwrap().node(b""),
        Some(NarNode::Symlink { target: b"/x" })
    );
}

#[test]
fn a_listing_gives_the_same_tree() {
    let json = r#" {"root": {"entries": {
        "link": {"target": "bin/tool", "type": "symlink"},
        "empty": {"type": "regular", "size": 0},
        "bin": {"entries": {"tool": {"type":"regular","size":10,"executable":true,"narOffset":512,"new":[{}]}},
            "type": "directory"},
        "\u00fc": {"type": "regular", "size": 8, "executable": false}
    }, "type": "directory"}, "version": 1, "more": {"deep": [null]}} "#;
    let nar = small_with("ü".as_bytes());
    let tree = parse(&nar).unwrap();
    let Some(NarNode::Regular { offset, .. }) = tree.node(b"bin/tool") else {
        panic!()
    };
    let json = json.replace("512", &offset.to_string());
    assert_eq!(
        NarTree::from_listing(json.as_bytes(), nar.len() as u64).unwrap(),
        tree
    );
    let wrong = NarTree::from_listing(json.as_bytes(), nar.len() as u64 + 8).unwrap_err();
    assert!(matches!(wrong, ListingError::Size { .. }), "{wrong}");
    let other = json.replace("\"size\": 8", "\"size\": 7");
    assert_ne!(
        NarTree::from_listing(other.as_bytes(), nar.len() as u64).unwrap(),
        tree
    );
    let lies = json.replace(&offset.to_string(), "504");
    let wrong = NarTree::from_listing(lies.as_bytes(), nar.len() as u64)
        .unwrap_err()
        .to_string();
    assert!(wrong.contains("narOffset 504 for \"tool\""), "{wrong}");
}

/// Trees with names that JSON can have.
#[derive(Debug, Clone)]
enum Tree {
    File(usize, bool),
    Symlink(String),
    Dir(std::collections::BTreeMap<String, Tree>),
}

impl Tree {
    fn any() -> impl Strategy<Value = Self> {
        let file = (0..40_usize, any::<bool>()).prop_map(|(len, bit)| Self::File(len, bit));
        let link = "[a-zA-Z/.\"\\\\é]{1,20}".prop_map(Self::Symlink);
        prop_oneof![3 => file, 1 => link].prop_recursive(6, 60, 8, |inner| {
            let name = "[a-c.\"\\\\ü\n-]{1,6}"
                .prop_filter("not a dot", |name| name != "." && name != "..");
            proptest::collection::btree_map(name, inner, 0..8).prop_map(Self::Dir)
        })
    }

    fn nar(&self) -> Vec<u8> {
        match self {
            Self::File(len, false) => file(&vec![b'x'; *len]),
            Self::File(len, true) => words(&[
                b"(",
                b"type",
                b"regular",
                b"executable",
                b"",
                b"contents",
                &vec![b'x'; *len],
                b")",
            ]),
            Self::Symlink(target) => words(&[
                b"(",
                b"type",
                b"symlink",
                b"target",
                target.as_bytes(),
                b")",
            ]),
            Self::Dir(entries) => {
                let entries = entries
                    .iter()
                    .map(|(name, tree)| entry(name.as_bytes(), &tree.nar()));
                directory(&entries.collect::<Vec<_>>())
            }
        }
    }

    /// Writes the keys in reverse order, unlike a NAR.
    fn json(&self) -> String {
        let quoted = |text: &str| serde_json::to_string(text).unwrap();
        match self {
            Self::File(len, bit) => {
                format!("{{\"executable\":{bit},\"size\":{len},\"type\":\"regular\"}}")
            }
            Self::Symlink(target) => {
                format!("{{\"type\":\"symlink\",\"target\":{}}}", quoted(target))
            }
            Self::Dir(entries) => {
                let entries = entries
                    .iter()
                    .rev()
                    .map(|(name, tree)| quoted(name) + ":" + &tree.json());
                let entries = entries.collect::<Vec<_>>().join(",");
                format!("{{\"entries\":{{{entries}}},\"type\":\"directory\"}}")
            }
        }
    }

    fn nodes(&self) -> usize {
        match self {
            Self::Dir(entries) => 1 + entries.values().map(Self::nodes).sum::<usize>(),
            _ => 1,
        }
    }
}

proptest! {
    #[test]
    fn a_nar_and_its_listing_give_the_same_tree(tree in Tree::any()) {
        let nar = archive(&tree.nar());
        let parsed = parse(&nar).unwrap();
        prop_assert_eq!(parsed.nar_size(), nar.len() as u64);
        prop_assert_eq!(parsed.node_count(), tree.nodes());
        let json = format!("{{\"version\":1,\"root\":{}}}", tree.json());
        prop_assert_eq!(NarTree::from_listing(json.as_bytes(), nar.len() as u64).unwrap(), parsed);
    }

    #[test]
    fn parsing_any_bytes_ends(bytes in proptest::collection::vec(any::<u8>(), 0..200), cut in 0..400_usize) {
        drop(parse(&bytes));
        let nar = small();
        let begin = nar.get(..cut).unwrap_or(&nar);
        drop(parse(&[begin, &bytes].concat()));
    }
}

/// Prints the memory use per node.
#[test]
fn memory_of_a_hundred_thousand_files() {
    let names: Vec<String> = (0..100_000).map(|n| format!("file-{n:06}")).collect();
    let entries: Vec<_> = names
        .iter()
        .map(|name| entry(name.as_bytes(), &file(b"x")))
        .collect();
    let tree = parse(&archive(&directory(&entries))).unwrap();
    let bytes = size_of_val(&*tree.nodes) + size_of_val(&*tree.children) + tree.bytes.len();
    println!(
        "{} bytes per node, including 11 of its name",
        bytes / tree.node_count()
    );
    assert!(bytes / tree.node_count() <= 36 + 11);
    for name in &names {
        assert!(tree.stat(name.as_bytes()).is_some());
    }
}
