//! The disk, as this device needs it: the only place here that knows the image.

use std::ffi::OsStr;
use std::sync::Arc;

use crate::image::{Image, Piece, ReadError, Seek};
use crate::source::IoMode;

/// More descriptors are not told of at once: finding them out may take planning as many paths.
const EXTENTS_MAX: usize = 128;

/// Longest extent that a descriptor can tell of, in whole blocks.
const EXTENT_MAX_BYTES: u64 = 0xffff_f000;

/// Zeros to compare with.
static ZEROS: [u8; 4096] = [0; 4096];

/// What can be read.
#[derive(Debug, Clone)]
pub struct Disk(Arc<Image>);

/// A part of a range that is read.
pub enum Part<'a, 'p> {
    /// Bytes that have to be copied, or read.
    Bytes(Source<'a, 'p>),
    /// So many zeros.
    Zeros(usize),
}

/// Where bytes come from.
pub struct Source<'a, 'p> {
    piece: &'p Piece<'a>,
    mode: IoMode,
}

/// Neighbouring bytes of which the same can be said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// How many; never zero.
    pub len_bytes: u32,
    /// They belong to nothing, and are zeros.
    pub is_hole: bool,
}

impl Disk {
    /// The disk of `image`.
    pub fn new(image: Arc<Image>) -> Self {
        Self(image)
    }

    /// Calls `sink` with what makes up `offset..offset + len_bytes`, in order and without gaps.
    ///
    /// # Errors
    /// What the image or `sink` says; all that was handed out must then be discarded.
    pub fn visit(
        &self,
        mode: IoMode,
        offset: u64,
        len_bytes: u32,
        sink: &mut dyn FnMut(Part<'_, '_>) -> Result<(), ReadError>,
    ) -> Result<(), ReadError> {
        self.0
            .visit_with(mode, offset, len_bytes.into(), &mut |piece| {
                if is_zero(&piece) {
                    return sink(Part::Zeros(piece.len_bytes()));
                }
                let piece = &piece;
                sink(Part::Bytes(Source { piece, mode }))
            })
    }

    /// What lies at `offset` and after it, up to `len_bytes` or a little more or less; with `one` a single extent that
    /// does not go beyond. At least one, if the range is on the disk and not empty.
    pub fn extents(&self, offset: u64, len_bytes: u32, one: bool) -> Vec<Extent> {
        let end = offset.saturating_add(len_bytes.into());
        let (mut at, mut extents) = (offset, Vec::new());
        while at < end && extents.len() < EXTENTS_MAX {
            let is_hole = self.0.seek(at, Seek::Hole) == Some(at);
            let other = if is_hole { Seek::Data } else { Seek::Hole };
            let next = self.0.seek(at, other).unwrap_or(self.0.len_bytes());
            let next = if one { next.min(end) } else { next };
            let len_bytes = (next - at).min(EXTENT_MAX_BYTES);
            let Ok(len_bytes @ 1..) = u32::try_from(len_bytes) else {
                break;
            };
            extents.push(Extent { len_bytes, is_hole });
            at += u64::from(len_bytes);
            if one {
                break;
            }
        }
        extents
    }

    /// How often the planning of a path was begun.
    pub fn plans_begun(&self) -> u64 {
        self.0.plans_begun()
    }

    /// The path of the closure that `error` is about.
    pub fn culprit<'e>(&self, error: &'e ReadError) -> Option<&'e OsStr> {
        self.0.culprit(error)
    }
}

impl Source<'_, '_> {
    /// How many bytes there are.
    pub fn len_bytes(&self) -> usize {
        self.piece.len_bytes()
    }

    /// Fills `into`, which is as long.
    ///
    /// # Errors
    /// When the host's file cannot be read, or must be waited for.
    pub fn read_into(&self, into: &mut [u8]) -> Result<(), ReadError> {
        match self.piece {
            Piece::Metadata(bytes) => into.copy_from_slice(bytes),
            Piece::Zeros { .. } => into.fill(0),
            Piece::File { file, offset, .. } => {
                let len_bytes = into.len() as u64;
                file.read_into(&mut into.into(), *offset, len_bytes, self.mode)?;
            }
        }
        Ok(())
    }
}

/// Ranges of paths are bounds: much metadata that is made consists of zeros.
fn is_zero(piece: &Piece<'_>) -> bool {
    match piece {
        Piece::Zeros { .. } => true,
        Piece::Metadata(bytes) => ZEROS.get(..bytes.len()) == Some(bytes),
        Piece::File { .. } => false,
    }
}
