//! Records when, how often and which blocks of each path were read.
//!
//! It is in memory shared between a worker and its parent, so it survives a crash of the worker. It needs no locks:
//! there is one bit per block, and four numbers per path.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use zerocopy::FromZeros;

use crate::erofs::format::BLOCK_LEN_BYTES;
use crate::erofs::layout::space::{Area, DATA_ARENA_START, Space};
use crate::process::{ProcessError, Shared};

/// Number of data blocks that are recorded: 1 TiB. It limits the memory that a guest can make the host use to 36 MiB.
const DATA_BLOCKS_MAX: u32 = 1 << 28;

/// Blocks per word.
const BITS: u32 = 64;

/// Indexes of the marks: superblock, root directory, then all regions.
const SUPERBLOCK: usize = 0;
const ROOT: usize = 1;
const REGIONS: usize = 2;

/// Reads of one part of the disk. Times are in nanoseconds since the start; 0 means never.
#[derive(Debug, FromZeros)]
#[repr(C)]
struct ReadTimes {
    first: AtomicU64,
    last: AtomicU64,
    reads: AtomicU64,
    waits: AtomicU64,
}

/// Reads of a disk.
#[derive(Debug)]
pub struct Footprint {
    start: Instant,
    /// The reader whose reads are recorded; 0: none yet.
    reader: Shared<AtomicU64>,
    marks: Shared<ReadTimes>,
    /// One bit per block.
    blocks: Shared<AtomicU64>,
}

/// Reads of one path.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Touched {
    /// Times of the first and the last read since the start; `None`: never.
    pub when: Option<(Duration, Duration)>,
    /// Number of reads that included a part of it.
    pub reads: u64,
    /// Number of reads that waited for the host's disk.
    pub waits: u64,
    /// Bytes of metadata read, counting each block once.
    pub meta_bytes: u64,
    /// Bytes of file contents read, counting each block once.
    pub data_bytes: u64,
}

impl Footprint {
    /// Creates an empty footprint. Times are relative to `start`.
    ///
    /// # Errors
    /// There is no memory left.
    pub fn new(space: &Space, start: Instant) -> Result<Self, ProcessError> {
        let blocks = u32::try_from(space.len_bytes() / BLOCK_LEN_BYTES).unwrap_or(u32::MAX);
        let words = blocks
            .min(DATA_ARENA_START + DATA_BLOCKS_MAX)
            .div_ceil(BITS);
        Ok(Self {
            start,
            reader: Shared::new(1)?,
            marks: Shared::new(REGIONS + space.regions().len())?,
            blocks: Shared::new(words as usize)?,
        })
    }

    /// Records a read by `reader`, which must not be zero. The first reader of more than the superblock becomes the one
    /// whose reads are recorded.
    pub(super) fn note(&self, reader: u64, space: &Space, bytes: Range<u64>) {
        let only_superblock = bytes.end <= BLOCK_LEN_BYTES;
        if !self.is_by(reader, only_superblock) {
            return;
        }
        let now = self.now();
        let block = |bytes: u64| u32::try_from(bytes / BLOCK_LEN_BYTES).unwrap_or(u32::MAX);
        let mut blocks = block(bytes.start)..block(bytes.end.next_multiple_of(BLOCK_LEN_BYTES));
        while !blocks.is_empty() {
            let (mark, end) = part(space, blocks.start);
            let end = end.min(blocks.end).max(blocks.start + 1);
            if let Some(mark) = mark.and_then(|mark| self.marks.get(mark)) {
                mark.note(now);
                self.set(blocks.start..end);
            }
            blocks.start = end;
        }
    }

    /// Records that a read at `offset` has to wait for the host's disk.
    pub(super) fn note_wait(&self, reader: u64, space: &Space, offset: u64) {
        if !self.is_by(reader, false) {
            return;
        }
        let block = u32::try_from(offset / BLOCK_LEN_BYTES).unwrap_or(u32::MAX);
        if let Some(mark) = part(space, block).0.and_then(|mark| self.marks.get(mark)) {
            mark.waits.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Returns the reader whose reads are recorded, if any.
    pub fn reader(&self) -> Option<u64> {
        let reader = self.reader.first()?.load(Ordering::Relaxed);
        (reader > 0).then_some(reader)
    }

    /// Lets the next reader continue the footprint.
    pub fn give_to_next(&self) {
        if let Some(current) = self.reader.first() {
            current.store(0, Ordering::Relaxed);
        }
    }

    fn is_by(&self, reader: u64, or_nobody: bool) -> bool {
        let Some(current) = self.reader.first() else {
            return false;
        };
        match current.load(Ordering::Relaxed) {
            0 if or_nobody => true,
            0 => current
                .compare_exchange(0, reader, Ordering::Relaxed, Ordering::Relaxed)
                .map_or_else(|other| other == reader, |_| true),
            other => other == reader,
        }
    }

    /// Returns the time of the first read of the superblock.
    pub fn superblock(&self) -> Option<Duration> {
        self.marks.get(SUPERBLOCK)?.when().map(|(first, _)| first)
    }

    /// Returns the time of the first read of the root directory, which only happens when the disk is mounted.
    pub fn root(&self) -> Option<Duration> {
        self.marks.get(ROOT)?.when().map(|(first, _)| first)
    }

    /// Returns the times of the first and the last read of anything.
    pub fn all(&self) -> Option<(Duration, Duration)> {
        let all = self.marks.iter().filter_map(ReadTimes::when);
        all.reduce(|(first, last), (other_first, other_last)| {
            (first.min(other_first), last.max(other_last))
        })
    }

    /// Returns the reads of each path, in the order of the disk's regions.
    pub fn paths(&self, space: &Space) -> Vec<Touched> {
        let marks = self.marks.iter().skip(REGIONS);
        let touched =
            |(mark, region): (&ReadTimes, &crate::erofs::layout::space::Region)| Touched {
                when: mark.when(),
                reads: mark.reads.load(Ordering::Relaxed),
                waits: mark.waits.load(Ordering::Relaxed),
                meta_bytes: self.count(region.meta.clone()) * BLOCK_LEN_BYTES,
                data_bytes: self.count(region.data.clone()) * BLOCK_LEN_BYTES,
            };
        marks.zip(space.regions()).map(touched).collect()
    }

    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).map_or(u64::MAX, |now| now.max(1))
    }

    fn set(&self, blocks: Range<u32>) {
        for (index, mask) in words(blocks) {
            // Write only if a bit changes: most blocks have been read before.
            if let Some(word) = self.blocks.get(index)
                && word.load(Ordering::Relaxed) & mask != mask
            {
                word.fetch_or(mask, Ordering::Relaxed);
            }
        }
    }

    fn count(&self, blocks: Range<u32>) -> u64 {
        let count = |(index, mask): (usize, u64)| {
            let word = self.blocks.get(index)?.load(Ordering::Relaxed);
            Some(u64::from((word & mask).count_ones()))
        };
        words(blocks).map_while(count).sum()
    }
}

impl ReadTimes {
    fn note(&self, now: u64) {
        if self.first.load(Ordering::Relaxed) == 0 {
            // An error is ignored: another thread has set it.
            let _ = self
                .first
                .compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed);
        }
        self.last.fetch_max(now, Ordering::Relaxed);
        self.reads.fetch_add(1, Ordering::Relaxed);
    }

    fn when(&self) -> Option<(Duration, Duration)> {
        let first = self.first.load(Ordering::Relaxed);
        let last = self.last.load(Ordering::Relaxed).max(first);
        (first > 0).then(|| (Duration::from_nanos(first), Duration::from_nanos(last)))
    }
}

/// Returns the index of the mark of the part that `block` belongs to, and the exclusive end of that part.
fn part(space: &Space, block: u32) -> (Option<usize>, u32) {
    let of = |region: u32| REGIONS + region as usize;
    match space.area(block) {
        Area::Superblock => (Some(SUPERBLOCK), block + 1),
        Area::Root(_) => (Some(ROOT), block + 1),
        Area::Meta { region, .. } => (Some(of(region)), space.region(region).meta.end),
        Area::Data { region, .. } => (Some(of(region)), space.region(region).data.end),
        Area::Unused { end } => (None, end),
    }
}

/// Returns the indexes of the words with bits of `blocks`, and the masks of these bits.
fn words(blocks: Range<u32>) -> impl Iterator<Item = (usize, u64)> {
    let Range { start, end } = blocks;
    let words = start / BITS..end.div_ceil(BITS);
    words.map(move |word| {
        let first = start.saturating_sub(word * BITS);
        let after = (end - word * BITS).min(BITS);
        let low = |bits: u32| u64::MAX.checked_shr(BITS - bits).unwrap_or(0);
        (word as usize, low(after) & !low(first))
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::super::ImageOptions;
    use super::super::testing::store_image;
    use super::*;

    #[test]
    fn reads_are_recorded_for_their_path() {
        let store = tempfile::tempdir().unwrap();
        fs::create_dir(store.path().join("a")).unwrap();
        fs::write(store.path().join("a/file"), vec![1; 10 * 4096]).unwrap();
        fs::write(store.path().join("b"), vec![2; 3 * 4096]).unwrap();
        let image = store_image(store.path(), &ImageOptions::default());
        let footprint = Arc::new(Footprint::new(image.space(), Instant::now()).unwrap());
        image.note_in(Arc::clone(&footprint), 7);
        let read = |block: u32, blocks: usize| {
            let mut buffer = vec![0; blocks * 4096];
            let offset = u64::from(block) * BLOCK_LEN_BYTES;
            image.read_exact_at(&mut buffer, offset).unwrap();
        };
        let paths = || footprint.paths(image.space());
        assert_eq!(footprint.all(), None);
        read(0, 1);
        assert!(footprint.superblock().is_some() && footprint.root().is_none());
        assert_eq!(footprint.reader(), None);
        read(1, 1);
        assert!(footprint.root() > footprint.superblock());
        assert_eq!(paths(), [Touched::default(); 2]);
        let [a, b] = [image.space().region(0), image.space().region(1)];
        read(a.meta.start, 1);
        read(a.data.start + 1, 2);
        read(a.data.start + 1, 3);
        let [of_a, of_b] = paths()[..] else { panic!() };
        assert_eq!(
            (of_a.reads, of_a.meta_bytes, of_a.data_bytes),
            (3, 4096, 3 * 4096)
        );
        assert_eq!(of_b, Touched::default());
        let all = footprint.all().unwrap();
        assert_eq!(Some(all.0), footprint.superblock());
        assert_eq!(of_a.when.unwrap().1, all.1);
        // A read that spans both paths.
        let between = usize::try_from(b.data.start - a.data.start).unwrap();
        read(a.data.start, between + 1);
        assert_eq!(paths()[1].data_bytes, 4096);
        assert_eq!(footprint.reader(), Some(7));
        let before = footprint.all();
        assert!(image.read_exact_at(&mut [0], image.len_bytes()).is_err());
        assert_eq!(footprint.all(), before, "nothing was read");
        // Other readers are not recorded until give_to_next() is called.
        footprint.note(8, image.space(), 0..1 << 13);
        assert_eq!(footprint.all(), before);
        footprint.give_to_next();
        footprint.note(8, image.space(), 0..1 << 13);
        assert!(footprint.all() > before && footprint.reader() == Some(8));
    }

    proptest! {
        #[test]
        fn each_block_has_its_bit(start in 0..300_u32, len in 0..300_u32) {
            let set: Vec<u32> = words(start..start + len)
                .flat_map(|(word, mask)| {
                    let word = u32::try_from(word).unwrap();
                    (0..BITS).filter(move |bit| mask >> bit & 1 == 1).map(move |bit| word * BITS + bit)
                })
                .collect();
            prop_assert_eq!(set, (start..start + len).collect::<Vec<_>>());
        }
    }
}
