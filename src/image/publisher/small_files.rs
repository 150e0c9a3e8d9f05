//! Publishes the contents of small files, which are in blocks of metadata.

use super::{PublishState, Publisher, SmallFileProgress, block_at, is_set, set};
use crate::erofs::format::BLOCK_LEN_USIZE;
use crate::image::Image;
use crate::image::kept::KeptKind;
use crate::image::published::{PublishedPath, TableEntry, Wish};
use crate::source::IoMode;

/// Number of blocks whose small files are read before the requests are checked again.
const BLOCKS_AT_ONCE: u32 = 64;

impl Publisher {
    /// Inserts the small files of some paths that an earlier server kept, before a VM requests them.
    pub(super) fn insert_some_kept(&mut self, image: &Image) -> bool {
        let regions = self.next_kept(KeptKind::SmallFiles, image);
        for region in regions.clone() {
            self.insert_kept(image, region);
        }
        !regions.is_empty()
    }

    /// Inserts the small files of a path, if they were kept. The path is done then.
    fn insert_kept(&mut self, image: &Image, region: u32) {
        let state = &self.states[region as usize];
        let (PublishState::Published(progress), Some(keeper)) = (state, &mut self.keeper) else {
            return;
        };
        if progress.parts.header.small_files == 0 {
            return;
        }
        let contents = keeper.load_small_files(image, region);
        let inserted = contents.and_then(|contents| {
            let path = published_path(image, region)?;
            self.insert(&path, progress, &contents)
        });
        if inserted.is_some() {
            self.states[region as usize] = PublishState::Done;
        }
    }

    /// Inserts `contents`, those of all small files. Returns `None`, and changes nothing, if the lengths differ.
    fn insert(
        &self,
        path: &PublishedPath,
        progress: &SmallFileProgress,
        contents: &[u8],
    ) -> Option<()> {
        let files = path.small_files()?;
        let mut parts = Vec::with_capacity(files.len());
        let mut rest = contents;
        for file in &files {
            let (part, after) = rest.split_at_checked(usize::try_from(file.size_bytes).ok()?)?;
            let at = block_at(&progress.parts, file.block) + usize::from(file.offset);
            parts.push((at, part));
            rest = after;
        }
        rest.is_empty().then_some(())?;
        for (at, part) in parts {
            self.map.write(at, part)?;
        }
        let words = (0..progress.whole.len()).map(|word| word * size_of::<u64>());
        for word in words {
            self.map.store(progress.parts.whole + word, u64::MAX)?;
        }
        Some(())
    }

    /// Reads some of the small files that were requested.
    pub(super) fn read_some_small_files(&mut self, image: &Image) -> bool {
        let unread = self.regions().find(|(region, state)| {
            matches!(state, PublishState::Published(_))
                && self.requests.has(*region, Wish::SmallFiles)
        });
        let Some((region, state)) = unread else {
            return false;
        };
        if matches!(state, PublishState::Published(progress) if progress.next == 0) {
            self.insert_kept(image, region);
        }
        let state = std::mem::replace(&mut self.states[region as usize], PublishState::Done);
        if let PublishState::Published(progress) = state {
            self.states[region as usize] = self.read_small_files(image, region, progress);
        }
        true
    }

    /// Inserts the contents of some of a path's small files. Files that cannot be read are left to their readers.
    fn read_small_files(
        &mut self,
        image: &Image,
        region: u32,
        mut progress: Box<SmallFileProgress>,
    ) -> PublishState {
        let all = progress.parts.header.meta_blocks;
        let end = progress.next.saturating_add(BLOCKS_AT_ONCE).min(all);
        for block in progress.next..end {
            let (word, is_whole) = (block / u64::BITS, is_set(&progress.whole, block));
            if is_whole {
                continue;
            }
            let mut bytes = [0; BLOCK_LEN_USIZE];
            let rendered = image.render_metadata(IoMode::Blocking, region, block, &mut bytes);
            if rendered.is_err() {
                continue;
            }
            set(&mut progress.whole, block);
            let at = progress.parts.whole + word as usize * size_of::<u64>();
            self.map.write(block_at(&progress.parts, block), &bytes);
            self.map.store(at, progress.whole[word as usize]);
        }
        progress.next = end;
        if end < all {
            return PublishState::Published(progress);
        }
        if (0..all).all(|block| is_set(&progress.whole, block)) {
            self.keep_small_files(image, region);
        }
        PublishState::Done
    }

    /// Keeps the contents of a path's small files, which have all been read, for later servers.
    fn keep_small_files(&mut self, image: &Image, region: u32) {
        let Some(keeper) = &mut self.keeper else {
            return;
        };
        let contents = published_path(image, region).and_then(|path| path.small_contents());
        if let Some(contents) = contents.filter(|contents| !contents.is_empty()) {
            keeper.save_small_files(image, region, &contents);
        }
    }
}

fn published_path(image: &Image, region: u32) -> Option<PublishedPath> {
    match image.plans.shared()?.find(region) {
        TableEntry::Path(path) => Some(path),
        TableEntry::None | TableEntry::Suspect => None,
    }
}
