//! A directory that only this user may enter, for the socket and the file.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use nix::unistd::mkdtemp;

use super::vmm::Disk;
use crate::server::status_path;

/// What `mkdtemp` replaces.
const TEMPLATE: &str = "lazystore-XXXXXX";

/// A directory that is removed when this is dropped, with what belongs in it.
#[derive(Debug)]
pub struct PrivateDir {
    path: PathBuf,
}

impl PrivateDir {
    /// Makes one with mode 0700.
    pub fn create() -> io::Result<Self> {
        let dir = Self {
            path: mkdtemp(&Self::example())?,
        };
        DirBuilder::new()
            .mode(0o700)
            .create(Disk::in_dir(&dir.path).mount)?;
        Ok(dir)
    }

    /// Where it is made.
    pub fn base() -> PathBuf {
        let base = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
        let base = base.filter(|dir| dir.is_absolute() && dir.is_dir());
        base.unwrap_or_else(std::env::temp_dir)
    }

    /// What its path looks like.
    pub fn example() -> PathBuf {
        Self::base().join(TEMPLATE)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the server tells the disk's fingerprint.
    pub fn fingerprint(&self) -> PathBuf {
        self.path.join("fingerprint")
    }

    /// QEMU's control socket.
    pub fn control(&self) -> PathBuf {
        self.path.join("qmp.sock")
    }

    /// One that another process made: this one removes it too.
    pub fn adopt(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
        }
    }
}

impl Drop for PrivateDir {
    fn drop(&mut self) {
        // The other process may be faster.
        let disk = Disk::in_dir(&self.path);
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
