//! A whole disk: superblock, root directory, and the address ranges of the paths.

mod data;
mod locate;
mod root;

pub use data::{DataPart, Placed, data_parts, placed_from};
pub use locate::{FileRef, Place, PlacedPlan, Spot, in_superblock, nid_offset};
pub use root::RootDir;

use super::encode::{self, Block, SuperBlockFields};
use super::format::{BLOCK_LEN_BYTES, BLOCK_LEN_USIZE};
use super::layout::plan::Plan;
use super::layout::space::{Area, Space};

/// A disk without the contents of its paths.
#[derive(Debug)]
pub struct Volume {
    space: Space,
    superblock: Box<Block>,
    /// `None` for a tree, whose root directory is the top node of its only region.
    root: Option<RootDir>,
}

impl Volume {
    /// Creates a volume. The numbers of inodes and blocks in `fields` are computed and overwritten.
    pub fn new(space: Space, root: Option<RootDir>, fields: SuperBlockFields) -> Self {
        let blocks = space.len_bytes() / BLOCK_LEN_BYTES;
        let superblock = encode::superblock(&SuperBlockFields {
            inodes: space.regions().len() as u64 + 1,
            blocks: u32::try_from(blocks).unwrap_or(u32::MAX),
            ..fields
        });
        Self {
            space,
            superblock: Box::new(superblock),
            root,
        }
    }

    /// Returns the address ranges.
    pub fn space(&self) -> &Space {
        &self.space
    }

    /// Returns whether the disk is one tree instead of a directory of store paths.
    pub fn is_tree(&self) -> bool {
        self.root.is_none()
    }

    /// Combines a plan of region `region` with its address ranges.
    pub fn placed<'a>(&'a self, region: u32, plan: &'a Plan) -> PlacedPlan<'a> {
        PlacedPlan {
            region: self.space.region(region),
            plan,
        }
    }

    /// Returns the bytes of a block outside the paths: superblock, root directory, unused.
    pub fn block(&self, area: Area) -> Block {
        match (area, &self.root) {
            (Area::Superblock, _) => *self.superblock,
            (Area::Root(block), Some(root)) => root.render(block, self.space.regions()),
            _ => [0; BLOCK_LEN_USIZE],
        }
    }
}
