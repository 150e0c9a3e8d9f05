//! The tree in a NAR, and the offsets of the file contents.
//!
//! A NAR is canonical (Nix thesis, figure 5.2): the tree determines all its bytes except file contents. So the offsets follow
//! from names, sizes and executable bits, and a listing (the `.ls` file of a binary cache) gives the same [`NarTree`] as the
//! NAR. Listings are not signed, so a tree from a listing must be compared with the NAR later.
//!
//! Nothing here recurses, and memory use is bounded by the declared size of the NAR.

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

/// Maximum number of nodes in a store path. Each takes 36 bytes of memory plus its name.
pub const NODES_MAX: usize = 1 << 22;

/// Maximum total length of names and symlink targets, in bytes. A million files have about 20 MiB.
pub const NAMES_MAX_BYTES: usize = 64 << 20;

/// The tree of a NAR. Two trees are equal if their NARs differ at most in file contents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NarTree {
    /// In the order of the NAR: a directory, then each entry with its subtree. The first node is the root.
    nodes: Box<[StoredNode]>,
    /// For each directory a run of indices into `nodes`, sorted by name (as bytes).
    children: Box<[u32]>,
    /// Names and symlink targets.
    bytes: Box<[u8]>,
    nar_size: u64,
}

/// Kept small, because a store path can have hundreds of thousands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct StoredNode {
    /// Offset of its name in the tree's `bytes`.
    name_start: u32,
    name_len: u8,
    payload: Payload,
}

const _: () = assert!(size_of::<StoredNode>() <= 32);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Payload {
    Regular {
        size_bytes: u64,
        offset: u64,
        executable: bool,
    },
    /// Its run of the tree's `children`.
    Directory { first: u32, count: u32 },
    /// Its target in the tree's `bytes`.
    Symlink { start: u32, len: u16 },
}

/// A node of a [`NarTree`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NarNode<'t> {
    /// A regular file.
    Regular {
        /// Its length.
        size_bytes: u64,
        /// Offset of its contents in the NAR.
        offset: u64,
        /// Its executable bit.
        executable: bool,
    },
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink {
        /// The target.
        target: &'t [u8],
    },
}

impl NarTree {
    /// Parses a NAR of `nar_size` bytes in one pass. File contents are read and dropped; use a reader that hashes or stores
    /// what passes through it. Reads at most one byte more than `nar_size`.
    ///
    /// # Errors
    /// The reader fails, the NAR is not canonical, a name is not a file name, or the size differs.
    pub fn parse(reader: impl Read, nar_size: u64) -> Result<Self, NarError> {
        parser::parse(reader, nar_size)
    }

    /// Parses a listing (the JSON text of a `.ls` file) of a NAR of `nar_size` bytes. Entries may be in any order, and
    /// `narOffset` may be missing.
    ///
    /// # Errors
    /// It is not a listing or longer than [`LISTING_MAX_BYTES`], a name is not a file name, or an offset or the size of the NAR
    /// does not match the tree. [`ListingError::Lossy`] if a name contains U+FFFD, by which some servers replace bytes that are
    /// not UTF-8: only the NAR has the real name.
    pub fn from_listing(json: &[u8], nar_size: u64) -> Result<Self, ListingError> {
        listing::parse(json, nar_size)
    }

    /// Returns the size of the NAR in bytes.
    pub fn nar_size(&self) -> u64 {
        self.nar_size
    }

    /// Returns the number of nodes, including the root.
    pub fn node_count(&self) -> usize {
        self.nodes.len()
    }

    /// Returns the node at `path`, relative to the root; empty for the root itself. Does not follow symlinks.
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

    /// Returns the attributes of the node at `path`; see [`node`](Self::node).
    pub fn stat(&self, path: &[u8]) -> Option<Stat> {
        self.find(path).map(StoredNode::stat)
    }

    /// Returns the entries of the directory at `path`, or `None` if it is not a directory.
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

    /// Returns the approximate memory use in bytes.
    pub fn heap_bytes(&self) -> usize {
        size_of_val(&*self.nodes) + size_of_val(&*self.children) + self.bytes.len()
    }

    fn find(&self, path: &[u8]) -> Option<&StoredNode> {
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

    fn children(&self, node: &StoredNode) -> &[u32] {
        match node.payload {
            Payload::Directory { first, count } => {
                &self.children[first as usize..][..count as usize]
            }
            _ => &[],
        }
    }

    fn name(&self, node: &StoredNode) -> &[u8] {
        &self.bytes[node.name_start as usize..][..usize::from(node.name_len)]
    }

    /// Returns the target, empty if the node is not a symlink.
    fn target(&self, node: &StoredNode) -> &[u8] {
        match node.payload {
            Payload::Symlink { start, len } => &self.bytes[start as usize..][..usize::from(len)],
            _ => &[],
        }
    }
}

impl StoredNode {
    /// Times and owners are those of [`Stat::of_kind`], because a NAR stores none.
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
