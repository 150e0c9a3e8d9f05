//! Why the disk cannot be served as a file.

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
    /// There is no such directory to mount on.
    #[error("{} is not a directory: create it or choose another one", dir.display())]
    NotADirectory {
        /// What was asked for.
        dir: PathBuf,
    },
    /// The kernel has no FUSE, or this process may not use it.
    #[error(
        "cannot open /dev/fuse ({source}): load the kernel's module with `modprobe fuse`, or give a container the device"
    )]
    NoDevice {
        /// What the kernel said.
        source: io::Error,
    },
    /// Only root can do without this program.
    #[error("fusermount3, which mounts for users that are not root, is missing: install fuse3")]
    NoFusermount,
    /// The file cannot be mounted.
    #[error("cannot mount on {}: {source}", dir.display())]
    Mount {
        /// The directory.
        dir: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel's requests cannot be answered any more.
    #[error("cannot answer the kernel's FUSE requests: {0}")]
    Serve(io::Error),
    /// A thread that answers them panicked; it has said why.
    #[error("a FUSE thread panicked")]
    Panicked,
}
