//! The layout of a path's published plan in shared memory.
//!
//! ```text
//! header, one bit per finished block, digests, files with data, small files, directories, names, blocks
//! ```
//!
//! All parts are arrays of small records without pointers. Their offsets follow from the counts in the header.

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::erofs::format::BLOCK_LEN_USIZE;

/// Alignment of a path's blocks.
pub(in crate::image) const ALIGNMENT: usize = BLOCK_LEN_USIZE;

/// The number of records in each part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(in crate::image) struct PathHeader {
    pub(in crate::image) meta_blocks: u32,
    pub(in crate::image) data_blocks: u32,
    /// Files of all types.
    pub(in crate::image) files: u32,
    pub(in crate::image) dirs: u32,
    pub(in crate::image) with_data: u32,
    pub(in crate::image) small_files: u32,
    pub(in crate::image) name_bytes: u64,
    /// 1 if the plan was kept by an earlier server.
    pub(in crate::image) is_kept: u64,
}

/// A file that is read from the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(in crate::image) struct FileRecord {
    pub(in crate::image) size_bytes: u64,
    pub(in crate::image) mtime_sec: i64,
    pub(in crate::image) mtime_nsec: u32,
    /// Index of its node in the plan.
    pub(in crate::image) node: u32,
    /// The directory that contains it; [`TOP`] for the path's top node.
    pub(in crate::image) dir: u32,
    /// Offset of its name. A symlink's target follows the name.
    pub(in crate::image) name: u32,
    /// Its first data block, or the metadata block that contains it.
    pub(in crate::image) block: u32,
    /// For a small file its offset in that block.
    pub(in crate::image) offset: u16,
    pub(in crate::image) name_len: u8,
    pub(in crate::image) is_symlink: u8,
}

/// In place of the directory index, for the path's top node.
pub(in crate::image) const TOP: u32 = u32::MAX;

/// A directory, needed to compute the paths of files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(in crate::image) struct DirRecord {
    /// The index of its parent, which precedes it. The first record is the path's top directory.
    pub(in crate::image) parent: u32,
    pub(in crate::image) name: u32,
    pub(in crate::image) name_len: u32,
}

/// The offsets of a path's parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::image) struct Parts {
    pub(in crate::image) header: PathHeader,
    pub(in crate::image) whole: usize,
    pub(in crate::image) digests: usize,
    pub(in crate::image) with_data: usize,
    pub(in crate::image) small_files: usize,
    pub(in crate::image) dirs: usize,
    pub(in crate::image) names: usize,
    pub(in crate::image) blocks: usize,
    pub(in crate::image) end: usize,
}

impl Parts {
    /// Returns `None` if the counts are invalid or the parts would end after `limit`.
    pub(in crate::image) fn of(start: usize, header: PathHeader, limit: usize) -> Option<Self> {
        let mut next = start.checked_add(size_of::<PathHeader>())?;
        let mut take = |count: u64, each: usize| {
            let first = next;
            let len = usize::try_from(count).ok()?.checked_mul(each)?;
            next = next.checked_add(len)?;
            Some(first)
        };
        let whole = take(u64::from(header.meta_blocks.div_ceil(64)), size_of::<u64>())?;
        let digests = take(u64::from(header.dirs) + 1, size_of::<u64>())?;
        let with_data = take(header.with_data.into(), size_of::<FileRecord>())?;
        let small_files = take(header.small_files.into(), size_of::<FileRecord>())?;
        let dirs = take(header.dirs.into(), size_of::<DirRecord>())?;
        let names = take(header.name_bytes, 1)?;
        let blocks = next.checked_next_multiple_of(ALIGNMENT)?;
        let len = usize::try_from(header.meta_blocks).ok()?;
        let end = blocks.checked_add(len.checked_mul(BLOCK_LEN_USIZE)?)?;
        (end <= limit).then_some(Self {
            header,
            whole,
            digests,
            with_data,
            small_files,
            dirs,
            names,
            blocks,
            end,
        })
    }
}
