//! The tree in a NAR, and where in the NAR each file's bytes are.
//!
//! A NAR is canonical (Nix thesis, figure 5.2): its tree decides every byte of it but the contents of files. So the
//! offsets follow from names, sizes and executable bits, and a listing (the `.ls` file of a binary cache) gives the same
//! [`NarTree`] as the NAR itself. Listings are not signed: whoever planned with one compares it with its NAR later.
//!
//! Nothing here recurses, and what is kept in memory is bounded by the size that the NAR is said to have.

mod builder;
mod error;
mod framing;
mod json;
mod listing;
mod packed;
mod parser;
mod tokens;

use std::io::Read;

use crate::tree::{FileKind, Listing, Stat};

pub use error::{ListingError, NarError, PackedError, TreeFault};
pub use listing::LISTING_MAX_BYTES;
pub use packed::PACKED_MAX_BYTES;

/// More nodes than this, in one store path, are refused: each takes 36 bytes of memory and its name.
pub const NODES_MAX: usize = 1 << 22;

/// More names and targets of symlinks than this, in bytes, are refused. What has a million files has some 20 MiB.
pub const NAMES_MAX_BYTES: usize = 64 << 20;

/// A tree as a NAR holds it. Two are equal if their NARs differ at most in what the files contain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NarTree {
    /// In the order of the NAR: a directory, then its entries with all that is beneath them. The first is the root.
    nodes: Box<[Node]>,
    /// For each directory one run of indices into `nodes`, sorted by the bytes of the names.
    children: Box<[u32]>,
    /// Names, and targets of symlinks.
    bytes: Box<[u8]>,
    nar_size: u64,
}

/// Kept small: a store path can have hundreds of thousands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Node {
    /// Where its name begins in the tree's bytes.
    name_start: u32,
    name_len: u8,
    payload: Payload,
}

const _: () = assert!(size_of::<Node>() <= 32);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Payload {
    Regular {
        size_bytes: u64,
        offset: u64,
        executable: bool,
    },
    /// Its run in the tree's `children`.
    Directory { first: u32, count: u32 },
    /// Its target in the tree's bytes.
    Symlink { start: u32, len: u16 },
}

/// What lies at a path of a [`NarTree`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NarNode<'t> {
    /// A regular file.
    Regular {
        /// Its length.
        size_bytes: u64,
        /// Where its bytes begin in the NAR.
        offset: u64,
        /// Its executable bit.
        executable: bool,
    },
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink {
        /// What it points to.
        target: &'t [u8],
    },
}

impl NarTree {
    /// Parses a NAR of `nar_size` bytes in one pass. Contents of files are read and dropped: give a reader that hashes
    /// or writes what is read through it. At most one byte more than `nar_size` is read.
    ///
    /// # Errors
    /// The reader fails, the NAR is not canonical, its names are no file names, or it has another size.
    pub fn parse(reader: impl Read, nar_size: u64) -> Result<Self, NarError> {
        parser::parse(reader, nar_size)
    }

    /// Parses a listing, the JSON text of a `.ls` file, of a NAR of `nar_size` bytes. Entries may be in any order, and
    /// `narOffset` may be missing.
    ///
    /// # Errors
    /// It is no listing or longer than [`LISTING_MAX_BYTES`], its names are no file names, an offset is not where a
    /// NAR has it, or the NAR of this tree would have another size. [`ListingError::Lossy`] if a name has U+FFFD in it:
    /// JSON has no names but UTF-8, and this is what some servers make of others. Then only the NAR tells the names.
    pub fn from_listing(json: &[u8], nar_size: u64) -> Result<Self, ListingError> {
        listing::parse(json, nar_size)
    }

    /// How many bytes the NAR has.
    pub fn nar_size(&self) -> u64 {
        self.nar_size
    }

    /// How many files, directories and symlinks there are, the root among them.
    pub fn node_count(&self) -> usize {
        self.nodes.len()
    }

    /// What lies at `path`, which is relative to the root: empty for the root itself. Symlinks are not followed.
    pub fn node(&self, path: &[u8]) -> Option<NarNode<'_>> {
        let node = self.find(path)?;
        Some(match node.payload {
            Payload::Regular {
                size_bytes,
                offset,
                executable,
            } => NarNode::Regular {
                size_bytes,
                offset,
                executable,
            },
            Payload::Directory { .. } => NarNode::Directory,
            Payload::Symlink { .. } => NarNode::Symlink {
                target: self.target(node),
            },
        })
    }

    /// Attributes of what lies at `path`, as [`node`](Self::node).
    pub fn stat(&self, path: &[u8]) -> Option<Stat> {
        self.find(path).map(Node::stat)
    }

    /// The entries of the directory at `path`; none if there is no directory.
    pub fn list(&self, path: &[u8]) -> Option<Listing> {
        let Payload::Directory { .. } = self.find(path)?.payload else {
            return None;
        };
        let mut listing = Listing::default();
        for child in self.children(self.find(path)?) {
            let node = &self.nodes[*child as usize];
            listing.push(self.name(node), node.stat(), self.target(node));
        }
        Some(listing)
    }

    /// About how much memory it takes, in bytes.
    pub fn heap_bytes(&self) -> usize {
        size_of_val(&*self.nodes) + size_of_val(&*self.children) + self.bytes.len()
    }

    fn find(&self, path: &[u8]) -> Option<&Node> {
        let mut node = self.nodes.first()?;
        if path.is_empty() {
            return Some(node);
        }
        for name in path.split(|byte| *byte == b'/') {
            let children = self.children(node);
            let child = |index: &u32| &self.nodes[*index as usize];
            let at = children.binary_search_by(|index| self.name(child(index)).cmp(name));
            node = child(&children[at.ok()?]);
        }
        Some(node)
    }

    fn children(&self, node: &Node) -> &[u32] {
        match node.payload {
            Payload::Directory { first, count } => {
                &self.children[first as usize..][..count as usize]
            }
            _ => &[],
        }
    }

    fn name(&self, node: &Node) -> &[u8] {
        &self.bytes[node.name_start as usize..][..usize::from(node.name_len)]
    }

    /// Empty unless it is a symlink.
    fn target(&self, node: &Node) -> &[u8] {
        match node.payload {
            Payload::Symlink { start, len } => &self.bytes[start as usize..][..usize::from(len)],
            _ => &[],
        }
    }
}

impl Node {
    /// Times and owners are those that [`Stat::of_kind`] has: a NAR keeps none.
    fn stat(&self) -> Stat {
        match self.payload {
            Payload::Regular {
                size_bytes,
                executable,
                ..
            } => Stat {
                permissions: if executable { 0o555 } else { 0o444 },
                size_bytes,
                ..Stat::of_kind(FileKind::Regular)
            },
            Payload::Directory { .. } => Stat::of_kind(FileKind::Directory),
            Payload::Symlink { .. } => Stat {
                permissions: 0o777,
                ..Stat::of_kind(FileKind::Symlink)
            },
        }
    }
}

#[cfg(test)]
mod tests;
