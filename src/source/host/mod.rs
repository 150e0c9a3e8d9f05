//! The only place that opens host paths.
//!
//! Every path is resolved below one directory and never through a symlink
//! (`openat2` with `RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS`), so that nothing in a store can lead a
//! reader out of it. Paths are bytes relative to that directory; the empty path is the directory itself.

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

pub use directory::Identity;
pub use file::HostFile;

use super::file_cache::{FileCache, FileId};
use super::{Awaits, IoMode, SourceError};
use crate::tree::{Detail, FileKind, Listing, Stamp, Stat};

/// Longest path handed to the kernel at once; it takes 4,096 bytes with the NUL (`PATH_MAX`).
const MAX_PATH_LEN_BYTES: usize = 4000;

/// How often a resolution that lost a race with a rename is tried again (openat2(2), `EAGAIN`).
const MAX_RESOLVE_TRIES: usize = 16;

/// A directory on the host whose contents are served.
#[derive(Debug)]
pub struct HostTree {
    dir: OwnedFd,
    path: PathBuf,
    files: FileCache<Arc<HostFile>>,
    /// How every path below it is resolved.
    resolve: ResolveFlags,
    /// The host lets this process read without leaving access times behind.
    noatime: AtomicBool,
}

impl HostTree {
    /// Opens the directory `path` and keeps at most `max_open_files` of its files open.
    ///
    /// # Errors
    /// When `path` is not a directory or may not be opened.
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

    /// The same, without what is mounted inside: that may be a file system which this process serves, and it would wait
    /// for itself.
    #[must_use]
    pub fn without_mounts(mut self) -> Self {
        self.resolve |= ResolveFlags::NO_XDEV;
        self
    }

    /// How many files may stay open.
    pub fn max_open_files(&self) -> usize {
        self.files.max_files()
    }

    /// The directory itself.
    pub fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// From now on the directory is `dir`, where the same is mounted in another namespace. Nothing of this process leads to
    /// where it was before; its path in messages stays.
    ///
    /// # Errors
    /// What the kernel says.
    #[allow(unsafe_code)]
    pub fn move_to(&self, dir: impl AsFd) -> io::Result<()> {
        self.files.clear();
        let (from, to) = (dir.as_fd().as_raw_fd(), self.dir.as_raw_fd());
        // SAFETY: `self.dir` owns its number before and after. What is exchanged is the open directory, which all who use
        // that number reach through it; none of them depends on which one it is.
        match unsafe { libc::dup3(from, to, libc::O_CLOEXEC) } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }

    /// The directory's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The host path of `path`, for messages.
    pub fn host_path(&self, path: &[u8]) -> PathBuf {
        use std::os::unix::ffi::OsStrExt;
        self.path.join(OsStr::from_bytes(path))
    }

    /// What lies at `path`, a symlink being itself.
    ///
    /// # Errors
    /// When nothing lies there, or the host cannot tell.
    pub fn stat(&self, path: &[u8]) -> Result<Stat, SourceError> {
        self.statx(path).map(|found| Stat::from(&found))
    }

    /// What lies at `path`, and which file it is.
    ///
    /// # Errors
    /// As [`HostTree::stat`].
    pub fn identify(&self, path: &[u8]) -> Result<(Stat, Identity), SourceError> {
        self.statx(path)
            .map(|found| (Stat::from(&found), Identity::from(&found)))
    }

    /// Makes sure that the store path `path` is in is still the file `top`.
    ///
    /// # Errors
    /// [`SourceError::Replaced`], or nothing lies there, or the host cannot tell.
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
        let found = if path.contains(&b'/') || path.is_empty() {
            self.open_node(path)
                .and_then(|fd| statx(&fd, c"", AtFlags::EMPTY_PATH))
        } else {
            // One component cannot lead anywhere else: no need to open it.
            statx(&self.dir, path, AtFlags::SYMLINK_NOFOLLOW)
        };
        found.map_err(|errno| self.error(path, "stat", errno))
    }

    /// The target of the symlink at `path`.
    ///
    /// # Errors
    /// When `path` is not a symlink, or the host cannot tell.
    pub fn read_link(&self, path: &[u8]) -> Result<Vec<u8>, SourceError> {
        self.open_node(path)
            .and_then(|fd| rustix::fs::readlinkat(&fd, c"", Vec::new()))
            .map(std::ffi::CString::into_bytes)
            .map_err(|errno| self.error(path, "read symlink", errno))
    }

    /// The entries of the directory at `path`, sorted by name.
    ///
    /// # Errors
    /// When `path` is not a directory, or one of its entries cannot be examined.
    pub fn list(&self, path: &[u8], detail: Detail) -> Result<Listing, SourceError> {
        let dir = self
            .with_room(|| self.open_to_read(path, OFlags::DIRECTORY, IoMode::Blocking))
            .map_err(|errno| self.error(path, "open directory", errno))?;
        let listed = match directory::list(&dir, detail) {
            // Subdirectories are opened, too.
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

    /// The regular file at `path()`, open, from the cache if `id` was asked for before.
    ///
    /// # Errors
    /// When it cannot be opened, or no longer has the size and mtime of `stamp`: what it holds then
    /// is not what was planned; or if the store path it is in is not `top` any more.
    /// [`SourceError::WouldBlock`] as `mode` has it.
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
        // After it was opened: from then on it does not matter what lies there.
        top.map_or(Ok(()), |top| self.check_top(&path, top))?;
        self.files.insert(id, Arc::clone(&file));
        Ok(file)
    }

    fn open_file(&self, path: &[u8], stamp: Stamp, mode: IoMode) -> Result<HostFile, SourceError> {
        let fd = self
            .with_room(|| self.open_to_read(path, OFlags::NONBLOCK, mode))
            .map_err(|errno| match (mode, errno) {
                // The last two: a kernel before 5.12, and a sandbox.
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

    /// Opens `path` itself, whatever it is, to ask what it is.
    fn open_node(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        self.with_room(|| self.open_beneath(path, OFlags::PATH | OFlags::NOFOLLOW))
    }

    /// Opens something, and once more without the cached files if there are no descriptors left: those hold most of
    /// them.
    fn with_room(&self, open: impl Fn() -> Result<OwnedFd, Errno>) -> Result<OwnedFd, Errno> {
        match open() {
            Err(Errno::MFILE | Errno::NFILE) => {
                self.files.clear();
                open()
            }
            done => done,
        }
    }

    /// The entry of the directory that `path`, a [`HostTree::host_path`], lies in: for a store, the store path.
    pub fn entry_of<'p>(&self, path: &'p Path) -> &'p OsStr {
        let inside = path.strip_prefix(&self.path).ok();
        let first = inside.and_then(|inside| inside.components().next());
        // What is not on the host is told apart by its whole path.
        first.map_or(path.as_os_str(), |first| first.as_os_str())
    }

    fn error(&self, path: &[u8], action: &'static str, errno: Errno) -> SourceError {
        SourceError::Io {
            path: self.host_path(path),
            action,
            errno,
        }
    }

    /// Opens `path` for reading, without leaving an access time behind where the host allows that: to its
    /// owner and to root (open(2), `O_NOATIME`).
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

    /// Opens `path` if all names in it are in memory. Linux before 5.12 cannot tell.
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

    /// Opens `path` below the directory; a path longer than the kernel takes goes in several steps.
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

fn resolve(dir: &OwnedFd, path: &[u8], flags: OFlags, how: ResolveFlags) -> Result<OwnedFd, Errno> {
    let path = if path.is_empty() { b"." } else { path };
    // With O_PATH | O_NOFOLLOW a final symlink is opened itself, which NO_SYMLINKS allows.
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
