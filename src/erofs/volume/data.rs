//! Splits a range of a path's data into files and zeros.

use std::ops::Range;

use crate::erofs::format::BLOCK_LEN_BYTES;
use crate::erofs::layout::plan::{NodeIndex, Plan};

/// A part of a path's data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DataPart {
    /// A part of a file or of a symlink target.
    Node {
        /// The file or symlink.
        node: NodeIndex,
        /// The byte range in it; never empty.
        range: Range<u64>,
    },
    /// This number of zeros; at least one.
    Zeros(u64),
}

/// Calls `sink` with the parts of byte range `wanted` of a path's data, in order and without gaps. The planner must
/// cover the range.
///
/// # Errors
/// The first error of `sink`.
pub fn data_parts<E>(
    plan: &Plan,
    wanted: Range<u64>,
    sink: &mut dyn FnMut(DataPart) -> Result<(), E>,
) -> Result<(), E> {
    let Range { start: mut at, end } = wanted;
    let first = u32::try_from(at / BLOCK_LEN_BYTES).unwrap_or(u32::MAX);
    let nodes = plan.data_position(first).map(|p| plan.data_from(p));
    for &(block, index) in nodes.unwrap_or_default() {
        let node = plan.node(index);
        let from = u64::from(block) * BLOCK_LEN_BYTES;
        if from >= end {
            break;
        }
        let stop = (from + node.size_bytes()).min(end);
        if at < stop {
            sink(DataPart::Node {
                node: index,
                range: at - from..stop - from,
            })?;
            at = stop;
        }
        let padded = (from + plan.data_blocks_of(node) * BLOCK_LEN_BYTES).min(end);
        if at < padded {
            sink(DataPart::Zeros(padded - at))?;
            at = padded;
        }
    }
    if at < end {
        sink(DataPart::Zeros(end - at))?;
    }
    Ok(())
}
