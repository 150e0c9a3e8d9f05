//! Reads and extents of an image. No other NBD module reads the image.

use std::ffi::OsStr;
use std::sync::Arc;

use crate::image::{Image, Piece, ReadError, Seek};
use crate::source::IoMode;

/// Maximum number of extents in a reply. Each of them may require planning a path.
const EXTENTS_MAX: usize = 128;

/// Maximum length of an extent: whole blocks, 32 bits on the wire.
const EXTENT_MAX_BYTES: u64 = 0xffff_f000;

/// Zeros to compare with.
static ZEROS: [u8; 4096] = [0; 4096];

/// A disk that is exported.
#[derive(Debug, Clone)]
pub struct NbdDisk(Arc<Image>);

/// A part of the range of a read.
pub enum ReadPart<'a, 'p> {
    /// Bytes to be copied from memory or read from a file.
    Bytes(ByteSource<'a, 'p>),
    /// This number of zeros.
    Zeros(usize),
}

/// Bytes of the disk, in memory or in a file.
pub struct ByteSource<'a, 'p> {
    piece: &'p Piece<'a>,
    mode: IoMode,
}

/// A range that is entirely a hole or entirely data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AllocationExtent {
    /// Length; never zero.
    pub len_bytes: u32,
    /// It belongs to nothing on the disk and reads as zeros.
    pub is_hole: bool,
}

impl NbdDisk {
    /// The disk of `image`.
    pub fn new(image: Arc<Image>) -> Self {
        Self(image)
    }

    /// Calls `sink` with the parts of `offset..offset + len_bytes`, in order and without gaps.
    ///
    /// # Errors
    /// Errors of the image or of `sink`. The parts delivered so far must then be discarded.
    pub fn visit(
        &self,
        mode: IoMode,
        offset: u64,
        len_bytes: u32,
        sink: &mut dyn FnMut(ReadPart<'_, '_>) -> Result<(), ReadError>,
    ) -> Result<(), ReadError> {
        self.0
            .visit_with(mode, offset, len_bytes.into(), &mut |piece| {
                if is_zero(&piece) {
                    return sink(ReadPart::Zeros(piece.len_bytes()));
                }
                let piece = &piece;
                sink(ReadPart::Bytes(ByteSource { piece, mode }))
            })
    }

    /// The extents from `offset` on. They may cover less than `len_bytes` (there are at most `EXTENTS_MAX`) or more.
    /// With `one_extent`: a single extent that ends within the range (`NBD_CMD_FLAG_REQ_ONE`). Returns at least one extent if
    /// the range is on the disk and not empty.
    pub fn extents(&self, offset: u64, len_bytes: u32, one_extent: bool) -> Vec<AllocationExtent> {
        let end = offset.saturating_add(len_bytes.into());
        let (mut at, mut extents) = (offset, Vec::new());
        while at < end && extents.len() < EXTENTS_MAX {
            let is_hole = self.0.seek(at, Seek::Hole) == Some(at);
            let other = if is_hole { Seek::Data } else { Seek::Hole };
            let next = self.0.seek(at, other).unwrap_or(self.0.len_bytes());
            let next = if one_extent { next.min(end) } else { next };
            let len_bytes = (next - at).min(EXTENT_MAX_BYTES);
            let Ok(len_bytes @ 1..) = u32::try_from(len_bytes) else {
                break;
            };
            extents.push(AllocationExtent { len_bytes, is_hole });
            at += u64::from(len_bytes);
            if one_extent {
                break;
            }
        }
        extents
    }

    /// Number of paths whose planning was started.
    pub fn plans_begun(&self) -> u64 {
        self.0.plans_begun()
    }

    /// The path of the closure that `error` is about.
    pub fn culprit<'e>(&self, error: &'e ReadError) -> Option<&'e OsStr> {
        self.0.culprit(error)
    }
}

impl ByteSource<'_, '_> {
    /// Number of bytes.
    pub fn len_bytes(&self) -> usize {
        self.piece.len_bytes()
    }

    /// Writes the bytes to `into`, which must have that length.
    ///
    /// # Errors
    /// The host's file cannot be read, or not without blocking.
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

/// The metadata range of a path is an upper bound, so many of its blocks are zeros.
fn is_zero(piece: &Piece<'_>) -> bool {
    match piece {
        Piece::Zeros { .. } => true,
        Piece::Metadata(bytes) => ZEROS.get(..bytes.len()) == Some(bytes),
        Piece::File { .. } => false,
    }
}
