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
    /// A path does not match its registration.
    #[error(
        "{}: its files make a NAR of {found} bytes, but {registered} are registered: the files or the registration are wrong",
        path.display(),
    )]
    NarSize {
        /// The store path, on the host.
        path: PathBuf,
        /// The registered length of its NAR.
        registered: u64,
        /// The length of the NAR of its files.
        found: u64,
    },
    /// The published plan of a path is malformed.
    #[error("{}: the plan shared by all processes is corrupt", path.display())]
    Damaged {
        /// The store path, on the host.
        path: PathBuf,
    },
    /// A path has changed since it was planned before.
    #[error("{}: its files, their sizes or mtimes have changed since they were served before", path.display())]
    Replaced {
        /// The store path, on the host.
        path: PathBuf,
    },
}

impl ReadError {
    /// Returns the path at fault, if any.
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

    /// Returns whether the error persists until the path on the host is repaired; a retry may then succeed.
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
    #[error("cannot put the registration on the disk: the closure has a path named .lazystore")]
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
