//! Plans that outlive a server: the results of walking store paths, and the contents of their small files, in a directory of the
//! user.
//!
//! The file of a plan contains the tree of a path (names, types, sizes, executable bits, targets, and the mtimes that files must have when
//! they are opened) but no addresses. So files stay usable with a new layout or other options of the disk, and every tree is
//! laid out by the same code as a walked one. The small files of a path are in a second file, which is read only with the plan for
//! which it was written. It exists if a VM has read a small file of the path.
//!
//! - `tree`: encodes and decodes the tree of a plan.
//! - `format`: the files: the path's identity, the tree or the contents, a checksum.
//! - `dir`: the directory: reads, replaces and removes files.
//! - `keeper`: decides when.
//!
//! Only the planner process uses the directory. It trusts a file if the checksum is right, the name, NAR hash, inode number and
//! ctime of the path's top node match, and the NAR of the tree has the registered length. It ignores any other file, and
//! replaces it after walking the path.

mod dir;
mod error;
mod format;
mod keeper;
#[cfg(test)]
mod tests;
mod tree;

use super::walk::{self, layout_error};
use super::{Image, PathOrigin};
use crate::erofs::layout::plan::Plan;

pub use dir::PlanDir;
pub use error::PlanDirError;
use error::Unusable;
pub(super) use format::KeptKind;
use format::{Checksum, Label};
pub(super) use keeper::PlanKeeper;

impl Image {
    /// Returns the label that a region's kept plan must have. `None` if no plan is kept: without a registered hash a plan
    /// cannot be matched to the path, and plans of fetched paths are kept with the fetched files.
    fn label(&self, region: u32) -> Option<Label> {
        if !self.is_of_host(region) {
            return None;
        }
        let PathOrigin {
            nar_hash, identity, ..
        } = &self.origins[region as usize];
        let name = &self.space().region(region).name;
        Label::new(name, nar_hash.as_ref()?, identity.as_ref()?.mark()?)
    }

    /// Decodes the plan of a region from a file. Also returns the file's checksum.
    fn kept_plan(
        &self,
        region: u32,
        label: &Label,
        file: &[u8],
    ) -> Result<(Plan, Checksum), Unusable> {
        let tree = self.tree(region);
        let (packed, checksum) = format::open(KeptKind::Plan, label, file)?;
        let limits = self.space().region(region).limits();
        let planner = tree::unpack(packed, tree.name, self.plans.attributes(), limits);
        let plan = planner.map_err(|error| match error {
            tree::DecodeError::Malformed => Unusable::Malformed,
            tree::DecodeError::Layout(source) => Unusable::Path(layout_error(&tree, source)),
        })?;
        walk::check_nar_size(&tree, &plan, self.origins[region as usize].nar_size)?;
        // The label belongs to the path as it was when the disk was created.
        tree.check().map_err(super::ReadError::from)?;
        Ok((plan, checksum))
    }
}
