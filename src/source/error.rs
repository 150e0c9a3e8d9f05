use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::io::Errno;

use super::DestinationError;

/// What is not in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Awaits {
    /// Bytes of a file that is open. The kernel has been asked for them, and reads them meanwhile.
    Data,
    /// A plan, a name, a small file: nothing is being read meanwhile.
    Lookup,
    /// What is not on this host. It has been asked for.
    Fetch,
}

/// Why a source cannot give what was asked for.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SourceError {
    /// The host refused.
    #[error("{}: cannot {action}: {errno}", path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// What was tried, as a verb.
        action: &'static str,
        /// What the host said.
        errno: Errno,
    },
    /// It is not in memory, and the caller must not wait.
    #[error("a disk or the network has to be waited for")]
    WouldBlock(Awaits),
    /// The file is not the one that was planned.
    #[error("{}: its type, size or mtime changed while it was served", path.display())]
    Changed {
        /// Where.
        path: PathBuf,
    },
    /// A directory that could not be listed when it was planned.
    #[error("{}: could not be listed", path.display())]
    Unlisted {
        /// Where.
        path: PathBuf,
    },
    /// The store path is not the one that was there at the start.
    #[error("{}: replaced while it was served (restart lazystore to serve what lies there now)", path.display())]
    Replaced {
        /// Where.
        path: PathBuf,
    },
    /// It is not on this host, and cannot be fetched.
    #[error("{}: {reason}", path.display())]
    Fetch {
        /// The store path.
        path: PathBuf,
        /// In a sentence.
        reason: Arc<str>,
    },
    /// The NAR is not of the tree that the path was planned with.
    #[error(
        "{}: the listing that a binary cache gave for it contradicts its NAR, so nothing of it is served (lazystore cache prune removes what was fetched of it)",
        path.display()
    )]
    Contradicted {
        /// The store path.
        path: PathBuf,
    },
    /// The bytes could not be stored where they were wanted.
    #[error(transparent)]
    Destination(#[from] DestinationError),
    /// The file ended early.
    #[error("{}: shorter than when it was planned", path.display())]
    Shrank {
        /// Where.
        path: PathBuf,
    },
}

impl SourceError {
    /// Where, on the host.
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

    /// This process may not go there: for lack of rights, or because another file system is mounted there.
    pub fn is_forbidden(&self) -> bool {
        matches!(
            self,
            Self::Io {
                errno: Errno::ACCESS | Errno::PERM | Errno::XDEV,
                ..
            }
        )
    }

    /// Nothing lies there.
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
