//! Reads the host's directories with openat(2), one component at a time, so that no path is too long and no symlink is
//! followed. Deliberately independent of `source::host`, so that a mistake there is found.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{AtFlags, Dir, Mode, OFlags, Stat};
use rustix::io::Errno;

const DIR_FLAGS: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::CLOEXEC);

/// An open directory.
#[derive(Debug, Clone)]
pub(super) struct HostDir {
    fd: Arc<OwnedFd>,
}

/// An open regular file.
pub(super) struct OpenFile(OwnedFd);

impl HostDir {
    pub(super) fn open(path: &Path) -> Result<Self, Errno> {
        let fd = rustix::fs::open(path, DIR_FLAGS, Mode::empty())?;
        Ok(Self { fd: Arc::new(fd) })
    }

    /// Returns the directory `name` in this one.
    pub(super) fn dir(&self, name: &[u8]) -> Result<Self, Errno> {
        let flags = DIR_FLAGS | OFlags::NOFOLLOW;
        let fd = rustix::fs::openat(&*self.fd, name, flags, Mode::empty())?;
        Ok(Self { fd: Arc::new(fd) })
    }

    /// Returns all names except `.` and `..`, sorted by bytes.
    pub(super) fn names(&self) -> Result<Vec<Vec<u8>>, Errno> {
        let mut names = Vec::new();
        for entry in Dir::read_from(&*self.fd)? {
            let name = entry?.file_name().to_bytes().to_vec();
            if name != b"." && name != b".." {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    pub(super) fn stat_self(&self) -> Result<Stat, Errno> {
        rustix::fs::fstat(&*self.fd)
    }

    pub(super) fn stat(&self, name: &[u8]) -> Result<Stat, Errno> {
        rustix::fs::statat(&*self.fd, name, AtFlags::SYMLINK_NOFOLLOW)
    }

    pub(super) fn target(&self, name: &[u8]) -> Result<Vec<u8>, Errno> {
        Ok(rustix::fs::readlinkat(&*self.fd, name, Vec::new())?.into_bytes())
    }

    /// Opens the regular file `name`. Does not block if it is a FIFO or a device.
    pub(super) fn file(&self, name: &[u8]) -> Result<OpenFile, Errno> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&*self.fd, name, flags, Mode::empty())?;
        Ok(OpenFile(fd))
    }
}

impl OpenFile {
    /// Reads from `offset` until `buf` is full or the file ends; returns the number of bytes read.
    pub(super) fn read(&self, buf: &mut [u8], offset: u64) -> Result<usize, Errno> {
        let mut filled = 0;
        while filled < buf.len() {
            match rustix::io::pread(&self.0, &mut buf[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(filled)
    }
}
