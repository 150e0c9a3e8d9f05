//! The disk as a file in a FUSE mount.
//!
//! | module | what it does |
//! |---|---|
//! | `file` | the file system: one directory with one file |
//! | `session` | in the worker: mounts and answers the kernel's requests |
//! | `mountpoint` | in the parent: detects stale mounts and unmounts |
//! | `readers` | counts opens and reads of the file |
//! | `error` | errors |

mod error;
mod file;
mod mountpoint;
mod readers;
mod session;

use std::num::NonZeroUsize;
use std::path::PathBuf;

pub use error::FuseError;
pub use mountpoint::{MountPoint, clear_mount};
pub use readers::{ReaderChange, Readers};
pub use session::{Mounted, Serving, check_device};

/// Source of our mounts in the mount table.
const SOURCE: &str = "lazystore";

/// How to serve a disk as a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FuseOptions {
    /// Mount point; an existing directory.
    pub dir: PathBuf,
    /// Name of the file in it.
    pub image_name: String,
    /// Lets users other than the mounting one read the file.
    pub allow_other: bool,
    /// Number of threads that answer reads.
    pub threads: NonZeroUsize,
}

impl FuseOptions {
    /// Path of the file.
    pub fn image_path(&self) -> PathBuf {
        self.dir.join(&self.image_name)
    }
}
