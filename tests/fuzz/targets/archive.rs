//! Writes the NAR of a tree. Shares no code with the parser.

use lazystore::source::nar::{NarNode, NarTree};
use lazystore::tree::FileKind;

/// The canonical NAR of `tree`, with file contents from `contents(offset, len)`.
pub fn write(tree: &NarTree, contents: &dyn Fn(u64, u64) -> Vec<u8>) -> Vec<u8> {
    let mut nar = Vec::new();
    strings(&[b"nix-archive-1"], &mut nar);
    node(tree, b"", contents, &mut nar);
    nar
}

fn node(tree: &NarTree, path: &[u8], contents: &dyn Fn(u64, u64) -> Vec<u8>, nar: &mut Vec<u8>) {
    let stat = tree.stat(path).unwrap();
    strings(&[b"(", b"type"], nar);
    match tree.node(path).unwrap() {
        NarNode::Regular {
            size_bytes,
            offset,
            executable,
        } => {
            assert_eq!(
                (stat.kind, stat.size_bytes),
                (FileKind::Regular, size_bytes)
            );
            strings(&[b"regular"], nar);
            if executable {
                strings(&[b"executable", b""], nar);
            }
            strings(&[b"contents"], nar);
            assert_eq!(nar.len() as u64 + 8, offset);
            strings(&[&contents(offset, size_bytes)], nar);
        }
        NarNode::Symlink { target } => {
            assert_eq!(stat.kind, FileKind::Symlink);
            strings(&[b"symlink", b"target", target], nar);
        }
        NarNode::Directory => {
            strings(&[b"directory"], nar);
            let listing = tree.list(path).unwrap();
            let mut last: Option<&[u8]> = None;
            for entry in listing.entries() {
                let name = listing.name(entry);
                assert!(is_file_name(name) && last < Some(name));
                last = Some(name);
                let separator: &[u8] = if path.is_empty() { b"" } else { b"/" };
                let path = [path, separator, name].concat();
                assert_eq!(tree.stat(&path), Some(entry.stat));
                strings(&[b"entry", b"(", b"name", name, b"node"], nar);
                node(tree, &path, contents, nar);
                strings(&[b")"], nar);
            }
        }
    }
    strings(&[b")"], nar);
}

fn is_file_name(name: &[u8]) -> bool {
    let has_none = |byte: u8| !name.contains(&byte);
    (1..=255).contains(&name.len())
        && has_none(0)
        && has_none(b'/')
        && !matches!(name, b"." | b"..")
}

/// Appends strings in the format of a NAR.
pub fn strings(all: &[&[u8]], nar: &mut Vec<u8>) {
    for string in all {
        nar.extend((string.len() as u64).to_le_bytes());
        nar.extend_from_slice(string);
        nar.resize(nar.len().next_multiple_of(8), 0);
    }
}
