//! Errors of serving the disk as a file.

use std::io;
use std::path::PathBuf;

/// Why the disk cannot be served as a file.
#[derive(Debug, thiserror::Error)]
pub enum FuseError {
    /// Another process serves a mount there.
    #[error("{} is in use by another process: stop it or choose another path", dir.display())]
    InUse {
        /// The directory.
        dir: PathBuf,
    },
    /// The mount point does not exist or is not a directory.
    #[error("{} is not a directory: create it or choose another one", dir.display())]
    NotADirectory {
        /// The mount point.
        dir: PathBuf,
    },
    /// The kernel has no FUSE, or this process may not use it.
    #[error(
        "cannot open /dev/fuse ({source}): load the kernel's module with `modprobe fuse`, or give a container the device"
    )]
    NoDevice {
        /// The kernel's error.
        source: io::Error,
    },
    /// fusermount3 is missing, which users other than root need to mount.
    #[error("fusermount3, which mounts for users that are not root, is missing: install fuse3")]
    NoFusermount,
    /// The file cannot be mounted.
    #[error("cannot mount on {}: {source}", dir.display())]
    Mount {
        /// The directory.
        dir: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
    /// Requests of the kernel cannot be answered any more.
    #[error("cannot answer the kernel's FUSE requests: {0}")]
    Serve(io::Error),
    /// A thread that answers requests panicked; it has printed why.
    #[error("a FUSE thread panicked")]
    Panicked,
}
