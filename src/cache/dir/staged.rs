//! Files that are being written.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{FlockOperation, flock};

use super::DirError;

/// A file with a temporary name, removed on drop unless it is kept. It is locked, so that other servers do not take it for a
/// stale file.
#[derive(Debug)]
pub struct Staged {
    file: File,
    path: PathBuf,
}

impl Staged {
    pub(super) fn new(dir: &Path) -> Result<Self, DirError> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        loop {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let path = dir.join(format!("{}-{number}", std::process::id()));
            let mut options = File::options();
            match options.read(true).write(true).create_new(true).open(&path) {
                Ok(file) => {
                    let locked = flock(&file, FlockOperation::NonBlockingLockExclusive);
                    // Another server may have removed it as stale before it was locked.
                    if locked.is_ok() && path.exists() {
                        return Ok(Self { file, path });
                    }
                }
                // A process in another PID namespace uses the same name.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(DirError::host("write to", dir)(error)),
            }
        }
    }

    /// Returns the file to write to.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Returns the temporary path.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Wraps an error of writing to the file.
    pub fn write_error(&self, error: io::Error) -> DirError {
        DirError::host("write", &self.path)(error)
    }

    /// Returns the temporary file name.
    pub(super) fn name(&self) -> &OsStr {
        self.path.file_name().unwrap_or_default()
    }

    /// Moves the file to its final name. After a power failure its content may be missing.
    pub(super) fn keep(self, path: &Path) -> Result<(), DirError> {
        fs::rename(&self.path, path).map_err(DirError::host("write", path))
        // Dropping it then removes a name that no longer exists.
    }

    /// Like [`keep`](Self::keep), after syncing the content to the disk.
    pub(super) fn keep_synced(self, path: &Path) -> Result<(), DirError> {
        self.file
            .sync_data()
            .map_err(DirError::host("write", path))?;
        self.keep(path)
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}
