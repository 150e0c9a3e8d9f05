//! The only module that opens files of the store on the host.
//!
//! Paths are resolved below one directory and never through a symlink (`openat2` with `RESOLVE_BENEATH |
//! RESOLVE_NO_SYMLINKS`), so nothing in a store can lead outside. Paths are bytes relative to that directory; the empty
//! path is the directory itself.

mod directory;
mod file;

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, Statx, StatxFlags};
use rustix::io::Errno;

pub use directory::{Identity, Mark};
pub use file::HostFile;

use super::file_cache::{FileCache, FileId};
use super::{Awaits, IoMode, SourceError};
use crate::tree::{Detail, FileKind, Listing, Stamp, Stat};

/// Longest path passed to the kernel at once, below its limit of 4,096 bytes including the NUL (`PATH_MAX`).
const MAX_PATH_LEN_BYTES: usize = 4000;

/// Number of attempts if a resolution races with a rename (`EAGAIN` in openat2(2)).
const MAX_RESOLVE_TRIES: usize = 16;

/// A directory on the host whose contents are served.
#[derive(Debug)]
pub struct HostTree {
    dir: OwnedFd,
    path: PathBuf,
    files: FileCache<Arc<HostFile>>,
    /// Flags for resolving paths below the directory.
    resolve: ResolveFlags,
    /// Whether this process may open files with `O_NOATIME`; cleared after the first EPERM.
    noatime: AtomicBool,
}

impl HostTree {
    /// Opens the directory `path`. At most `max_open_files` of its files are kept open.
    ///
    /// # Errors
    /// `path` is not a directory or cannot be opened.
    pub fn open(path: &Path, max_open_files: usize) -> Result<Self, SourceError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir =
            rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| SourceError::Io {
                path: path.to_owned(),
                action: "open directory",
                errno,
            })?;
        Ok(Self {
            dir,
            path: path.to_owned(),
            files: FileCache::new(max_open_files),
            resolve: ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS,
            noatime: AtomicBool::new(true),
        })
    }

    /// Excludes file systems mounted inside the directory: this process may serve one of them, and would deadlock on
    /// itself.
    #[must_use]
    pub fn without_mounts(mut self) -> Self {
        self.resolve |= ResolveFlags::NO_XDEV;
        self
    }

    /// Returns the maximum number of files that are kept open.
    pub fn max_open_files(&self) -> usize {
        self.files.max_files()
    }

    /// Returns the directory itself.
    pub fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Replaces the directory by `dir`, the same directory mounted in another namespace, so that no descriptor of this
    /// process refers to the old mount. The path in messages does not change.
    ///
    /// # Errors
    /// The kernel's error.
    #[allow(unsafe_code)]
    pub fn move_to(&self, dir: impl AsFd) -> io::Result<()> {
        self.files.clear();
        let (from, to) = (dir.as_fd().as_raw_fd(), self.dir.as_raw_fd());
        // SAFETY: `self.dir` owns the descriptor number before and after. dup3(2) replaces the open directory behind
        // it. All code accesses the directory through this number and does not depend on which mount it is.
        match unsafe { libc::dup3(from, to, libc::O_CLOEXEC) } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }

    /// Returns the directory's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the host path of `path`, for messages.
    pub fn host_path(&self, path: &[u8]) -> PathBuf {
        use std::os::unix::ffi::OsStrExt;
        self.path.join(OsStr::from_bytes(path))
    }

    /// Returns the attributes of `path`, without following a symlink.
    ///
    /// # Errors
    /// It does not exist, or the kernel returns an error.
    pub fn stat(&self, path: &[u8]) -> Result<Stat, SourceError> {
        self.statx(path).map(|found| Stat::from(&found))
    }

    /// Returns the attributes and identity of `path`.
    ///
    /// # Errors
    /// As for [`HostTree::stat`].
    pub fn identify(&self, path: &[u8]) -> Result<(Stat, Identity), SourceError> {
        self.statx(path)
            .map(|found| (Stat::from(&found), Identity::from(&found)))
    }

    /// Checks that the store path that contains `path` still has the identity `top`.
    ///
    /// # Errors
    /// [`SourceError::Replaced`], or it does not exist, or the kernel returns an error.
    pub fn check_top(&self, path: &[u8], top: Identity) -> Result<(), SourceError> {
        let name = path.split(|byte| *byte == b'/').next().unwrap_or(path);
        let (_, found) = self.identify(name)?;
        if found.is(&top) {
            return Ok(());
        }
        Err(SourceError::Replaced {
            path: self.host_path(name),
        })
    }

    fn statx(&self, path: &[u8]) -> Result<Statx, SourceError> {
        let found = if is_component(path) {
            statx(&self.dir, path, AtFlags::SYMLINK_NOFOLLOW)
        } else {
            self.open_node(path)
                .and_then(|fd| statx(&fd, c"", AtFlags::EMPTY_PATH))
        };
        found.map_err(|errno| self.error(path, "stat", errno))
    }

    /// Returns the target of the symlink at `path`.
    ///
    /// # Errors
    /// It is not a symlink, or the kernel returns an error.
    pub fn read_link(&self, path: &[u8]) -> Result<Vec<u8>, SourceError> {
        let target = if is_component(path) {
            rustix::fs::readlinkat(&self.dir, path, Vec::new())
        } else {
            self.open_node(path)
                .and_then(|fd| rustix::fs::readlinkat(&fd, c"", Vec::new()))
        };
        target
            .map(std::ffi::CString::into_bytes)
            .map_err(|errno| self.error(path, "read symlink", errno))
    }

    /// Returns the entries of the directory at `path`, sorted by name.
    ///
    /// # Errors
    /// It is not a directory, or one of its entries cannot be examined.
    pub fn list(&self, path: &[u8], detail: Detail) -> Result<Listing, SourceError> {
        let dir = self
            .with_room(|| self.open_to_read(path, OFlags::DIRECTORY, IoMode::Blocking))
            .map_err(|errno| self.error(path, "open directory", errno))?;
        let listed = match directory::list(&dir, detail) {
            // Listing opens subdirectories, which needs descriptors, too.
            Err((_, Errno::MFILE | Errno::NFILE)) => {
                self.files.clear();
                directory::list(&dir, detail)
            }
            listed => listed,
        };
        listed.map_err(|(name, errno)| {
            let mut full = path.to_vec();
            if !full.is_empty() && !name.is_empty() {
                full.push(b'/');
            }
            full.extend_from_slice(&name);
            self.error(&full, "list", errno)
        })
    }

    /// Opens the regular file at `path()`, or takes it from the cache.
    ///
    /// # Errors
    /// It cannot be opened, its size and mtime differ from `stamp` (the contents are not those that were planned), or
    /// the identity of its store path is not `top` any more. [`SourceError::WouldBlock`] according to `mode`.
    pub fn file(
        &self,
        id: FileId,
        stamp: Stamp,
        top: Option<Identity>,
        mode: IoMode,
        path: impl FnOnce() -> Vec<u8>,
    ) -> Result<Arc<HostFile>, SourceError> {
        if let Some(file) = self.files.get(id).filter(|file| file.is_still(stamp)) {
            return Ok(file);
        }
        let path = path();
        let file = Arc::new(self.open_file(&path, stamp, mode)?);
        // Check after opening: the open file stays the same even if the path is replaced afterwards.
        top.map_or(Ok(()), |top| self.check_top(&path, top))?;
        self.files.insert(id, Arc::clone(&file));
        Ok(file)
    }

    fn open_file(&self, path: &[u8], stamp: Stamp, mode: IoMode) -> Result<HostFile, SourceError> {
        let fd = self
            .with_room(|| self.open_to_read(path, OFlags::NONBLOCK, mode))
            .map_err(|errno| match (mode, errno) {
                // EINVAL: a kernel before 5.12. ENOSYS: a sandbox.
                (IoMode::NoWait, Errno::AGAIN | Errno::INVAL | Errno::NOSYS) => {
                    SourceError::WouldBlock(Awaits::Lookup)
                }
                _ => self.error(path, "open", errno),
            })?;
        let stat = statx(&fd, c"", AtFlags::EMPTY_PATH)
            .map_err(|errno| self.error(path, "stat", errno))?;
        let found = Stat::from(&stat);
        if found.kind != FileKind::Regular || found.stamp() != stamp {
            return Err(SourceError::Changed {
                path: self.host_path(path),
            });
        }
        Ok(HostFile::new(fd, self.host_path(path), stamp))
    }

    /// Opens `path` itself with O_PATH, whatever its type, to examine it.
    fn open_node(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        self.with_room(|| self.open_beneath(path, OFlags::PATH | OFlags::NOFOLLOW))
    }

    /// Calls `open`. If no descriptors are left, closes the cached files, which use most of them, and tries again.
    fn with_room(&self, open: impl Fn() -> Result<OwnedFd, Errno>) -> Result<OwnedFd, Errno> {
        match open() {
            Err(Errno::MFILE | Errno::NFILE) => {
                self.files.clear();
                open()
            }
            done => done,
        }
    }

    /// Returns the first component of `path` (a [`HostTree::host_path`]) inside the directory: for a store, the store path.
    pub fn entry_of<'p>(&self, path: &'p Path) -> &'p OsStr {
        let inside = path.strip_prefix(&self.path).ok();
        let first = inside.and_then(|inside| inside.components().next());
        // A path that is not on the host is identified by the whole path.
        first.map_or(path.as_os_str(), |first| first.as_os_str())
    }

    fn error(&self, path: &[u8], action: &'static str, errno: Errno) -> SourceError {
        SourceError::Io {
            path: self.host_path(path),
            action,
            errno,
        }
    }

    /// Opens `path` for reading, with `O_NOATIME` if this process may use it (open(2): only the owner and root may).
    fn open_to_read(&self, path: &[u8], flags: OFlags, mode: IoMode) -> Result<OwnedFd, Errno> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | flags;
        let open = |flags| match mode {
            IoMode::NoWait => self.open_cached(path, flags),
            IoMode::Local | IoMode::Blocking => self.open_beneath(path, flags),
        };
        if self.noatime.load(Ordering::Relaxed) {
            match open(flags | OFlags::NOATIME) {
                Err(Errno::PERM) => self.noatime.store(false, Ordering::Relaxed),
                done => return done,
            }
        }
        open(flags)
    }

    /// Opens `path` if all its components are in the dentry cache. Not supported before Linux 5.12.
    fn open_cached(&self, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
        let how = self.resolve | ResolveFlags::CACHED;
        if path.is_empty() || path.len() > MAX_PATH_LEN_BYTES {
            return Err(Errno::AGAIN);
        }
        rustix::fs::openat2(&self.dir, path, flags | OFlags::CLOEXEC, Mode::empty(), how).map_err(
            |errno| match errno {
                Errno::INVAL => Errno::AGAIN,
                other => other,
            },
        )
    }

    /// Opens `path` below the directory. Paths longer than the kernel's limit are resolved in several steps.
    fn open_beneath(&self, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
        let mut rest = path;
        let mut at: Option<OwnedFd> = None;
        while rest.len() > MAX_PATH_LEN_BYTES {
            let cut = rest[..MAX_PATH_LEN_BYTES]
                .iter()
                .rposition(|&byte| byte == b'/')
                .ok_or(Errno::NAMETOOLONG)?;
            let step = OFlags::PATH | OFlags::DIRECTORY;
            let dir = at.as_ref().unwrap_or(&self.dir);
            at = Some(resolve(dir, &rest[..cut], step, self.resolve)?);
            rest = &rest[cut + 1..];
        }
        resolve(at.as_ref().unwrap_or(&self.dir), rest, flags, self.resolve)
    }
}

/// Returns whether `path` is a single component, which cannot lead elsewhere, so it need not be opened to examine it.
fn is_component(path: &[u8]) -> bool {
    !path.is_empty() && !path.contains(&b'/')
}

fn resolve(dir: &OwnedFd, path: &[u8], flags: OFlags, how: ResolveFlags) -> Result<OwnedFd, Errno> {
    let path = if path.is_empty() { b"." } else { path };
    // With O_PATH | O_NOFOLLOW a final symlink itself is opened, which RESOLVE_NO_SYMLINKS allows.
    for _ in 0..MAX_RESOLVE_TRIES {
        match rustix::fs::openat2(dir, path, flags | OFlags::CLOEXEC, Mode::empty(), how) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            done => return done,
        }
    }
    Err(Errno::AGAIN)
}

fn statx<P: rustix::path::Arg>(dir: &OwnedFd, path: P, flags: AtFlags) -> Result<Statx, Errno> {
    rustix::fs::statx(dir, path, flags, StatxFlags::BASIC_STATS)
}

#[cfg(test)]
mod tests;
