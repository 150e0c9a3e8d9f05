//! Splits a range of a path's data into files and zeros.

use std::ops::Range;

use crate::erofs::format::BLOCK_LEN_BYTES;
use crate::erofs::layout::plan::{NodeIndex, Plan};

/// A file with data blocks of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placed<F> {
    /// The file.
    pub file: F,
    /// Its first data block.
    pub block: u32,
    /// Its length.
    pub size_bytes: u64,
}

/// A part of a path's data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DataPart<F> {
    /// A part of a file or of a symlink target.
    File {
        /// Which file.
        file: F,
        /// The byte range in it; never empty.
        range: Range<u64>,
    },
    /// This number of zeros; at least one.
    Zeros(u64),
}

/// Returns the files of a plan with data blocks, in order, starting with the one that block `first` belongs to.
pub fn placed_from(plan: &Plan, first: u32) -> impl Iterator<Item = Placed<NodeIndex>> {
    let nodes = plan.data_position(first).map(|p| plan.data_from(p));
    let nodes = nodes.unwrap_or_default().iter();
    nodes.map(|&(block, file)| Placed {
        file,
        block,
        size_bytes: plan.node(file).size_bytes(),
    })
}

/// Calls `sink` with the parts of the byte range `wanted` of a path's data, in order and without gaps. `placed` are the files
/// in that range, in order.
///
/// # Errors
/// The first error of `sink`.
pub fn data_parts<F, E>(
    placed: impl Iterator<Item = Placed<F>>,
    wanted: Range<u64>,
    sink: &mut dyn FnMut(DataPart<F>) -> Result<(), E>,
) -> Result<(), E> {
    let Range { start: mut at, end } = wanted;
    for Placed {
        file,
        block,
        size_bytes,
    } in placed
    {
        let from = u64::from(block) * BLOCK_LEN_BYTES;
        if from >= end {
            break;
        }
        if at < from {
            sink(DataPart::Zeros(from - at))?;
            at = from;
        }
        let stop = from.saturating_add(size_bytes).min(end);
        if at < stop {
            let range = at - from..stop - from;
            sink(DataPart::File { file, range })?;
            at = stop;
        }
        let blocks = size_bytes.div_ceil(BLOCK_LEN_BYTES);
        let padded = from.saturating_add(blocks.saturating_mul(BLOCK_LEN_BYTES));
        let padded = padded.min(end);
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
