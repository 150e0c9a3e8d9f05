//! Errors in NARs and listings.

use std::io;

/// Why a NAR cannot be parsed.
#[derive(Debug, thiserror::Error)]
pub enum NarError {
    /// The NAR cannot be fetched or decompressed.
    #[error("the NAR cannot be read: {0}")]
    Read(#[from] io::Error),
    /// It ends too early.
    #[error("the NAR ends after {at} bytes, within its tree (is it truncated?)")]
    Truncated {
        /// Its length.
        at: u64,
    },
    /// Bytes follow the end of the tree.
    #[error("the NAR has bytes after its end at {at}")]
    Trailing {
        /// Offset of the end.
        at: u64,
    },
    /// Its length differs from the one in the narinfo.
    #[error("the NAR has {found} bytes, but its narinfo says {expected}")]
    Size {
        /// Its length.
        found: u64,
        /// The expected length.
        expected: u64,
    },
    /// A string that the format does not allow there.
    #[error("the NAR is malformed: expected {expected} at byte {at}, found {found}")]
    Unexpected {
        /// Offset of the string.
        at: u64,
        /// What the format allows there.
        expected: &'static str,
        /// The string that is there.
        found: String,
    },
    /// Nonzero padding between strings.
    #[error("the NAR is malformed: the padding before byte {at} is not zero")]
    Padding {
        /// Offset of the end of the padding.
        at: u64,
    },
    /// The tree cannot be on a disk, or is not canonical.
    #[error("the NAR is malformed: at byte {at}, {fault}")]
    Tree {
        /// Offset of the fault.
        at: u64,
        /// The fault.
        fault: TreeFault,
    },
}

/// Why a listing cannot be parsed.
#[derive(Debug, thiserror::Error)]
pub enum ListingError {
    /// The listing is too long.
    #[error("the listing has more than {max} bytes")]
    TooLong {
        /// The maximum length.
        max: usize,
    },
    /// The JSON is not that of a listing.
    #[error("the listing is malformed: at byte {at}, {fault}")]
    Json {
        /// Offset of the fault.
        at: usize,
        /// The fault.
        fault: String,
    },
    /// An unknown version.
    #[error("the listing has version {found}; only version 1 is supported")]
    Version {
        /// The version.
        found: u64,
    },
    /// A name that may not have been UTF-8.
    #[error("the listing cannot represent the name {name}: the original may not be UTF-8")]
    Lossy {
        /// The name in the listing.
        name: String,
    },
    /// A file with a wrong offset.
    #[error(
        "the listing has narOffset {found} for \"{name}\", but the contents are at {expected} in a NAR of this tree"
    )]
    Offset {
        /// Name of the file; empty for the root.
        name: String,
        /// The offset in the listing.
        found: u64,
        /// The right offset.
        expected: u64,
    },
    /// The listing does not match the NAR size of the narinfo.
    #[error("a NAR of the listing's tree has {found} bytes, but its narinfo says {expected}")]
    Size {
        /// The size of the tree's NAR.
        found: u64,
        /// The expected size.
        expected: u64,
    },
    /// The tree cannot be on a disk.
    #[error("the listing is malformed: {0}")]
    Tree(#[from] TreeFault),
}

/// Why a packed tree cannot be read. This program writes packed trees itself, so details would not help anyone.
#[derive(Debug, thiserror::Error)]
pub enum PackedError {
    /// It is truncated, or not a packed tree.
    #[error("the packed tree is malformed")]
    Malformed,
    /// It belongs to another NAR.
    #[error("a NAR of the packed tree has {found} bytes, not {expected}")]
    Size {
        /// The size of the tree's NAR.
        found: u64,
        /// The expected size.
        expected: u64,
    },
}

/// What is wrong with a tree.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TreeFault {
    /// Not a file name.
    #[error("\"{name}\" is not a file name")]
    Name {
        /// The name.
        name: String,
    },
    /// A name longer than file systems allow.
    #[error("the name \"{name}\" has {len} bytes, and a file name has at most 255")]
    NameTooLong {
        /// The name.
        name: String,
        /// Its length in bytes.
        len: usize,
    },
    /// A duplicate name.
    #[error("the name \"{name}\" occurs twice")]
    Duplicate {
        /// The name.
        name: String,
    },
    /// Entries not sorted by name.
    #[error("the name \"{name}\" comes after \"{previous}\"")]
    Unsorted {
        /// The name.
        name: String,
        /// The name before it.
        previous: String,
    },
    /// A path that is too long.
    #[error("the path of \"{name}\" has more than {max} bytes")]
    PathTooLong {
        /// Its last component.
        name: String,
        /// The maximum length.
        max: usize,
    },
    /// Not a symlink target.
    #[error("\"{target}\" is not a symlink target")]
    Target {
        /// The target.
        target: String,
    },
    /// A file or directory that extends past the end of the NAR.
    #[error("the tree needs more than the {max} bytes of its narinfo")]
    TooLarge {
        /// The expected size of the NAR.
        max: u64,
    },
    /// Too many nodes.
    #[error("there are more than {max} files")]
    TooManyNodes {
        /// The maximum number.
        max: usize,
    },
    /// Too many bytes of names.
    #[error("names and symlink targets have more than {max} bytes")]
    TooManyNames {
        /// The maximum length.
        max: usize,
    },
}
