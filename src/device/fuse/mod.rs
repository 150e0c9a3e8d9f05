//! The disk as a file in a FUSE mount.
//!
//! | module | what it does |
//! |---|---|
//! | `file` | the file system: one directory with one file |
//! | `session` | the worker's side: mount, then answer the kernel until the end |
//! | `mountpoint` | the parent's side: stale and live mounts, detaching |

mod file;
mod mountpoint;
mod session;

use std::num::NonZeroUsize;
use std::path::PathBuf;

pub(crate) use mountpoint::MountPoint;
pub use mountpoint::clear_mount;
pub(crate) use session::{End, serve_mount};

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
