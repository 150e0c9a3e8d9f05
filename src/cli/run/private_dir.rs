//! A directory that only this user may enter, for the sockets and the mount point.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use nix::unistd::mkdtemp;

use super::vmm::DiskPaths;
use crate::server::status_path;

/// The template for mkdtemp(3).
const TEMPLATE: &str = "lazystore-XXXXXX";

/// A directory that is removed on drop, with the files that belong in it.
#[derive(Debug)]
pub struct PrivateDir {
    path: PathBuf,
}

impl PrivateDir {
    /// Creates one with mode 0700.
    pub fn create() -> io::Result<Self> {
        let dir = Self {
            path: mkdtemp(&Self::example())?,
        };
        DirBuilder::new()
            .mode(0o700)
            .create(DiskPaths::in_dir(&dir.path).mount)?;
        Ok(dir)
    }

    /// Returns the directory in which it is created.
    pub fn base() -> PathBuf {
        let base = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
        let base = base.filter(|dir| dir.is_absolute() && dir.is_dir());
        base.unwrap_or_else(std::env::temp_dir)
    }

    /// Returns an example of its path.
    pub fn example() -> PathBuf {
        Self::base().join(TEMPLATE)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the file to which the server writes the disk's fingerprint.
    pub fn fingerprint(&self) -> PathBuf {
        self.path.join("fingerprint")
    }

    /// QEMU's QMP socket.
    pub fn control(&self) -> PathBuf {
        self.path.join("qmp.sock")
    }

    /// Adopts a directory created by another process, so that this one removes it, too.
    pub fn adopt(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
        }
    }
}

impl Drop for PrivateDir {
    fn drop(&mut self) {
        // Errors are ignored: the other process may have removed the files already.
        let disk = DiskPaths::in_dir(&self.path);
        for made in [&disk.socket, &disk.nbd, &disk.mount] {
            let _ = fs::remove_file(status_path(made));
        }
        for made in [
            &disk.socket,
            &disk.nbd,
            &self.fingerprint(),
            &self.control(),
        ] {
            let _ = fs::remove_file(made);
        }
        let _ = fs::remove_dir(&disk.mount);
        let _ = fs::remove_dir(&self.path);
    }
}
