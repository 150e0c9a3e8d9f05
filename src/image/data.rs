//! Splits a range of a path's data into pieces.

use std::ops::Range;

use smallvec::SmallVec;

use super::plans::Need;
use super::{Cursor, Image, Piece, ReadError};
use crate::erofs::format::BLOCK_LEN_BYTES;
use crate::erofs::layout::plan::{NodeIndex, Plan};
use crate::erofs::volume::{DataPart, Placed, data_parts, placed_from};
use crate::source::{File, IoMode, SourceError};
use crate::tree::FileKind;

impl Image {
    /// Visits data starting at block `block` of a region, up to the end of the region or of the range.
    pub(super) fn visit_data(
        &self,
        mode: IoMode,
        region: u32,
        block: u32,
        cursor: &mut Cursor,
        sink: &mut dyn FnMut(Piece<'_>) -> Result<(), ReadError>,
    ) -> Result<(), ReadError> {
        let here = self.space().region(region);
        let len = cursor.left_before(u64::from(here.data.end));
        let last = cursor.offset + len - 1;
        let last_block =
            u32::try_from(last / BLOCK_LEN_BYTES).unwrap_or(u32::MAX) - here.data.start;
        let start = u64::from(block) * BLOCK_LEN_BYTES + cursor.in_block() as u64;
        let wanted = start..start + len;
        let extents = match self.published(mode, region)? {
            Some(path) => self.published_extents(path, mode, region, wanted)?,
            None => self.with_plan(mode, region, Need::Data(last_block), |plan| {
                self.extents(plan, mode, region, wanted)
            })??,
        };
        for extent in extents {
            emit_extent(extent, cursor, sink)?;
        }
        Ok(())
    }

    /// Returns the extents of a range of a region's data.
    fn extents(
        &self,
        plan: &Plan,
        mode: IoMode,
        region: u32,
        wanted: Range<u64>,
    ) -> Result<Extents, SourceError> {
        let first = u32::try_from(wanted.start / BLOCK_LEN_BYTES).unwrap_or(u32::MAX);
        let placed = placed_from(plan, first);
        collect_extents(placed, wanted, |node, range| {
            self.extent(plan, mode, region, node, range)
        })
    }

    fn extent(
        &self,
        plan: &Plan,
        mode: IoMode,
        region: u32,
        index: NodeIndex,
        range: Range<u64>,
    ) -> Result<Extent, SourceError> {
        let node = plan.node(index);
        let (offset, len) = (range.start, range.end - range.start);
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        if node.kind() == FileKind::Symlink {
            let start = usize::try_from(offset).unwrap_or(usize::MAX);
            let target = &plan.target(node)[start..start + len];
            return Ok(Extent::Bytes(target.into()));
        }
        let file = self.open(plan, mode, region, index)?;
        Ok(Extent::File { file, offset, len })
    }
}

/// A piece that no longer borrows the plan.
pub(super) enum Extent {
    Bytes(Box<[u8]>),
    File { file: File, offset: u64, len: usize },
    Zeros(u64),
}

/// A block has at most two pieces; longer reads may have more.
pub(super) type Extents = SmallVec<[Extent; 2]>;

/// Returns the extents of the range `wanted` of a path's data. `of_file` converts each part of a file.
pub(super) fn collect_extents<F, E>(
    placed: impl Iterator<Item = Placed<F>>,
    wanted: Range<u64>,
    of_file: impl Fn(F, Range<u64>) -> Result<Extent, E>,
) -> Result<Extents, E> {
    let mut extents = Extents::new();
    data_parts(placed, wanted, &mut |part| {
        extents.push(match part {
            DataPart::Zeros(len_bytes) => Extent::Zeros(len_bytes),
            DataPart::File { file, range } => of_file(file, range)?,
        });
        Ok(())
    })?;
    Ok(extents)
}

fn emit_extent(
    extent: Extent,
    cursor: &mut Cursor,
    sink: &mut dyn FnMut(Piece<'_>) -> Result<(), ReadError>,
) -> Result<(), ReadError> {
    let mut emit = |piece: Piece<'_>| {
        cursor.offset += piece.len_bytes() as u64;
        sink(piece)
    };
    match extent {
        Extent::Zeros(len) => emit_zeros(cursor, len, sink),
        Extent::Bytes(bytes) => emit(Piece::Metadata(&bytes)),
        // Moved, not cloned: threads that read the same file would contend for its reference count.
        Extent::File { file, offset, len } => emit(Piece::File {
            file,
            offset,
            len_bytes: len,
        }),
    }
}

pub(super) fn emit_zeros(
    cursor: &mut Cursor,
    len: u64,
    sink: &mut dyn FnMut(Piece<'_>) -> Result<(), ReadError>,
) -> Result<(), ReadError> {
    cursor.offset += len;
    let len_bytes = usize::try_from(len).unwrap_or(usize::MAX);
    sink(Piece::Zeros { len_bytes })
}
