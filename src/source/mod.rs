//! Where the trees of paths, and the bytes of their files, come from.

mod error;
mod host;

pub use error::SourceError;
pub use host::{FileKey, HostFile, HostTree, Identity, would_block};

/// Whether a call may wait for a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IoMode {
    /// What is not in memory is refused with [`SourceError::WouldBlock`].
    NoWait,
    /// As long as it takes.
    Blocking,
}
