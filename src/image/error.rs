use std::path::{Path, PathBuf};

use crate::closure::{ClosureError, listed};
use crate::erofs::layout::LayoutError;
use crate::erofs::layout::space::TooBig;
use crate::source::{Awaits, DestinationError, SourceError};

/// Why a range of the disk cannot be read.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ReadError {
    /// The range is not inside the disk.
    #[error("read of {len_bytes} bytes at {offset} is outside the disk of {disk_len_bytes} bytes")]
    OutOfRange {
        /// First byte asked for.
        offset: u64,
        /// How many bytes were asked for.
        len_bytes: u64,
        /// Length of the disk.
        disk_len_bytes: u64,
    },
    /// The path's source cannot give what the plan says.
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
    /// A path is not what it was when it was served before.
    #[error("{}: other files, or of other sizes or mtimes, than were served before", path.display())]
    Replaced {
        /// The store path, on the host.
        path: PathBuf,
    },
}

impl ReadError {
    /// What on the host is at fault, if anything is.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::OutOfRange { .. } => None,
            Self::Source(error) => error.path(),
            Self::Layout { path, .. } | Self::Replaced { path } => Some(path),
        }
    }

    /// What has to be waited for, if that is all that is wrong.
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

/// Why there is no disk.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The closure is of no use.
    #[error(transparent)]
    Closure(#[from] ClosureError),
    /// The store cannot be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A path had to be planned and could not be.
    #[error(transparent)]
    Plan(#[from] ReadError),
    /// There is no room.
    #[error(transparent)]
    TooBig(#[from] TooBig),
    /// A path has the name of the directory for the registration.
    #[error(
        "the registration cannot be put on the disk: the closure has a path named .lazystore itself"
    )]
    BuiltinName,
    /// Paths of the closure are missing.
    #[error(
        "{} of the closure's paths {} not exist: {} (realise {them} with `nix-store --realise`, or leave {them} out of the list)",
        paths.len(),
        if paths.len() == 1 { "does" } else { "do" },
        listed(paths),
        them = if paths.len() == 1 { "it" } else { "them" },
    )]
    Missing {
        /// Logical store paths, all of them.
        paths: Vec<String>,
    },
}
