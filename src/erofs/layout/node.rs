//! A file of any type with its address, once it is placed.

use super::attributes::mode_type;
use crate::tree::{FileKind, Stamp};

/// Index of a node in its plan.
pub type NodeIndex = u32;
/// Index of a directory in its plan.
pub type DirIndex = u32;

/// Type of a node, and the size and address of its contents.
#[derive(Debug, Clone, Copy)]
pub enum Content {
    /// A regular file.
    Regular {
        /// Its length.
        size_bytes: u64,
        /// First data block; 0 if it has none.
        data_block: u32,
    },
    /// A directory.
    Directory {
        /// `i_size`: all blocks except the last count as full. 0 until the directory is listed.
        size_bytes: u64,
        /// Its [`Dir`](super::plan::Dir).
        dir: DirIndex,
    },
    /// A symlink.
    Symlink {
        /// Length of its target.
        target_len_bytes: u32,
        /// First data block; 0 if it has none.
        data_block: u32,
    },
    /// A character device, with its number in the kernel's `new_encode_dev` form.
    CharDevice(u32),
    /// A block device, with its number in the same form.
    BlockDevice(u32),
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

impl Content {
    pub(super) fn set_data_block(&mut self, first: u32) {
        if let Self::Regular { data_block, .. } | Self::Symlink { data_block, .. } = self {
            *data_block = first;
        }
    }
}

/// A file of any type.
#[derive(Debug, Clone)]
pub struct Node {
    pub(super) content: Content,
    pub(super) mtime_sec: i64,
    pub(super) mtime_nsec: u32,
    /// Offset of its name in [`Plan::bytes`](super::plan::Plan); a symlink's target follows the name.
    pub(super) name: u32,
    /// Address of its inode, in units of 32 bytes.
    pub(super) slot: u32,
    /// The directory that contains it; 0 for the path's top node.
    pub(super) parent: DirIndex,
    /// Index in the plan's owners.
    pub(super) owner: u32,
    pub(super) permissions: u16,
    pub(super) name_len: u8,
}

// A plan can have hundreds of thousands of nodes, so their size matters.
const _: () = assert!(size_of::<Node>() == 48);

impl Node {
    /// Returns its type.
    pub fn kind(&self) -> FileKind {
        match self.content {
            Content::Regular { .. } => FileKind::Regular,
            Content::Directory { .. } => FileKind::Directory,
            Content::Symlink { .. } => FileKind::Symlink,
            Content::CharDevice(_) => FileKind::CharDevice,
            Content::BlockDevice(_) => FileKind::BlockDevice,
            Content::Fifo => FileKind::Fifo,
            Content::Socket => FileKind::Socket,
        }
    }

    /// Returns its type and contents.
    pub fn content(&self) -> Content {
        self.content
    }

    /// Returns the type and permissions, as in `st_mode`.
    pub fn mode(&self) -> u16 {
        mode_type(self.kind()) as u16 | self.permissions
    }

    /// Returns whether its owner may execute it, the only permission that a NAR stores.
    pub fn is_executable(&self) -> bool {
        self.permissions & 0o100 != 0
    }

    /// Returns the attributes that must not change between planning and reading.
    pub fn stamp(&self) -> Stamp {
        Stamp {
            size_bytes: self.size_bytes(),
            mtime_sec: self.mtime_sec,
            mtime_nsec: self.mtime_nsec,
        }
    }

    /// `i_size`.
    pub fn size_bytes(&self) -> u64 {
        match self.content {
            Content::Regular { size_bytes, .. } | Content::Directory { size_bytes, .. } => {
                size_bytes
            }
            Content::Symlink {
                target_len_bytes, ..
            } => u64::from(target_len_bytes),
            Content::CharDevice(_) | Content::BlockDevice(_) | Content::Fifo | Content::Socket => 0,
        }
    }

    /// Returns the offset of its name in [`Plan::names`](super::plan::Plan::names). A symlink's target follows the name.
    pub fn name_start(&self) -> u32 {
        self.name
    }

    /// Returns the length of its name.
    pub fn name_len(&self) -> u8 {
        self.name_len
    }

    /// Address of its inode, in units of 32 bytes from the start of the path's metadata.
    pub fn slot(&self) -> u32 {
        self.slot
    }

    /// Returns the directory that contains it.
    pub fn parent(&self) -> DirIndex {
        self.parent
    }
}
