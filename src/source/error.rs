use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::io::Errno;

use super::DestinationError;

/// What a call would have to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Awaits {
    /// Data of an open file, which the kernel has started to read.
    Data,
    /// A plan, a directory, or a small file. Nothing is being read yet.
    Lookup,
    /// A fetch from a binary cache, which has been started.
    Fetch,
}

/// Why a source fails.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SourceError {
    /// A system call failed.
    #[error("{}: cannot {action}: {errno}", path.display())]
    Io {
        /// The path.
        path: PathBuf,
        /// What was attempted, as a verb.
        action: &'static str,
        /// The kernel's error.
        errno: Errno,
    },
    /// The call would wait for something that its [`IoMode`](super::IoMode) excludes.
    #[error("the data is not in memory yet")]
    WouldBlock(Awaits),
    /// The file has changed since it was planned.
    #[error("{}: its type, size or mtime changed while it was served", path.display())]
    Changed {
        /// The path.
        path: PathBuf,
    },
    /// The directory could not be listed when it was planned.
    #[error("{}: could not be listed", path.display())]
    Unlisted {
        /// The path.
        path: PathBuf,
    },
    /// The store path was replaced after the server started.
    #[error("{}: replaced while it was served (restart lazystore to serve its current contents)", path.display())]
    Replaced {
        /// The path.
        path: PathBuf,
    },
    /// The store path cannot be fetched.
    #[error("{}: {reason}", path.display())]
    Fetch {
        /// The store path.
        path: PathBuf,
        /// The reason, as a sentence.
        reason: Arc<str>,
    },
    /// The fetched NAR does not match the listing that the path was planned with.
    #[error(
        "{}: the listing of a binary cache contradicts the NAR, so nothing of the path is served (lazystore cache prune removes the fetched files)",
        path.display()
    )]
    Contradicted {
        /// The store path.
        path: PathBuf,
    },
    /// The destination could not be written.
    #[error(transparent)]
    Destination(#[from] DestinationError),
    /// The file ended early.
    #[error("{}: shorter than when it was planned", path.display())]
    Shrank {
        /// The path.
        path: PathBuf,
    },
}

impl SourceError {
    /// Returns the path at fault.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Io { path, .. }
            | Self::Changed { path }
            | Self::Replaced { path }
            | Self::Unlisted { path }
            | Self::Fetch { path, .. }
            | Self::Contradicted { path }
            | Self::Shrank { path } => Some(path),
            Self::WouldBlock(_) | Self::Destination(_) => None,
        }
    }

    /// Returns whether access is denied: for lack of permission, or because another file system is mounted there.
    pub fn is_forbidden(&self) -> bool {
        matches!(
            self,
            Self::Io {
                errno: Errno::ACCESS | Errno::PERM | Errno::XDEV,
                ..
            }
        )
    }

    /// Returns whether the path no longer has the file that was planned.
    pub fn contradicts_plan(&self) -> bool {
        match self {
            Self::Changed { .. } => true,
            Self::Io { errno, .. } => matches!(*errno, Errno::NOENT | Errno::NOTDIR | Errno::LOOP),
            _ => false,
        }
    }

    /// Returns whether the path does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(
            self,
            Self::Io {
                errno: Errno::NOENT | Errno::NOTDIR,
                ..
            }
        )
    }
}
