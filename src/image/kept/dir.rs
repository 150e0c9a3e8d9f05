//! The directory of kept plans.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{
    Advice, AtFlags, Mode, OFlags, RawDir, ResolveFlags, StatxFlags, fadvise, fstat, mkdir,
    openat2, renameat, statx, unlinkat,
};
use rustix::io::Errno;
use rustix::process::{geteuid, getpid};

use super::error::PlanDirError;
use super::format::{FILE_MAX_BYTES, is_file_name, is_temporary, temporary_name};

/// Write permission for group and others.
const WRITE_BY_OTHERS: u32 = 0o022;

/// A file is marked as used at most this often, so that reading plans does not cause a write each time.
const MARK_AFTER: Duration = Duration::from_secs(24 * 60 * 60);

/// After this time a temporary file is considered left behind by a killed process.
const WRITING_MAX: Duration = Duration::from_secs(60 * 60);

/// A directory that belongs to this user and contains kept plans.
#[derive(Debug)]
pub struct PlanDir {
    dir: OwnedFd,
    path: PathBuf,
}

/// A file in the directory.
struct FoundFile {
    name: Vec<u8>,
    /// Its disk usage.
    bytes: u64,
    /// When it was last written or used.
    used: SystemTime,
}

impl PlanDir {
    /// Opens the directory `path`. Creates it if necessary.
    ///
    /// # Errors
    /// It cannot be opened, or another user could write to it.
    pub fn open(path: &Path) -> Result<Self, PlanDirError> {
        let open = || {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            rustix::fs::open(path, flags, Mode::empty())
        };
        let at = |errno: Errno| (path.to_owned(), io::Error::from(errno));
        let opened = match open() {
            Err(Errno::NOENT) => {
                mkdir(path, Mode::RWXU).map_err(|errno| {
                    let (path, source) = at(errno);
                    PlanDirError::Create { path, source }
                })?;
                open()
            }
            opened => opened,
        };
        let dir = opened.map_err(|errno| {
            let (path, source) = at(errno);
            PlanDirError::Open { path, source }
        })?;
        check_owner(&dir, path)?;
        Ok(Self {
            dir,
            path: path.to_owned(),
        })
    }

    /// Returns the path of the directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Starts readahead of a file.
    pub(super) fn read_ahead(&self, name: &str) {
        if let Ok(file) = self.open_file(name, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty()) {
            // An error is ignored: reading then only takes longer.
            let _ = fadvise(&file, 0, None, Advice::WillNeed);
        }
    }

    /// Reads a file and marks it as used.
    pub(super) fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        // NONBLOCK, so that opening a FIFO does not block.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK;
        let mut file = File::from(self.open_file(name, flags, Mode::empty())?);
        let found = file.metadata()?;
        if !found.is_file() || found.len() > FILE_MAX_BYTES {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut bytes = Vec::new();
        (&mut file).take(FILE_MAX_BYTES).read_to_end(&mut bytes)?;
        let unused = found.modified()?.elapsed().unwrap_or_default();
        if unused > MARK_AFTER {
            mark_as_used(&file);
        }
        Ok(bytes)
    }

    /// Replaces a file. Concurrent readers see the old or the new contents; after a power failure the file may be damaged.
    pub(super) fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.unwrap_or_default().as_nanos();
        let unique = format!("{}-{now}", getpid().as_raw_nonzero());
        let temporary = temporary_name(name, &unique);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        let file = self.open_file(&temporary, flags, Mode::RUSR | Mode::WUSR)?;
        let written = File::from(file).write_all(bytes);
        let written = written.and_then(|()| Ok(renameat(&self.dir, &*temporary, &self.dir, name)?));
        if written.is_err() {
            // The first error is reported; this one may have the same cause.
            let _ = self.remove(temporary.as_bytes());
        }
        written
    }

    /// Removes a file, if it exists.
    pub(super) fn remove(&self, name: &[u8]) -> io::Result<()> {
        match unlinkat(&self.dir, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Removes leftovers, then the least recently used files until the others take at most `limit_bytes`.
    pub(super) fn prune(&self, limit_bytes: u64) -> io::Result<()> {
        let mut kept = self.list()?;
        let now = SystemTime::now();
        let age = |kept: &FoundFile| now.duration_since(kept.used).unwrap_or_default();
        kept.sort_by_key(|kept| kept.used);
        let mut total: u64 = kept.iter().map(|kept| kept.bytes).sum();
        for file in &kept {
            let is_left = is_temporary(&file.name) && age(file) > WRITING_MAX;
            if is_left || total > limit_bytes {
                self.remove(&file.name)?;
                total -= file.bytes;
            }
        }
        Ok(())
    }

    fn list(&self) -> io::Result<Vec<FoundFile>> {
        const BUFFER_BYTES: usize = 32 << 10;
        // A separate open file description, because the read position belongs to it.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let dir = self.open_file(".", flags, Mode::empty())?;
        let mut buffer = vec![MaybeUninit::uninit(); BUFFER_BYTES];
        let mut entries = RawDir::new(&dir, &mut buffer);
        let mut kept = Vec::new();
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name();
            if is_file_name(name.to_bytes()) {
                // Another server may have removed it.
                kept.extend(self.look_at(name).ok());
            }
        }
        Ok(kept)
    }

    fn look_at(&self, name: &CStr) -> io::Result<FoundFile> {
        /// Unit of `stx_blocks`.
        const SECTOR_BYTES: u64 = 512;
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        let found = statx(&self.dir, name, flags, StatxFlags::BASIC_STATS)?;
        let since_1970 = Duration::from_secs(found.stx_mtime.tv_sec.try_into().unwrap_or(0));
        Ok(FoundFile {
            name: name.to_bytes().to_owned(),
            bytes: found.stx_blocks.saturating_mul(SECTOR_BYTES),
            used: UNIX_EPOCH + since_1970 + Duration::from_nanos(found.stx_mtime.tv_nsec.into()),
        })
    }

    /// Opens a file directly inside the directory.
    fn open_file(&self, name: &str, flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        Ok(openat2(&self.dir, name, flags, mode, how)?)
    }
}

impl AsFd for PlanDir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }
}

/// Checks that only this user can write to the directory.
fn check_owner(dir: &OwnedFd, path: &Path) -> Result<(), PlanDirError> {
    let found = fstat(dir).map_err(|errno| PlanDirError::Open {
        path: path.to_owned(),
        source: errno.into(),
    })?;
    let user = geteuid().as_raw();
    if found.st_uid != user {
        return Err(PlanDirError::Foreign {
            path: path.to_owned(),
            owner: found.st_uid,
            user,
        });
    }
    let mode = found.st_mode & 0o7777;
    if mode & WRITE_BY_OTHERS != 0 {
        return Err(PlanDirError::WritableByOthers {
            path: path.to_owned(),
            mode,
        });
    }
    Ok(())
}

/// Sets the mtime, which records the last use: many file systems are mounted without atimes.
fn mark_as_used(file: &File) {
    // An error is ignored: the file is then only removed earlier.
    let _ = file.set_modified(SystemTime::now());
}
