//! Reads by published plans, and creates the memory for publishing.

use std::ops::Range;
use std::sync::Arc;

use super::data::{Extent, Extents, collect_extents};
use super::published::{
    FileRecord, Published, PublishedPath, PublishedPlans, Requests, Wish, table_bytes,
};
use super::publisher::Publisher;
use super::{Image, ReadError};
use crate::erofs::encode::Block;
use crate::erofs::format::{BLOCK_LEN_BYTES, BLOCK_LEN_USIZE};
use crate::erofs::volume::Placed;
use crate::process::{ProcessError, sealed};
use crate::source::{File, FileId, IoMode, SourceError, TreeSource};

/// Size of the memory for published plans, as a multiple of a process's own plan cache. Published plans include the contents of
/// small files.
const PUBLISHED_PER_PLAN_CACHE: usize = 2;

/// Files, and where in a block to insert their contents.
type FileRanges = Vec<(File, Range<usize>)>;

impl Image {
    /// Creates the memory for published plans, for this process and those forked later. The [`Publisher`] is for the planner
    /// process, and this process must drop it before it forks others.
    ///
    /// If the planner process has died, call this again to create new memory. Existing processes keep the old one.
    ///
    /// # Errors
    /// The kernel does not support such memory, or has none left.
    pub fn share_plans(&self) -> Result<Publisher, ProcessError> {
        let paths = self.space().regions().len();
        let limit_bytes = self
            .plan_cache_bytes()
            .saturating_mul(PUBLISHED_PER_PLAN_CACHE);
        let (write, read) = sealed(table_bytes(paths).saturating_add(limit_bytes))?;
        // Keep the requests, so that the new process publishes the same paths.
        let requests = match self.plans.shared() {
            Some(before) => Arc::clone(before.requests()),
            None => Arc::new(Requests::new(paths)?),
        };
        self.plans
            .share(Published::new(read, Arc::clone(&requests)).into());
        Ok(Publisher::new(write, requests, paths))
    }

    /// Counts the plans that are published at the moment.
    pub fn published_plans(&self) -> PublishedPlans {
        let paths = u32::try_from(self.space().regions().len()).unwrap_or(u32::MAX);
        let shared = self.plans.shared();
        shared.map_or_else(PublishedPlans::default, |shared| shared.count(paths))
    }

    /// Returns whether a region is read from this host's store. Others may change, or depend on the fetcher.
    pub(super) fn is_of_host(&self, region: u32) -> bool {
        let source = self.origins[region as usize].source;
        !self.is_tree() && matches!(self.sources[source], TreeSource::Host(_))
    }

    fn damaged(&self, region: u32) -> ReadError {
        ReadError::Damaged {
            path: self.tree(region).display_path(),
        }
    }

    /// Copies a published metadata block to `out`. Returns the files whose contents must be inserted.
    pub(super) fn published_block(
        &self,
        path: &PublishedPath,
        mode: IoMode,
        region: u32,
        block: u32,
        out: &mut Block,
    ) -> Result<FileRanges, ReadError> {
        let files = path.block(block, out).ok_or_else(|| self.damaged(region))?;
        if files.is_empty() {
            return Ok(Vec::new());
        }
        path.ask(region, Wish::SmallFiles);
        let opened = files.iter().map(|file| {
            let start = usize::from(file.offset);
            let len = usize::try_from(file.size_bytes).unwrap_or(usize::MAX);
            let end = start.checked_add(len).filter(|end| *end <= BLOCK_LEN_USIZE);
            let end = end.ok_or_else(|| self.damaged(region))?;
            Ok((self.open_published(path, mode, region, file)?, start..end))
        });
        opened.collect()
    }

    /// Returns the extents of a range of a published path's data.
    pub(super) fn published_extents(
        &self,
        path: &PublishedPath,
        mode: IoMode,
        region: u32,
        wanted: Range<u64>,
    ) -> Result<Extents, ReadError> {
        let block = |at: u64| u32::try_from(at / BLOCK_LEN_BYTES).unwrap_or(u32::MAX);
        let files = path.with_data(block(wanted.start), block(wanted.end - 1));
        let files = files.ok_or_else(|| self.damaged(region))?;
        let placed = files.iter().map(|file| Placed {
            file,
            block: file.block,
            size_bytes: file.size_bytes,
        });
        collect_extents(placed, wanted, |file, range| {
            self.published_extent(path, mode, region, file, range)
        })
    }

    fn published_extent(
        &self,
        path: &PublishedPath,
        mode: IoMode,
        region: u32,
        file: &FileRecord,
        range: Range<u64>,
    ) -> Result<Extent, ReadError> {
        let offset = range.start;
        let len = usize::try_from(range.end - offset).unwrap_or(usize::MAX);
        match path.target(file).ok_or_else(|| self.damaged(region))? {
            Some(target) => {
                let start = usize::try_from(offset).unwrap_or(usize::MAX);
                let part = start
                    .checked_add(len)
                    .and_then(|end| target.get(start..end));
                let part = part.ok_or_else(|| self.damaged(region))?;
                Ok(Extent::Bytes(part.into()))
            }
            None => {
                let file = self.open_published(path, mode, region, file)?;
                Ok(Extent::File { file, offset, len })
            }
        }
    }

    fn open_published(
        &self,
        path: &PublishedPath,
        mode: IoMode,
        region: u32,
        file: &FileRecord,
    ) -> Result<File, SourceError> {
        let id = FileId(u64::from(region) << 32 | u64::from(file.node));
        let tree = self.tree(region);
        // If the path is corrupt, an empty path is opened: a directory, which is an error.
        let host_path = || path.path(tree.name, file).unwrap_or_default();
        let opened = tree.open(id, file.stamp(), mode, host_path);
        opened.inspect_err(|error| {
            if error.contradicts_plan() {
                path.ask(region, Wish::Removal);
            }
        })
    }
}
