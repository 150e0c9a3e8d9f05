//! Reading by plans that another process has published, and having one publish them.

use std::ops::Range;
use std::sync::Arc;

use super::data::{Extent, Extents, collect_extents};
use super::published::{FileRecord, Published, PublishedPath, Requests, Wish, table_bytes};
use super::publisher::Publisher;
use super::{Image, ReadError};
use crate::erofs::encode::Block;
use crate::erofs::format::{BLOCK_LEN_BYTES, BLOCK_LEN_USIZE};
use crate::erofs::volume::Placed;
use crate::process::{ProcessError, sealed};
use crate::source::{File, FileId, IoMode, SourceError, TreeSource};

/// What one process publishes for all may take so many times the memory of one process' own plans: the bytes of small files
/// are in it.
const PUBLISHED_PER_PLAN_CACHE: usize = 2;

/// Files, and where in a block their bytes belong.
type FileRanges = Vec<(File, Range<usize>)>;

impl Image {
    /// Makes the memory that one process publishes plans in, for this process and those that are forked later. The
    /// [`Publisher`] is for that one process, and must be dropped in this one before there are others.
    ///
    /// Called again, after that process has died, it makes new memory; those that have the old one keep it.
    ///
    /// # Errors
    /// When the kernel has no such memory.
    pub fn share_plans(&self) -> Result<Publisher, ProcessError> {
        let paths = self.space().regions().len();
        let limit_bytes = self
            .plan_cache_bytes()
            .saturating_mul(PUBLISHED_PER_PLAN_CACHE);
        let (write, read) = sealed(table_bytes(paths).saturating_add(limit_bytes))?;
        // What was asked for before is asked for again.
        let requests = match self.plans.shared() {
            Some(before) => Arc::clone(before.requests()),
            None => Arc::new(Requests::new(paths)?),
        };
        self.plans
            .share(Published::new(read, Arc::clone(&requests)).into());
        Ok(Publisher::new(write, requests, paths))
    }

    /// Whether a region is read from this host's store: only that stays what it is, and needs nobody else.
    pub(super) fn is_of_host(&self, region: u32) -> bool {
        let source = self.origins[region as usize].source;
        !self.is_tree() && matches!(self.sources[source], TreeSource::Host(_))
    }

    fn damaged(&self, region: u32) -> ReadError {
        ReadError::Damaged {
            path: self.tree(region).display_path(),
        }
    }

    /// Puts a published metadata block into `out`; returns the files whose bytes are to be added.
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

    /// What a range of a published path's data consists of.
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
        // Nothing is a file that has no path: what is opened then is a directory, and an error.
        let host_path = || path.path(tree.name, file).unwrap_or_default();
        let opened = tree.open(id, file.stamp(), mode, host_path);
        opened.inspect_err(|error| {
            if error.contradicts_plan() {
                path.ask(region, Wish::Removal);
            }
        })
    }
}
