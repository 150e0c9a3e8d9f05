use std::path::{Path, PathBuf};

use crate::closure::{ClosureError, listed};
use crate::erofs::layout::LayoutError;
use crate::erofs::layout::space::TooBig;
use crate::source::{Awaits, DestinationError, SourceError};

/// Why reading the disk fails.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ReadError {
    /// The range is beyond the end of the disk.
    #[error("read of {len_bytes} bytes at {offset} is outside the disk of {disk_len_bytes} bytes")]
    OutOfRange {
        /// Start of the range.
        offset: u64,
        /// Length of the range.
        len_bytes: u64,
        /// Length of the disk.
        disk_len_bytes: u64,
    },
    /// The path's source fails.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A path cannot be laid out.
    #[error("{}: {source}", path.display())]
    Layout {
        /// The store path, on the host.
        path: PathBuf,
        /// What is wrong with it.
        source: LayoutError,
    },
    /// A path is not what was registered.
    #[error(
        "{}: its files make a NAR of {found} bytes, and {registered} are registered: they or the registration are wrong",
        path.display(),
    )]
    NarSize {
        /// The store path, on the host.
        path: PathBuf,
        /// The length that its NAR should have.
        registered: u64,
        /// The length that it would have.
        found: u64,
    },
    /// What was published of a path makes no sense.
    #[error("{}: the plan that all processes share is damaged", path.display())]
    Damaged {
        /// The store path, on the host.
        path: PathBuf,
    },
    /// A path has changed since it was served before.
    #[error("{}: other files, or of other sizes or mtimes, than were served before", path.display())]
    Replaced {
        /// The store path, on the host.
        path: PathBuf,
    },
}

impl ReadError {
    /// The path at fault, if any.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::OutOfRange { .. } => None,
            Self::Source(error) => error.path(),
            Self::Layout { path, .. }
            | Self::NarSize { path, .. }
            | Self::Damaged { path }
            | Self::Replaced { path } => Some(path),
        }
    }

    /// Whether it stays so until something is done about the path on the host: another try may succeed then.
    pub(super) fn lasts(&self) -> bool {
        match self {
            Self::Layout { .. }
            | Self::NarSize { .. }
            | Self::Damaged { .. }
            | Self::Replaced { .. } => true,
            Self::Source(error) => matches!(
                error,
                SourceError::Replaced { .. } | SourceError::Contradicted { .. }
            ),
            Self::OutOfRange { .. } => false,
        }
    }

    /// What the read would have to wait for, if that is why it failed.
    pub fn would_block(&self) -> Option<Awaits> {
        match self {
            Self::Source(SourceError::WouldBlock(awaits)) => Some(*awaits),
            _ => None,
        }
    }
}

impl From<DestinationError> for ReadError {
    fn from(error: DestinationError) -> Self {
        SourceError::from(error).into()
    }
}

/// Why a disk cannot be laid out.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The closure cannot be loaded.
    #[error(transparent)]
    Closure(#[from] ClosureError),
    /// The store cannot be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A path cannot be planned.
    #[error(transparent)]
    Plan(#[from] ReadError),
    /// The closure does not fit on a disk.
    #[error(transparent)]
    TooBig(#[from] TooBig),
    /// A path has the same name as the directory for the registration.
    #[error(
        "the registration cannot be put on the disk: the closure has a path named .lazystore itself"
    )]
    BuiltinName,
    /// Paths of the closure do not exist.
    #[error(
        "{} of the closure's paths {} not exist: {} (realise {them} with `nix-store --realise`, or leave {them} out of the list)",
        paths.len(),
        if paths.len() == 1 { "does" } else { "do" },
        listed(paths),
        them = if paths.len() == 1 { "it" } else { "them" },
    )]
    Missing {
        /// All missing logical store paths.
        paths: Vec<String>,
    },
}
