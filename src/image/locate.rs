//! Locates addresses of the disk. Plans paths as far as needed for that.

use super::plans::Need;
use super::{Image, ReadError};
use crate::erofs::format::BLOCK_LEN_BYTES;
use crate::erofs::layout::space::Area;
use crate::erofs::volume::{Spot, in_superblock, nid_offset};
use crate::source::IoMode;

/// How much of its ranges a path uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Metadata blocks.
    pub meta_blocks: u32,
    /// Data blocks.
    pub data_blocks: u32,
    /// Files of all types.
    pub files: usize,
}

impl Image {
    /// What is at byte `at`.
    ///
    /// # Errors
    /// `at` is beyond the end of the disk, or the path there cannot be planned.
    pub fn locate(&self, at: u64) -> Result<Spot, ReadError> {
        self.checked_end(at, 1)?;
        let block = u32::try_from(at / BLOCK_LEN_BYTES).unwrap_or(u32::MAX);
        match self.space().area(block) {
            Area::Meta { region, block } => {
                self.with_plan(IoMode::Blocking, region, Need::Meta(block), |plan| {
                    self.volume.placed(region, plan).in_meta(block, at)
                })
            }
            Area::Data { region, block } => {
                self.with_plan(IoMode::Blocking, region, Need::Data(block), |plan| {
                    self.volume.placed(region, plan).in_data(block, at)
                })
            }
            Area::Superblock => Ok(in_superblock(at)),
            Area::Root(block) => Ok(self.volume.locate_in_root(block, at)),
            Area::Unused { end } => Ok(self.volume.locate_unused(block, end)),
        }
    }

    /// What is at the address of the inode `nid`. `nid` is valid only if the place is an inode and starts at
    /// [`nid_offset`].
    ///
    /// # Errors
    /// As for [`Image::locate`]; a nid beyond the end of the disk is out of range.
    pub fn locate_nid(&self, nid: u64) -> Result<Spot, ReadError> {
        self.locate(nid_offset(nid))
    }

    /// Returns how much of its ranges the path of region `region` uses. Plans the whole path.
    ///
    /// # Errors
    /// The path cannot be planned.
    pub fn usage(&self, region: u32) -> Result<Usage, ReadError> {
        if let Some(path) = self.published(IoMode::Blocking, region)? {
            let header = path.header();
            return Ok(Usage {
                meta_blocks: header.meta_blocks,
                data_blocks: header.data_blocks,
                files: header.files as usize,
            });
        }
        self.with_plan(IoMode::Blocking, region, Need::All, |plan| Usage {
            meta_blocks: plan.meta_blocks(),
            data_blocks: plan.data_blocks(),
            files: plan.len(),
        })
    }
}

#[cfg(test)]
mod tests;
