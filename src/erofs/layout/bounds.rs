//! An upper bound on the blocks of a store path, computed from its NAR size alone.
//!
//! A NAR (Nix thesis, figure 5.2; `nix-store --dump`) is a sequence of strings, each with an 8-byte length
//! and padded to 8 bytes. With `pad(n)` for n rounded up to a multiple of 8, its parts take:
//!
//! - directory entry: 88 + pad(name) bytes, in addition to the node itself:
//!   `entry` 16, `(` 16, `name` 16, the name's length 8, `node` 16, `)` 16;
//! - directory: 72: `(` 16, `type` 16, `directory` 24, `)` 16;
//! - regular file: 88 + pad(size): `(` 16, `type` 16, `regular` 16, `contents` 16, length 8, `)` 16;
//! - symlink: 88 + pad(target): `(` 16, `type` 16, `symlink` 16, `target` 16, length 8, `)` 16;
//! - magic: 24.
//!
//! **Data.** Only files over `INLINE_LIMIT` bytes and symlink targets over 4,032 bytes take data blocks. In the NAR, a
//! file with one block takes at least 88 + 88 + 8 + `INLINE_LIMIT` + 1 bytes. A file with b >= 2 blocks takes more than
//! (b - 1) * 4096 + 184, which is over 2,140 per block. So there is at most one data block per min(`INLINE_LIMIT` +
//! 185, 2,140) bytes of the NAR. One exception: a path that is a single file has no directory entry, which costs one
//! block more.
//!
//! **Metadata.** A node takes a directory entry (12 + name) and an inode (at most 64), which is rounded up to a
//! multiple of 32 together with the data inlined after it. A directory adds 27 for `.` and `..`. Compare the maximum
//! with the NAR:
//!
//! - directory: 12 + name + 64 + 27 + 31 = 134 + name, in the NAR 160 + pad(name);
//! - file or symlink with z inlined bytes: 12 + name + 64 + z + 31 = 107 + name + z, in the NAR 176 + pad(name) +
//!   pad(z).
//!
//! Each is smaller than in the NAR, so the sum is smaller than the NAR size, except for 26 bytes of excess of the root
//! inode. Packing at most doubles the sum: of two consecutive inode blocks, the first inode of the second did not fit
//! into the first, so together they hold more than one block. A directory block that is not the last wastes at most 266
//! bytes. Four more blocks cover the last block of each [`InodeGroup`], the block that is closed early after the path's
//! top directory, and the excess.
//!
//! `tests.rs` checks both bounds with random trees.
//!
//! [`InodeGroup`]: super::plan::InodeGroup

/// Regular files up to this size are inlined after their inode.
///
/// A guest reads an inlined file and its inode in one request instead of two, but a walk over all inodes (`ls -lR`) has
/// to read more blocks, and the server has to read all files in a block to return one inode. docs/performance.md
/// compares limits: with 2,048 a walk takes 3.5 times as many requests, and 2,000 scattered small files 6 % fewer.
pub const INLINE_LIMIT_BYTES: u64 = 512;

/// Minimum number of NAR bytes per data block, as derived above.
const NAR_BYTES_PER_DATA_BLOCK: u64 = if INLINE_LIMIT_BYTES + 185 < 2140 {
    INLINE_LIMIT_BYTES + 185
} else {
    2140
};

/// Minimum number of NAR bytes per metadata block: half a block.
const NAR_BYTES_PER_META_BLOCK: u64 = 2048;

/// Metadata blocks added to the quotient.
const META_BLOCKS_EXTRA: u64 = 4;

/// Minimum number of NAR bytes per data block if small files are not inlined (see [`Attributes::inlines_files`]). The
/// worst case is a file of one byte in a directory, which takes 88 + 88 + 8 + 8 bytes of the NAR.
///
/// [`Attributes::inlines_files`]: super::attributes::Attributes::inlines_files
const NAR_BYTES_PER_DATA_BLOCK_APART: u64 = 192;

/// Number of blocks of a path, exact or an upper bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Blocks of inodes and directories.
    pub meta_blocks: u64,
    /// Blocks of file data.
    pub data_blocks: u64,
    /// The path was planned, so the numbers are exact. Otherwise they are upper bounds.
    pub exact: bool,
}

impl Size {
    /// Returns the upper bound for a path with this NAR size. For `inlines_files` see [`Attributes::inlines_files`].
    ///
    /// [`Attributes::inlines_files`]: super::attributes::Attributes::inlines_files
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

/// Maximum number of blocks of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Blocks of inodes and directories.
    pub meta_blocks: u32,
    /// Blocks of file data.
    pub data_blocks: u32,
}

impl Limits {
    /// Limited only by the width of block numbers.
    pub const NONE: Self = Self {
        meta_blocks: u32::MAX,
        data_blocks: u32::MAX,
    };
}
