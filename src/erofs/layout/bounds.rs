//! How many blocks a store path can need, from its NAR size alone.
//!
//! A NAR (Nix thesis, figure 5.2; `nix-store --dump`) is a sequence of strings, each with an 8-byte length
//! and padding to 8 bytes. With `pad(n)` for n rounded up to 8, it spends
//!
//! - 88 + pad(name) bytes on an entry of a directory, besides the node itself:
//!   `entry` 16, `(` 16, `name` 16, the name's length 8, `node` 16, `)` 16;
//! - 72 on a directory: `(` 16, `type` 16, `directory` 24, `)` 16;
//! - 88 + pad(size) on a regular file: `(` 16, `type` 16, `regular` 16, `contents` 16, length 8, `)` 16;
//! - 88 + pad(target) on a symlink: `(` 16, `type` 16, `symlink` 16, `target` 16, length 8, `)` 16;
//! - 24 on its magic.
//!
//! **Data.** Only files over `INLINE_LIMIT` bytes and symlink targets over 4,032 take data blocks. A file with
//! one block has a node of at least 88 + 88 + 8 + `INLINE_LIMIT` + 1 bytes, one with b >= 2 blocks has more than
//! (b - 1) * 4096 + 184, which is over 2,140 for each block. So each block stands for at least the smaller of
//! `INLINE_LIMIT` + 185 and 2,140 bytes of the NAR, but for the single file that is the whole path and has no
//! entry around it: one block more.
//!
//! **Metadata.** A node takes a directory entry (12 + name) and an inode (at most 64) that is rounded up to 32
//! with what is inlined after it; a directory adds 27 for `.` and `..`. The largest sums against the NAR:
//! a directory 12 + name + 64 + 27 + 31 = 134 + name against 160 + pad(name); a file or symlink with z bytes
//! inline 12 + name + 64 + z + 31 = 107 + name + z against 176 + pad(name) + pad(z). Each is smaller, so all
//! of them together are smaller than S, the root inode's excess of 26 bytes aside. Packing at most doubles
//! that: two blocks of inodes that are filled one after the other hold more than one block between them (what did
//! not fit the first starts the second), and a directory block that is not the last is filled but for 266 bytes. The
//! last block of names and of small files each, a block that is closed early after the path's top directory, and
//! the excess: four blocks more.
//!
//! `tests.rs` holds both against random trees.

/// Regular files up to this many bytes lie after their inode.
///
/// A guest reads such a file with its inode, in one request instead of two; but each makes a walk over all inodes
/// (`ls -lR`) longer. `bench/requests` shows both: up to here neither takes more requests than on an image of
/// mkfs.erofs.
pub const INLINE_LIMIT_BYTES: u64 = 2048;

/// Bytes of a NAR for every data block at the least, as derived above.
const NAR_BYTES_PER_DATA_BLOCK: u64 = if INLINE_LIMIT_BYTES + 185 < 2140 {
    INLINE_LIMIT_BYTES + 185
} else {
    2140
};

/// Bytes of a NAR for every metadata block at the least: half a block.
const NAR_BYTES_PER_META_BLOCK: u64 = 2048;

/// Metadata blocks on top of that.
const META_BLOCKS_EXTRA: u64 = 4;

/// The same where small files have blocks of their own (see [`Attributes::inlines_files`]): a file of one byte in a directory
/// has a node of 88 + 88 + 8 + 8 bytes, and so does each of its blocks at the least.
///
/// [`Attributes::inlines_files`]: super::attributes::Attributes::inlines_files
const NAR_BYTES_PER_DATA_BLOCK_APART: u64 = 192;

/// How many blocks a path takes or may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Blocks of inodes and directories.
    pub meta_blocks: u64,
    /// Blocks of file data.
    pub data_blocks: u64,
    /// The path was planned and takes just that; else it is a bound.
    pub exact: bool,
}

impl Size {
    /// The bound for a path whose NAR has `nar_size_bytes`; `inlines_files` as its attributes have it.
    pub fn bound(nar_size_bytes: u64, inlines_files: bool) -> Self {
        let each_data_block = match inlines_files {
            true => NAR_BYTES_PER_DATA_BLOCK,
            false => NAR_BYTES_PER_DATA_BLOCK_APART,
        };
        Self {
            meta_blocks: nar_size_bytes / NAR_BYTES_PER_META_BLOCK + META_BLOCKS_EXTRA,
            data_blocks: nar_size_bytes / each_data_block + 1,
            exact: false,
        }
    }
}

/// Most blocks that a path may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Blocks of inodes and directories.
    pub meta_blocks: u32,
    /// Blocks of file data.
    pub data_blocks: u32,
}

impl Limits {
    /// As much as block numbers allow.
    pub const NONE: Self = Self {
        meta_blocks: u32::MAX,
        data_blocks: u32::MAX,
    };
}
