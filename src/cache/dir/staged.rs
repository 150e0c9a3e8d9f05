//! Files that are being written.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{FlockOperation, flock};

use super::DirError;

/// A file without a name that anybody would look for; removed unless it is kept. It is locked, so that the next server
/// knows that somebody writes it.
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
                    // Another server may have taken it for a stale one before it was locked.
                    if locked.is_ok() && path.exists() {
                        return Ok(Self { file, path });
                    }
                }
                // Of a process in another PID namespace.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(DirError::host("write to", dir)(error)),
            }
        }
    }

    /// To write to.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Where it is while it is written.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// It could not be written to.
    pub fn write_error(&self, error: io::Error) -> DirError {
        DirError::host("write", &self.path)(error)
    }

    /// What it is called while it is written.
    pub(super) fn name(&self) -> &OsStr {
        self.path.file_name().unwrap_or_default()
    }

    /// Gives it its name. After a power failure there may be a name without bytes.
    pub(super) fn keep(self, path: &Path) -> Result<(), DirError> {
        fs::rename(&self.path, path).map_err(DirError::host("write", path))
        // Dropping it removes a name that is not there any more.
    }

    /// The same when its bytes have reached the disk.
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
