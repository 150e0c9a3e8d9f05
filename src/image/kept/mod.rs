//! Plans that outlive a server: what walking store paths has found, one file a path, in a directory of the user's.
//!
//! What is kept is a path's tree (names, types, sizes, executable bits, targets, and the mtimes that files must still have when
//! they are opened) and no addresses. So neither a new layout nor other options of a disk make a file useless, and whatever a
//! file says, it is laid out by the same rules as what a walk has found.
//!
//! - `tree`: the tree of a plan as bytes, and back.
//! - `format`: a file: which path it is of, the tree, a checksum.
//! - `dir`: the directory: reading, replacing and removing files.
//! - `keeper`: when that is done.
//!
//! Only the process that plans for all reads and writes there. It believes a file if its checksum is right, if it is of a
//! path with this name and NAR hash whose top node has this inode number and ctime, and if the NAR of its tree would be as
//! long as registered. Any other file is ignored, and replaced when the path has been walked.

mod dir;
mod error;
mod format;
mod keeper;
#[cfg(test)]
mod tests;
mod tree;

use super::walk::{self, layout_error};
use super::{Image, Origin};
use crate::erofs::layout::plan::Plan;

pub use dir::PlanDir;
pub use error::PlanDirError;
use error::Unusable;
use format::Label;
pub(super) use keeper::Keeper;

impl Image {
    /// What a kept plan of a region must say that it is of. None if nothing is kept of it: without a registered hash nobody can
    /// tell whether what was kept is what belongs there, and what comes from a binary cache is kept with its files.
    fn label(&self, region: u32) -> Option<Label> {
        if !self.is_of_host(region) {
            return None;
        }
        let Origin {
            nar_hash, identity, ..
        } = &self.origins[region as usize];
        let name = &self.space().region(region).name;
        Label::new(name, nar_hash.as_ref()?, identity.as_ref()?.mark()?)
    }

    /// The plan of a region that a file stands for.
    fn kept_plan(&self, region: u32, label: &Label, file: &[u8]) -> Result<Plan, Unusable> {
        let tree = self.tree(region);
        let packed = format::open(label, file)?;
        let limits = self.space().region(region).limits();
        let planner = tree::unpack(packed, tree.name, self.plans.attributes(), limits);
        let plan = planner.map_err(|error| match error {
            tree::Fault::Malformed => Unusable::Malformed,
            tree::Fault::Layout(source) => Unusable::Path(layout_error(&tree, source)),
        })?;
        walk::check_nar_size(&tree, &plan, self.origins[region as usize].nar_size)?;
        // The label is that of what lay there when the disk was made.
        tree.check().map_err(super::ReadError::from)?;
        Ok(plan)
    }
}
