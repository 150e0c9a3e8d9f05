//! How one path's plan lies in memory that processes share.
//!
//! ```text
//! header, a bit for each block that is whole, digests, files with data, small files, directories, names, blocks
//! ```
//!
//! All of it is little records without pointers. Where they begin follows from the counts in the header.

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::erofs::format::BLOCK_LEN_USIZE;

/// The blocks of a path begin at a multiple of their length.
pub(in crate::image) const ALIGNMENT: usize = BLOCK_LEN_USIZE;

/// How much of each there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(in crate::image) struct Header {
    pub(in crate::image) meta_blocks: u32,
    pub(in crate::image) data_blocks: u32,
    /// Files of all types.
    pub(in crate::image) files: u32,
    pub(in crate::image) dirs: u32,
    pub(in crate::image) with_data: u32,
    pub(in crate::image) small_files: u32,
    pub(in crate::image) name_bytes: u64,
}

/// A file that is read from the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(in crate::image) struct FileRecord {
    pub(in crate::image) size_bytes: u64,
    pub(in crate::image) mtime_sec: i64,
    pub(in crate::image) mtime_nsec: u32,
    /// Which node of the plan it is.
    pub(in crate::image) node: u32,
    /// The directory it is in; [`TOP`] for the path's top node.
    pub(in crate::image) dir: u32,
    /// Where its name begins; a symlink's target follows it.
    pub(in crate::image) name: u32,
    /// Its first data block, or the metadata block that it is in.
    pub(in crate::image) block: u32,
    /// Of a small file: where in that block.
    pub(in crate::image) offset: u16,
    pub(in crate::image) name_len: u8,
    pub(in crate::image) is_symlink: u8,
}

/// In place of a directory, for the path's top node.
pub(in crate::image) const TOP: u32 = u32::MAX;

/// A directory, for the paths of files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(in crate::image) struct DirRecord {
    /// One that comes before it; the path's own top directory is the first.
    pub(in crate::image) parent: u32,
    pub(in crate::image) name: u32,
    pub(in crate::image) name_len: u32,
}

/// Where the parts of a path begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::image) struct Parts {
    pub(in crate::image) header: Header,
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
    /// None if that is not to be had with these numbers, or would end after `limit`.
    pub(in crate::image) fn of(start: usize, header: Header, limit: usize) -> Option<Self> {
        let mut next = start.checked_add(size_of::<Header>())?;
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
