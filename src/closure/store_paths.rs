//! The list of store paths: one a line, as `nix-store --query --requisites` and `closureInfo` write it.

use std::io::BufRead;

use super::error::ClosureError;
use super::lines::Lines;
use super::name::StoreDir;

/// Returns the base names of the listed store paths, sorted and without duplicates; at least one.
///
/// Empty lines and one slash at the end of a line are ignored.
pub(super) fn read<R: BufRead>(
    mut lines: Lines<R>,
    store_dir: StoreDir<'_>,
) -> Result<Vec<Box<[u8]>>, ClosureError> {
    let mut names: Vec<Box<[u8]>> = Vec::new();
    while lines.advance()? {
        let line = lines.line();
        if line.is_empty() {
            continue;
        }
        let path = line.strip_suffix(b"/").unwrap_or(line);
        names.push(
            store_dir
                .name_of(path)
                .map_err(|fault| lines.malformed(fault))?
                .into(),
        );
    }
    if names.is_empty() {
        return Err(ClosureError::Empty {
            input: lines.input().clone(),
        });
    }
    names.sort_unstable();
    names.dedup();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use proptest::collection::{btree_set, vec};
    use proptest::prelude::*;

    use super::super::error::ClosureFile;
    use super::*;

    fn parse(text: &[u8]) -> Result<Vec<Box<[u8]>>, String> {
        let lines = Lines::new(ClosureFile::StorePaths("/x/store-paths".into()), text);
        read(lines, StoreDir::new(b"/nix/store")).map_err(|e| e.to_string())
    }

    fn names(names: &[&[u8]]) -> Result<Vec<Box<[u8]>>, String> {
        Ok(names.iter().map(|&n| n.into()).collect())
    }

    #[test]
    fn sorts_by_bytes_and_drops_duplicates_and_empty_lines() {
        let text =
            b"\n/nix/store/b\n/nix/store/a\xff/\n\n/nix/store/B\n/nix/store/b/\n/nix/store/a";
        assert_eq!(parse(text), names(&[b"B", b"a", b"a\xff", b"b"]));
    }

    #[test]
    fn refuses_a_list_with_carriage_returns() {
        let message = parse(b"/nix/store/a\n/nix/store/b\r\n").unwrap_err();
        assert!(
            message.contains("line 2: the line ends with a carriage return"),
            "{message}"
        );
        assert!(!message.contains('\r'), "{message:?}");
        assert_eq!(parse(b"/nix/store/a\rb"), names(&[b"a\rb"]));
    }

    #[test]
    fn refuses_paths_outside_the_store_and_names_the_line() {
        let expected = "store-paths /x/store-paths, line 3: /tmp/foo is not directly inside the store directory \
                        /nix/store";
        assert_eq!(parse(b"/nix/store/a\n\n/tmp/foo\n").unwrap_err(), expected);
        for line in [
            "/",
            "//",
            "/nix/store",
            "/nix/store/",
            "/nix/store/a//",
            "/nix/store/..",
            "x",
        ] {
            assert!(
                parse(line.as_bytes()).unwrap_err().contains("line 1: "),
                "{line}"
            );
        }
    }

    #[test]
    fn refuses_an_empty_list() {
        let expected = "store-paths /x/store-paths lists no store path \
                        (write one on each line, such as /nix/store/<hash>-<name>)";
        assert_eq!(parse(b"").unwrap_err(), expected);
        assert_eq!(parse(b"\n\n").unwrap_err(), expected);
    }

    proptest! {
        #[test]
        fn any_order_with_duplicates_gives_the_same_names(
            (expected, listed) in btree_set("[a-z.+\u{e9}-]{3,9}", 1..20)
                .prop_flat_map(|set| {
                    let all: Vec<String> = set.iter().chain(&set).cloned().collect();
                    (Just(set), Just(all).prop_shuffle())
                })
        ) {
            let text: String = listed.iter().map(|n| format!("/nix/store/{n}\n")).collect();
            let expected: Vec<Box<[u8]>> = expected.iter().map(|n| n.as_bytes().into()).collect();
            prop_assert_eq!(parse(text.as_bytes()), Ok(expected));
        }

        #[test]
        fn arbitrary_bytes_never_panic(text in vec(any::<u8>(), 0..300)) {
            let _ = parse(&text);
        }

        #[test]
        fn results_are_sorted_file_names(text in "(/nix/store/[a-c/.\u{0}]{0,4}\n?){0,6}") {
            if let Ok(names) = parse(text.as_bytes()) {
                prop_assert!(names.is_sorted_by(|a, b| a < b) && !names.is_empty());
                prop_assert!(names.iter().all(|n| !n.is_empty() && !n.contains(&b'/') && !n.contains(&0)));
            }
        }
    }
}
