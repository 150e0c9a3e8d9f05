//! Reads recorded ranges into the host's page cache before the guest does.

use std::collections::HashMap;

use super::recording::{Recording, RegionPart, Touch};
use super::{Image, Piece, ReadError};
use crate::erofs::format::BLOCK_LEN_BYTES;
use crate::parallel;

/// Number of threads. Each mostly waits for one file or directory; more would exceed the queue depth of disks.
const THREADS: usize = 16;

/// The result of prefetching.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Prefetched {
    /// Number of paths of the recording that are on this disk.
    pub known_paths: usize,
    /// Number of paths of the recording.
    pub paths: usize,
    /// Number of touches that could not be read although their paths are on this disk.
    pub failed: usize,
}

impl Image {
    /// Prefetches the ranges of `recording`: first metadata, which is needed to find file contents, then file contents.
    /// Paths that are not on this disk are skipped, and ranges beyond the end of a path are truncated.
    ///
    /// Waits for metadata, but only starts readahead of file contents.
    pub fn prefetch(&self, recording: &Recording) -> Prefetched {
        let index: HashMap<&[u8], u32> = (0..)
            .zip(self.space().regions())
            .map(|(region, here)| (&*here.name, region))
            .collect();
        let regions: Vec<Option<u32>> = recording
            .paths
            .iter()
            .map(|name| index.get(&**name).copied())
            .collect();
        let failed = [RegionPart::Meta, RegionPart::Data]
            .map(|part| self.prefetch_part(&regions, &recording.touches, part));
        Prefetched {
            known_paths: regions.iter().flatten().count(),
            paths: regions.len(),
            failed: failed.iter().sum(),
        }
    }

    /// Returns the number of touches that failed.
    fn prefetch_part(&self, regions: &[Option<u32>], touches: &[Touch], part: RegionPart) -> usize {
        let wanted = |touch: &&Touch| touch.part == part;
        let touches: Vec<&Touch> = touches.iter().filter(wanted).collect();
        let read = |(): &mut (), at: usize| {
            let region = regions.get(touches[at].path).copied().flatten();
            region
                .map_or(Ok(()), |region| self.prefetch_touch(region, touches[at]))
                .inspect_err(|error| tracing::debug!("not read in advance: {error}"))
                .is_err()
        };
        let failed = parallel::for_each_on(THREADS, touches.len(), || (), read);
        failed.into_iter().filter(|failed| *failed).count()
    }

    fn prefetch_touch(&self, region: u32, touch: &Touch) -> Result<(), ReadError> {
        let range = touch.part.range(self.space().region(region));
        let block = |count: u32| range.start.saturating_add(count).min(range.end);
        let (start, end) = (block(touch.blocks.start), block(touch.blocks.end));
        let len_bytes = u64::from(end - start) * BLOCK_LEN_BYTES;
        let offset = u64::from(start) * BLOCK_LEN_BYTES;
        self.visit(offset, len_bytes, &mut |piece| match piece {
            Piece::File {
                file,
                offset,
                len_bytes,
            } => Ok(file.read_ahead(offset, len_bytes as u64)?),
            Piece::Metadata(_) | Piece::Zeros { .. } => Ok(()),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::ImageOptions;
    use super::super::testing::store_image;
    use super::*;

    #[test]
    fn absent_paths_and_blocks_are_skipped() {
        let store = tempfile::tempdir().unwrap();
        fs::write(store.path().join("b"), vec![1; 20_000]).unwrap();
        let image = store_image(store.path(), &ImageOptions::default());
        let text = "lazystore recording 1\n+ a\n+ b\nd 0 0 9\nd 1 0 2\nd 1 3 4000000000\nd 1 4294967294 1\nm 1 0 70\n";
        let recording = Recording::parse(text.as_bytes()).unwrap();
        let wanted = Prefetched {
            known_paths: 1,
            paths: 2,
            failed: 0,
        };
        assert_eq!(image.prefetch(&recording), wanted);
        fs::remove_file(store.path().join("b")).unwrap();
        let fresh = Prefetched {
            failed: 0,
            ..wanted
        };
        assert_eq!(image.prefetch(&recording), fresh, "the file is still open");
    }
}
