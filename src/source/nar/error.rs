//! What can be wrong with a NAR or a listing, each in one sentence.

use std::io;

/// Why a NAR gives no tree.
#[derive(Debug, thiserror::Error)]
pub enum NarError {
    /// It cannot be fetched or decompressed to its end.
    #[error("the NAR cannot be read: {0}")]
    Read(#[from] io::Error),
    /// It ends too early.
    #[error("the NAR ends after {at} bytes, within its tree (was it cut short?)")]
    Truncated {
        /// How many bytes there are.
        at: u64,
    },
    /// It goes on after its end.
    #[error("the NAR has bytes after its end at {at}")]
    Trailing {
        /// Where it ends.
        at: u64,
    },
    /// It is not as long as its narinfo says.
    #[error("the NAR has {found} bytes instead of the {expected} of its narinfo")]
    Size {
        /// How many bytes it has.
        found: u64,
        /// How many it should have.
        expected: u64,
    },
    /// Another word than the format has there.
    #[error("the NAR is malformed: at byte {at} there should be {expected}, not {found}")]
    Unexpected {
        /// Where it begins.
        at: u64,
        /// What may be there.
        expected: &'static str,
        /// What is there.
        found: String,
    },
    /// Bytes between strings that should be zero.
    #[error("the NAR is malformed: the padding before byte {at} is not zero")]
    Padding {
        /// Where it ends.
        at: u64,
    },
    /// A tree that cannot be on a disk, or is not canonical.
    #[error("the NAR is malformed: at byte {at}, {fault}")]
    Tree {
        /// Where that was found.
        at: u64,
        /// What is wrong.
        fault: TreeFault,
    },
}

/// Why a listing gives no tree.
#[derive(Debug, thiserror::Error)]
pub enum ListingError {
    /// Too long.
    #[error("the listing has more than {max} bytes")]
    TooLong {
        /// The most that it may have.
        max: usize,
    },
    /// Not the JSON that is expected.
    #[error("the listing is malformed: at byte {at}, {fault}")]
    Json {
        /// Where.
        at: usize,
        /// What is wrong.
        fault: String,
    },
    /// A version that nobody knows yet.
    #[error("the listing has version {found}; only version 1 is known")]
    Version {
        /// Which it has.
        found: u64,
    },
    /// A name that was not UTF-8, perhaps.
    #[error("the listing cannot tell the name {name}: it was not UTF-8, perhaps")]
    Lossy {
        /// What it has instead.
        name: String,
    },
    /// A file whose bytes would be elsewhere.
    #[error(
        "the listing has narOffset {found} for \"{name}\", which is at {expected} in a NAR of this tree"
    )]
    Offset {
        /// Name of the file, empty for the root.
        name: String,
        /// What it says.
        found: u64,
        /// What it should say.
        expected: u64,
    },
    /// Of another NAR than the narinfo.
    #[error(
        "a NAR of the listing's tree has {found} bytes instead of the {expected} of its narinfo"
    )]
    Size {
        /// How many bytes it has.
        found: u64,
        /// How many it should have.
        expected: u64,
    },
    /// A tree that cannot be on a disk.
    #[error("the listing is malformed: {0}")]
    Tree(#[from] TreeFault),
}

/// Why bytes give no packed tree. They come from this program, so there is nothing more to say.
#[derive(Debug, thiserror::Error)]
pub enum PackedError {
    /// Cut short, or something else.
    #[error("the packed tree is malformed")]
    Malformed,
    /// Of another NAR.
    #[error("a NAR of the packed tree has {found} bytes instead of {expected}")]
    Size {
        /// How many bytes it has.
        found: u64,
        /// How many it should have.
        expected: u64,
    },
}

/// What is wrong with a tree.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TreeFault {
    /// A name that no file can have.
    #[error("\"{name}\" is not a file name")]
    Name {
        /// The name.
        name: String,
    },
    /// A name that no file system takes.
    #[error("the name \"{name}\" has {len} bytes, and a file name has at most 255")]
    NameTooLong {
        /// The name.
        name: String,
        /// Its length in bytes.
        len: usize,
    },
    /// Two entries of one name.
    #[error("the name \"{name}\" is there twice")]
    Duplicate {
        /// The name.
        name: String,
    },
    /// Entries that are not in the order of their names.
    #[error("the name \"{name}\" comes after \"{previous}\"")]
    Unsorted {
        /// The name.
        name: String,
        /// The one before it.
        previous: String,
    },
    /// Too deep to be reached.
    #[error("the path of \"{name}\" has more than {max} bytes")]
    PathTooLong {
        /// The last name of it.
        name: String,
        /// The most that it may have.
        max: usize,
    },
    /// A target that no symlink can have.
    #[error("the target \"{target}\" cannot be that of a symlink")]
    Target {
        /// The target.
        target: String,
    },
    /// A file or directory that ends beyond the NAR.
    #[error("the tree takes more than the {max} bytes of its narinfo")]
    TooLarge {
        /// How many bytes the NAR should have.
        max: u64,
    },
    /// More than this program takes.
    #[error("there are more than {max} files")]
    TooManyNodes {
        /// The most that there may be.
        max: usize,
    },
    /// More than this program takes.
    #[error("names and targets of symlinks have more than {max} bytes")]
    TooManyNames {
        /// The most that they may have.
        max: usize,
    },
}
