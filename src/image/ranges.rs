//! Ranges of the disk with file data.

use super::plans::Need;
use super::{Image, ReadError};
use crate::erofs::format::BLOCK_LEN_BYTES;
use crate::erofs::layout::plan::Plan;
use crate::source::IoMode;
use crate::tree::FileKind;

/// First data block of a run, and its exclusive end.
type Run = (u32, u64);

impl Image {
    /// Plans all paths and calls `sink` with the offset and the length of each run of blocks with data of regular
    /// files, in the order of the disk. Opens no files.
    ///
    /// # Errors
    /// A path cannot be planned.
    pub fn file_ranges(&self, sink: &mut dyn FnMut(u64, u64)) -> Result<(), ReadError> {
        for (region, here) in (0..).zip(self.space().regions()) {
            if here.data.is_empty() {
                continue;
            }
            // All runs are known only after the whole path is planned.
            let runs = self.with_plan(IoMode::Blocking, region, Need::All, runs)?;
            for (first, end) in runs {
                let start = u64::from(here.data.start) + u64::from(first);
                let blocks = end - u64::from(first);
                sink(start * BLOCK_LEN_BYTES, blocks * BLOCK_LEN_BYTES);
            }
        }
        Ok(())
    }
}

/// Returns the runs of a plan. Adjacent files are merged into one run.
fn runs(plan: &Plan) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for &(start, index) in plan.data_from(0) {
        let node = plan.node(index);
        if node.kind() != FileKind::Regular {
            continue;
        }
        let end = u64::from(start) + plan.data_blocks_of(node);
        match runs.last_mut() {
            Some(last) if last.1 == u64::from(start) => last.1 = end,
            _ => runs.push((start, end)),
        }
    }
    runs
}
