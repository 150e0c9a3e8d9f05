//! The words of a NAR. Every string is encoded as its length in 8 bytes, its bytes, and zeros up to a multiple of 8.

pub(super) const MAGIC: &[u8] = b"nix-archive-1";

/// The start of every node. Its type follows.
pub(super) const BEGIN_NODE: [&[u8]; 2] = [b"(", b"type"];
pub(super) const DIRECTORY: &[u8] = b"directory";
pub(super) const REGULAR: &[u8] = b"regular";
pub(super) const SYMLINK: &[u8] = b"symlink";

/// The start of a directory entry. Its name follows.
pub(super) const ENTRY: &[u8] = b"entry";
pub(super) const BEFORE_NAME: [&[u8]; 2] = [b"(", b"name"];
/// Follows the name. The node follows.
pub(super) const BEFORE_NODE: &[u8] = b"node";

/// Precede the contents of an executable file.
pub(super) const EXECUTABLE: &[u8] = b"executable";
pub(super) const EXECUTABLE_VALUE: &[u8] = b"";
/// The contents follow, as one string.
pub(super) const CONTENTS: &[u8] = b"contents";
/// The target follows.
pub(super) const TARGET: &[u8] = b"target";
/// The end of a node, or of an entry.
pub(super) const END: &[u8] = b")";

/// More than the longest of these words, which has 13 bytes.
pub(super) const WORD_MAX: usize = 16;

/// Size of the length of a string, in bytes.
pub(super) const LENGTH_BYTES: u64 = 8;
/// Alignment of every string.
pub(super) const ALIGNMENT: u64 = 8;

/// Encodes strings as in a NAR.
pub(super) fn written(strings: &[&[u8]]) -> Vec<u8> {
    let mut out = Vec::new();
    for string in strings {
        out.extend((string.len() as u64).to_le_bytes());
        out.extend_from_slice(string);
        out.resize(out.len().next_multiple_of(8), 0);
    }
    out
}

/// Returns the size of the encoded strings in bytes.
pub(super) fn len_of(strings: &[&[u8]]) -> u64 {
    let padded = |string: &&[u8]| (string.len() as u64).next_multiple_of(ALIGNMENT);
    strings
        .iter()
        .map(|string| LENGTH_BYTES + padded(string))
        .sum()
}
