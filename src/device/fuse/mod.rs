//! The disk as a file in a FUSE mount.
//!
//! | module | what it does |
//! |---|---|
//! | `file` | the file system: one directory with one file |
//! | `session` | the worker's side: mount, then answer the kernel until the end |
//! | `mountpoint` | the parent's side: stale and live mounts, detaching |
//! | `readers` | who has the file open, and what they have read |
//! | `error` | why the disk cannot be served as a file |

mod error;
mod file;
mod mountpoint;
mod readers;
mod session;

use std::num::NonZeroUsize;
use std::path::PathBuf;

pub use error::FuseError;
pub use mountpoint::{MountPoint, clear_mount};
pub use readers::{Change, Readers};
pub use session::{End, Mounted, Serving, check_device};

/// What mounts of this program are called in the mount table.
const SOURCE: &str = "lazystore";

/// How to serve a disk as a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FuseOptions {
    /// Where to mount; an existing directory.
    pub dir: PathBuf,
    /// Name of the file in it.
    pub image_name: String,
    /// Users other than the one who mounts may read the file.
    pub allow_other: bool,
    /// Threads that answer reads.
    pub threads: NonZeroUsize,
}

impl FuseOptions {
    /// The file.
    pub fn image_path(&self) -> PathBuf {
        self.dir.join(&self.image_name)
    }
}
