//! The address ranges of all paths on the disk.
//!
//! ```text
//! block 0              superblock
//! block 1 ..           root directory (of a tree: the whole tree's metadata)
//!      .. 128 GiB      metadata arena: one range per store path
//! 128 GiB .. 16 TiB    data arena: one range per store path
//! ```
//!
//! On a dense disk ([`Arenas::Packed`]) the data arena follows the last metadata range.
//!
//! Inodes are below 128 GiB so that a nid fits 32 bits: larger ones cause stale file handles under
//! overlayfs and NFS on Linux 5.19 to 6.14 and `EOVERFLOW` to 32-bit programs.

use std::ops::Range;

use super::bounds::{Limits, Size};
use crate::erofs::format::{BLOCK_LEN_BYTES, SLOTS_PER_BLOCK};
use crate::tree::FileKind;

/// First block of the data arena, at 128 GiB.
pub const DATA_ARENA_START: u32 = 1 << 25;
/// End of the data arena, at 16 TiB - 2 MiB. Block 0xffffffff means "none" in EROFS.
pub const DATA_ARENA_END: u32 = u32::MAX - 511;
/// First block of the root directory; starts with its inode.
pub const ROOT_BLOCK: u32 = 1;
/// Nid of the root directory.
pub const ROOT_NID: u16 = 128;
/// The length of a disk is a multiple of 2 MiB, which virtio-pmem backends require.
const LEN_UNIT_BYTES: u64 = 2 << 20;

const _: () = assert!(ROOT_NID as u32 == ROOT_BLOCK * SLOTS_PER_BLOCK);

/// The address ranges of one path.
#[derive(Debug, Clone)]
pub struct Region {
    /// Name in the store; empty for a tree.
    pub name: Box<[u8]>,
    /// Type of the path's top node, if known without a stat.
    pub kind: Option<FileKind>,
    /// Metadata blocks; the first one starts with the inode of the path's top node.
    pub meta: Range<u32>,
    /// Data blocks.
    pub data: Range<u32>,
    /// The ranges have exactly the size of the path's plan, not an upper bound.
    pub exact: bool,
}

impl Region {
    /// Returns the nid of the path's top node.
    pub fn nid(&self) -> u64 {
        self.nid_at(0)
    }

    /// Returns the nid of the inode at slot `slot` of this path's plan.
    pub fn nid_at(&self, slot: u32) -> u64 {
        u64::from(self.meta.start) * u64::from(SLOTS_PER_BLOCK) + u64::from(slot)
    }

    /// Returns the maximum number of blocks of the path's plan.
    pub fn limits(&self) -> Limits {
        Limits {
            meta_blocks: self.meta.end - self.meta.start,
            data_blocks: self.data.end - self.data.start,
        }
    }
}

/// The closure does not fit on a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the closure does not fit one disk: at most 128 GiB of inodes and directories and 15.8 TiB of files"
)]
pub struct TooBig;

/// A path that needs address ranges.
#[derive(Debug, Clone)]
pub struct Claim {
    /// Name in the store.
    pub name: Box<[u8]>,
    /// Type of the path's top node, if known.
    pub kind: Option<FileKind>,
    /// How many blocks it needs.
    pub size: Size,
}

/// Where the data arena starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arenas {
    /// At [`DATA_ARENA_START`], whatever the paths need.
    Fixed,
    /// At the end of the last path's metadata. The disk then has no gaps, if the sizes of all paths are exact.
    Packed,
}

/// The address ranges of all paths.
#[derive(Debug, Clone)]
pub struct Space {
    regions: Vec<Region>,
    /// First block of the data arena.
    data_start: u32,
    len_bytes: u64,
}

/// What a block belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Area {
    /// Block 0.
    Superblock,
    /// Block of the root directory, relative to its first.
    Root(u32),
    /// Metadata block of a path.
    Meta {
        /// Index of the region.
        region: u32,
        /// Block in its range.
        block: u32,
    },
    /// Data block of a path.
    Data {
        /// Index of the region.
        region: u32,
        /// Block in its range.
        block: u32,
    },
    /// Belongs to nothing.
    Unused {
        /// The blocks up to this one (exclusive) are unused, too.
        end: u32,
    },
}

impl Space {
    /// Returns the space of a tree: one region with all blocks.
    pub fn whole(kind: FileKind) -> Self {
        let region = Region {
            name: Box::default(),
            kind: Some(kind),
            meta: ROOT_BLOCK..DATA_ARENA_START,
            data: DATA_ARENA_START..DATA_ARENA_END,
            exact: false,
        };
        Self {
            regions: vec![region],
            data_start: DATA_ARENA_START,
            len_bytes: u64::from(DATA_ARENA_END) * BLOCK_LEN_BYTES,
        }
    }

    /// Assigns ranges to `claims`, in order, after a root directory of `root_blocks` blocks.
    ///
    /// # Errors
    /// They do not fit; see [`to_plan_exactly`].
    pub fn assign(claims: Vec<Claim>, root_blocks: u32, arenas: Arenas) -> Result<Self, TooBig> {
        let mut meta = u64::from(ROOT_BLOCK) + u64::from(root_blocks);
        let data_start = match arenas {
            Arenas::Fixed => DATA_ARENA_START,
            Arenas::Packed => end_of_meta(&claims, meta)?,
        };
        let mut data = u64::from(data_start);
        let mut regions = Vec::with_capacity(claims.len());
        for claim in claims {
            regions.push(Region {
                meta: take(&mut meta, claim.size.meta_blocks, DATA_ARENA_START)?,
                data: take(&mut data, claim.size.data_blocks, DATA_ARENA_END)?,
                name: claim.name,
                kind: claim.kind,
                exact: claim.size.exact,
            });
        }
        let len_bytes = (data * BLOCK_LEN_BYTES).next_multiple_of(LEN_UNIT_BYTES);
        Ok(Self {
            regions,
            data_start,
            len_bytes,
        })
    }

    /// Returns the regions, sorted by address.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// Returns the region with this index.
    pub fn region(&self, index: u32) -> &Region {
        &self.regions[index as usize]
    }

    /// Returns the first block of the data arena.
    pub fn data_start(&self) -> u32 {
        self.data_start
    }

    /// Returns the length of the disk.
    pub fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// What `block` belongs to.
    pub fn area(&self, block: u32) -> Area {
        if block >= self.data_start {
            return self.data_area(block);
        }
        let after = self.regions.partition_point(|r| r.meta.start <= block);
        match after
            .checked_sub(1)
            .map(|index| (index, &self.regions[index]))
        {
            Some((index, region)) if block < region.meta.end => Area::Meta {
                region: index_of(index),
                block: block - region.meta.start,
            },
            None if block < ROOT_BLOCK => Area::Superblock,
            None => Area::Root(block - ROOT_BLOCK),
            Some(_) => Area::Unused {
                end: self.data_start,
            },
        }
    }

    fn data_area(&self, block: u32) -> Area {
        let after = self.regions.partition_point(|r| r.data.start <= block);
        // If several regions have this start, only the last one is not empty, and that is the one found.
        match after
            .checked_sub(1)
            .map(|index| (index, &self.regions[index]))
        {
            Some((index, region)) if block < region.data.end => Area::Data {
                region: index_of(index),
                block: block - region.data.start,
            },
            _ => Area::Unused { end: u32::MAX },
        }
    }
}

/// Cannot saturate: every region has at least one metadata block, so there are fewer than 2^25.
fn index_of(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}

/// Returns the end of the metadata ranges of `claims`, of which the first starts at block `first`.
fn end_of_meta(claims: &[Claim], first: u64) -> Result<u32, TooBig> {
    let mut sizes = claims.iter().map(|claim| claim.size.meta_blocks);
    let end = sizes.try_fold(first, u64::checked_add).ok_or(TooBig)?;
    u32::try_from(end).map_err(|_| TooBig)
}

fn take(next: &mut u64, count: u64, end: u32) -> Result<Range<u32>, TooBig> {
    let start = u32::try_from(*next).map_err(|_| TooBig)?;
    *next = next.checked_add(count).ok_or(TooBig)?;
    match u32::try_from(*next) {
        Ok(stop) if stop <= end => Ok(start..stop),
        _ => Err(TooBig),
    }
}

/// Returns the claims whose upper bounds must be replaced by exact sizes so that all claims can fit: as few as possible,
/// largest first.
///
/// Returns an empty list if all claims fit. Otherwise plan the returned claims and call again with their exact sizes.
/// The result does not depend on how many claims are planned at a time.
///
/// # Errors
/// The exact sizes alone do not fit.
pub fn to_plan_exactly(claims: &[Claim], root_blocks: u32) -> Result<Vec<usize>, TooBig> {
    let meta_room = DATA_ARENA_START - ROOT_BLOCK - root_blocks;
    let data_room = DATA_ARENA_END - DATA_ARENA_START;
    let meta = largest_until_fit(claims, u64::from(meta_room), |size| size.meta_blocks)?;
    if !meta.is_empty() {
        return Ok(meta);
    }
    largest_until_fit(claims, u64::from(data_room), |size| size.data_blocks)
}

fn largest_until_fit(
    claims: &[Claim],
    room: u64,
    blocks: impl Fn(&Size) -> u64,
) -> Result<Vec<usize>, TooBig> {
    let wanted = |index: usize| u128::from(blocks(&claims[index].size));
    let mut sum: u128 = (0..claims.len()).map(wanted).sum();
    let mut bounds: Vec<usize> = (0..claims.len())
        .filter(|&index| !claims[index].size.exact)
        .collect();
    // A stable sort, so that of equal bounds the first in the closure's order is chosen: the layout must be
    // deterministic.
    bounds.sort_by_key(|&index| std::cmp::Reverse(blocks(&claims[index].size)));
    let mut chosen = Vec::new();
    for index in bounds {
        if sum <= u128::from(room) {
            break;
        }
        sum -= wanted(index);
        chosen.push(index);
    }
    if sum <= u128::from(room) {
        Ok(chosen)
    } else {
        Err(TooBig)
    }
}
