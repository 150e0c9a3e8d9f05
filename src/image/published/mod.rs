//! Plans that one process makes and all other processes of a server read, so that a further VM causes no walk.
//!
//! A store path never changes, so neither does its plan. The planner process has no contact with guests. It walks the paths
//! that other processes read, and writes the results to memory that no other process can write to ([`ReadMap`]): all metadata
//! blocks as a guest reads them, and the locations of files whose contents are read from the host. Readers find a plan with an
//! atomic load, and copy from it.
//!
//! - `format`: the layout of a path in that memory.
//! - `requests`: what readers want published.
//!
//! A process that has read by a plan of its own switches to the published one if both are equal as far as its own was made
//! ([`PublishedPath::digest`]). Readers do not trust published data to be well-formed: a number out of range is an error.

mod format;
mod requests;

use std::sync::Arc;

use smallvec::SmallVec;
use zerocopy::{FromBytes, IntoBytes};

pub(super) use format::{DirRecord, FileRecord, Parts, PathHeader, TOP};
pub(super) use requests::{Requests, Wish};

use crate::erofs::encode::Block;
use crate::erofs::format::BLOCK_LEN_USIZE;
use crate::process::ReadMap;
use crate::tree::Stamp;

/// Table entry of a path that differs from its registration or cannot be laid out. A process that plans it must plan all of it
/// before serving anything.
pub(super) const SUSPECT: u64 = 1;

/// The published plans, and the requests to publish more.
#[derive(Debug)]
pub(super) struct Published {
    map: ReadMap,
    requests: Arc<Requests>,
}

/// The table entry of a path.
#[derive(Debug)]
pub(super) enum TableEntry {
    /// Not published.
    None,
    /// It must be planned completely before any of it is used.
    Suspect,
    /// Its published plan.
    Path(PublishedPath),
}

/// The published plan of one path.
#[derive(Debug)]
pub(super) struct PublishedPath {
    published: Arc<Published>,
    parts: Parts,
}

/// Number of published plans.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PublishedPlans {
    /// All of them.
    pub all: u64,
    /// Those that an earlier server kept.
    pub kept: u64,
}

/// The files of a block, or of a read.
pub(super) type Files = SmallVec<[FileRecord; 4]>;

/// Returns the length of the table for this number of paths, in bytes.
pub(super) fn table_bytes(paths: usize) -> usize {
    let bytes = paths.saturating_mul(size_of::<u64>());
    bytes.next_multiple_of(format::ALIGNMENT)
}

/// Returns the offset of a path's entry in the table.
pub(super) fn entry_at(region: u32) -> usize {
    region as usize * size_of::<u64>()
}

impl Published {
    /// Uses the plans in `map`.
    pub(super) fn new(map: ReadMap, requests: Arc<Requests>) -> Self {
        Self { map, requests }
    }

    /// Returns the requests.
    pub(super) fn requests(&self) -> &Arc<Requests> {
        &self.requests
    }

    /// Returns the entry of a path.
    pub(super) fn find(self: &Arc<Self>, region: u32) -> TableEntry {
        match self.map.load(entry_at(region)) {
            None | Some(0) => TableEntry::None,
            Some(SUSPECT) => TableEntry::Suspect,
            Some(start) => self.path(start).map_or(TableEntry::None, TableEntry::Path),
        }
    }

    /// Returns whether a path must be planned completely before it is used.
    pub(super) fn is_suspect(&self, region: u32) -> bool {
        self.map.load(entry_at(region)) == Some(SUSPECT)
    }

    /// Counts the plans of the first `paths` paths.
    pub(super) fn count(self: &Arc<Self>, paths: u32) -> PublishedPlans {
        let mut plans = PublishedPlans::default();
        for region in 0..paths {
            if let TableEntry::Path(path) = self.find(region) {
                plans.all += 1;
                plans.kept += u64::from(path.header().is_kept == 1);
            }
        }
        plans
    }

    /// Requests a publication. Returns whether it was requested before.
    pub(super) fn ask(&self, region: u32, wish: Wish) -> bool {
        self.requests.ask(region, wish)
    }

    fn path(self: &Arc<Self>, start: u64) -> Option<PublishedPath> {
        let start = usize::try_from(start).ok()?;
        let header: PathHeader = self.record(start, 1, 0)?;
        let parts = Parts::of(start, header, self.map.len_bytes())?;
        Some(PublishedPath {
            published: Arc::clone(self),
            parts,
        })
    }

    /// Returns record `index` of the `count` records at `start`.
    fn record<T: FromBytes + IntoBytes>(&self, start: usize, count: u32, index: u32) -> Option<T> {
        let mut record = T::new_zeroed();
        let at = start.checked_add((index as usize).checked_mul(size_of::<T>())?)?;
        (index < count).then_some(())?;
        self.map.read(at, record.as_mut_bytes())?;
        Some(record)
    }
}

impl PublishedPath {
    /// Requests a further publication for this path.
    pub(super) fn ask(&self, region: u32, wish: Wish) {
        self.published.ask(region, wish);
    }

    pub(super) fn header(&self) -> &PathHeader {
        &self.parts.header
    }

    /// [`Plan::digest`](crate::erofs::layout::plan::Plan::digest) of the first `dirs` directories, or of all if there are fewer.
    pub(super) fn digest(&self, dirs: u32) -> Option<u64> {
        let count = self.parts.header.dirs;
        let (start, digests) = (self.parts.digests, count.checked_add(1)?);
        self.published.record(start, digests, dirs.min(count))
    }

    /// Copies a metadata block to `to`, which must be zero. Returns the files whose contents are missing in it; `None` if it is
    /// corrupt.
    pub(super) fn block(&self, block: u32, to: &mut Block) -> Option<Files> {
        if block >= self.parts.header.meta_blocks {
            return Some(Files::new());
        }
        // Check before copying: a block that is finished now is finished in the copy too.
        let is_whole = self.is_whole(block)?;
        let at = (block as usize).checked_mul(BLOCK_LEN_USIZE)?;
        self.published
            .map
            .read(self.parts.blocks.checked_add(at)?, to)?;
        match is_whole {
            true => Some(Files::new()),
            false => self.between(self.small_file_list(), block, block),
        }
    }

    fn is_whole(&self, block: u32) -> Option<bool> {
        let word = (block / u64::BITS) as usize * size_of::<u64>();
        let word = self
            .published
            .map
            .load(self.parts.whole.checked_add(word)?)?;
        Some(word >> (block % u64::BITS) & 1 == 1)
    }

    /// Returns the files with data in the blocks `first..=last`; `None` if the plan is corrupt.
    pub(super) fn with_data(&self, first: u32, last: u32) -> Option<Files> {
        if first >= self.parts.header.data_blocks {
            return Some(Files::new());
        }
        let list = (self.parts.with_data, self.parts.header.with_data);
        let after = self.partition(list, |block| block <= first)?;
        self.records(list, after.checked_sub(1)?, last)
    }

    fn small_file_list(&self) -> (usize, u32) {
        (self.parts.small_files, self.parts.header.small_files)
    }

    /// Returns all small files, in the order of the disk.
    pub(super) fn small_files(&self) -> Option<Files> {
        self.between(self.small_file_list(), 0, u32::MAX)
    }

    /// Returns the contents of all small files, one after the other. All blocks must be finished.
    pub(super) fn small_contents(&self) -> Option<Vec<u8>> {
        let mut contents = Vec::new();
        for file in self.small_files()? {
            let in_blocks = (file.block as usize).checked_mul(BLOCK_LEN_USIZE)?;
            let at = self.parts.blocks.checked_add(in_blocks)? + usize::from(file.offset);
            let start = contents.len();
            contents.resize(start + usize::try_from(file.size_bytes).ok()?, 0);
            self.published.map.read(at, &mut contents[start..])?;
        }
        Some(contents)
    }

    /// Returns the records of a list for the blocks `first..=last`.
    fn between(&self, list: (usize, u32), first: u32, last: u32) -> Option<Files> {
        let index = self.partition(list, |block| block < first)?;
        self.records(list, index, last)
    }

    /// Returns the records of a list from number `index` to the last one of block `last`.
    fn records(&self, list: (usize, u32), mut index: u32, last: u32) -> Option<Files> {
        let mut files = Files::new();
        while index < list.1 {
            let file: FileRecord = self.published.record(list.0, list.1, index)?;
            if file.block > last {
                break;
            }
            files.push(file);
            index += 1;
        }
        Some(files)
    }

    /// Returns the partition point of a list, which is sorted by blocks, like `slice::partition_point`.
    fn partition(&self, list: (usize, u32), is_first: impl Fn(u32) -> bool) -> Option<u32> {
        let (mut low, mut high) = (0, list.1);
        while low < high {
            let middle = low + (high - low) / 2;
            match is_first(self.block_of(list, middle)?) {
                true => low = middle + 1,
                false => high = middle,
            }
        }
        Some(low)
    }

    /// Returns the block of record `index` of a list. Every read of file data searches a list, so this copies nothing else.
    fn block_of(&self, list: (usize, u32), index: u32) -> Option<u32> {
        let in_list = (index as usize).checked_mul(size_of::<FileRecord>())?;
        let in_record = std::mem::offset_of!(FileRecord, block);
        let at = list.0.checked_add(in_list)?.checked_add(in_record)?;
        let mut block = [0; size_of::<u32>()];
        self.published.map.read(at, &mut block)?;
        Some(u32::from_ne_bytes(block))
    }

    /// Returns the path of a file in the store path `root`.
    pub(super) fn path(&self, root: &[u8], file: &FileRecord) -> Option<Vec<u8>> {
        if file.dir == TOP {
            return Some(root.to_vec());
        }
        let mut parts = vec![self.name(file.name, file.name_len.into())?];
        let mut dir = file.dir;
        while dir != 0 {
            let count = self.parts.header.dirs;
            let here: DirRecord = self.published.record(self.parts.dirs, count, dir)?;
            parts.push(self.name(here.name, here.name_len)?);
            dir = Some(here.parent).filter(|parent| *parent < dir)?;
        }
        parts.push(root.to_vec());
        parts.reverse();
        Some(parts.join(&b'/'))
    }

    /// Returns the target of a symlink with data blocks, or `Some(None)` for a file.
    pub(super) fn target(&self, file: &FileRecord) -> Option<Option<Vec<u8>>> {
        if file.is_symlink == 0 {
            return Some(None);
        }
        let start = file.name.checked_add(file.name_len.into())?;
        let target = self.name(start, u32::try_from(file.size_bytes).ok()?)?;
        Some(Some(target))
    }

    fn name(&self, start: u32, len: u32) -> Option<Vec<u8>> {
        let end = u64::from(start) + u64::from(len);
        (end <= self.parts.header.name_bytes).then_some(())?;
        let mut bytes = vec![0; usize::try_from(len).ok()?];
        let at = self.parts.names.checked_add(usize::try_from(start).ok()?)?;
        self.published.map.read(at, &mut bytes)?;
        Some(bytes)
    }
}

impl FileRecord {
    /// Returns the attributes that must not have changed.
    pub(super) fn stamp(&self) -> Stamp {
        Stamp {
            size_bytes: self.size_bytes,
            mtime_sec: self.mtime_sec,
            mtime_nsec: self.mtime_nsec,
        }
    }
}
