//! Finds data and holes of the disk, for lseek(2).
//!
//! The address space is mostly empty, and a program that copies the disk must be able to skip holes. The ranges of
//! paths are upper bounds and much larger than their contents, so seeking plans a path completely.

use super::{Image, ReadError};
use crate::erofs::format::BLOCK_LEN_BYTES;
use crate::erofs::layout::space::Area;

/// What to find.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seek {
    /// A block that is in use, even if it contains zeros.
    Data,
    /// An unused block of zeros. The end of the disk counts as a hole.
    Hole,
}

/// Contiguous blocks of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stretch {
    kind: Seek,
    /// Exclusive end; the next block may be of the other kind.
    end: u32,
}

impl Image {
    /// Returns the first offset at or after `offset` that is of the wanted kind, or `None` if there is none.
    ///
    /// Also `None` if `offset` is beyond the end of the disk. A path that cannot be planned counts as data, so that
    /// copying it fails instead of producing zeros.
    pub fn seek(&self, offset: u64, wanted: Seek) -> Option<u64> {
        let len_bytes = self.len_bytes();
        let mut at = offset;
        while at < len_bytes {
            let block = u32::try_from(at / BLOCK_LEN_BYTES).unwrap_or(u32::MAX);
            let stretch = self.stretch(block);
            if stretch.kind == wanted {
                return Some(at);
            }
            at = u64::from(stretch.end) * BLOCK_LEN_BYTES;
        }
        (wanted == Seek::Hole && offset < len_bytes).then_some(len_bytes)
    }

    /// Returns the stretch that starts at `block`.
    fn stretch(&self, block: u32) -> Stretch {
        match self.space().area(block) {
            Area::Superblock => data_until(block + 1),
            Area::Root(_) => {
                let space = self.space();
                let first = space.regions().first();
                data_until(first.map_or(space.data_start(), |region| region.meta.start))
            }
            Area::Unused { end } => hole_until(end),
            Area::Meta { region, .. } => {
                let meta = &self.space().region(region).meta;
                let used = self.usage(region).map(|usage| usage.meta_blocks);
                part(block, meta, used)
            }
            Area::Data { region, .. } => {
                let data = &self.space().region(region).data;
                let used = self.usage(region).map(|usage| usage.data_blocks);
                part(block, data, used)
            }
        }
    }
}

/// Returns the stretch that starts at `block` in `range`, of which the first `used` blocks are in use.
fn part(block: u32, range: &std::ops::Range<u32>, used: Result<u32, ReadError>) -> Stretch {
    let used = used.unwrap_or(u32::MAX);
    let end = range.start.saturating_add(used).min(range.end);
    if block < end {
        data_until(end)
    } else {
        hole_until(range.end)
    }
}

fn data_until(end: u32) -> Stretch {
    let kind = Seek::Data;
    Stretch { kind, end }
}

fn hole_until(end: u32) -> Stretch {
    let kind = Seek::Hole;
    Stretch { kind, end }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::testing::{store_image, tree_image};
    use super::*;
    use crate::erofs::layout::space::DATA_ARENA_START;
    use crate::image::ImageOptions;

    fn store() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, len) in [("a", 10_000), ("b", 1), ("c", 4096)] {
            fs::write(dir.path().join(name), vec![7; len]).unwrap();
        }
        dir
    }

    /// Returns all data ranges, found by alternately seeking data and holes.
    fn data_ranges(image: &Image) -> Vec<(u64, u64)> {
        let mut ranges = Vec::new();
        let mut at = 0;
        while let Some(start) = image.seek(at, Seek::Data) {
            at = image.seek(start, Seek::Hole).unwrap();
            assert!(at > start);
            ranges.push((start, at));
        }
        ranges
    }

    #[test]
    fn a_disk_of_16_tib_has_little_data_and_zeros_elsewhere() {
        let dir = store();
        let image = tree_image(dir.path());
        let ranges = data_ranges(&image);
        let bytes: u64 = ranges.iter().map(|(start, end)| end - start).sum();
        assert!(ranges.len() < 4 && bytes < 100_000, "{ranges:?}");
        for (_, end) in ranges
            .into_iter()
            .filter(|(_, end)| *end < image.len_bytes())
        {
            let mut block = [1; 4096];
            image.read_exact_at(&mut block, end).unwrap();
            assert!(block.iter().all(|byte| *byte == 0));
        }
    }

    #[test]
    fn blocks_that_are_not_zero_are_data() {
        let dir = store();
        let image = store_image(dir.path(), &ImageOptions::default());
        let data_start = u64::from(DATA_ARENA_START) * BLOCK_LEN_BYTES;
        for offset in (0..40).chain(data_start / 4096..image.len_bytes() / 4096) {
            let mut block = [0; 4096];
            image.read_exact_at(&mut block, offset * 4096).unwrap();
            if block.iter().any(|byte| *byte != 0) {
                assert_eq!(image.seek(offset * 4096, Seek::Data), Some(offset * 4096));
            }
        }
    }

    #[test]
    fn the_end_is_a_hole_and_nothing_follows_it() {
        let dir = store();
        let image = store_image(dir.path(), &ImageOptions::default());
        let len = image.len_bytes();
        assert_eq!(image.seek(len, Seek::Data), None);
        assert_eq!(image.seek(len, Seek::Hole), None);
        assert_eq!(image.seek(u64::MAX, Seek::Hole), None);
        assert!(image.seek(len - 1, Seek::Hole).is_some());
    }

    #[test]
    fn a_path_that_cannot_be_planned_is_data() {
        let dir = store();
        fs::create_dir(dir.path().join("d")).unwrap();
        let image = tree_image(dir.path());
        fs::remove_dir(dir.path().join("d")).unwrap();
        let data_start = u64::from(DATA_ARENA_START) * BLOCK_LEN_BYTES;
        image.read_exact_at(&mut [0; 512], 4096).unwrap();
        assert_eq!(image.seek(data_start, Seek::Data), Some(data_start));
    }
}
