//! The directory with the files.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{
    Advice, AtFlags, Mode, OFlags, RawDir, ResolveFlags, StatxFlags, Timespec, Timestamps, fadvise,
    fstat, futimens, mkdir, openat2, renameat, statx, unlinkat,
};
use rustix::io::Errno;
use rustix::process::{geteuid, getpid};

use super::error::PlanDirError;
use super::format::{FILE_MAX_BYTES, is_file_name, is_temporary, temporary_name};

/// Write permission for others than the owner.
const WRITE_BY_OTHERS: u32 = 0o022;

/// A file that was used is marked as such if it was not for so long: reading plans should not write each time.
const MARK_AFTER: Duration = Duration::from_secs(24 * 60 * 60);

/// What is still named as being written after so long was left behind by a process that was killed.
const WRITING_MAX: Duration = Duration::from_secs(60 * 60);

/// A directory of this user's that plans are kept in.
#[derive(Debug)]
pub struct PlanDir {
    dir: OwnedFd,
    path: PathBuf,
}

/// A file in it.
struct Kept {
    name: Vec<u8>,
    /// What it takes on the disk.
    bytes: u64,
    /// When it was written, or used.
    used: SystemTime,
}

impl PlanDir {
    /// Opens the directory `path`; makes it if there is none.
    ///
    /// # Errors
    /// It cannot be opened, or somebody else could write there.
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

    /// Where it was.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Has the kernel read a file in advance.
    pub(super) fn read_ahead(&self, name: &str) {
        if let Ok(file) = self.open_file(name, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty()) {
            // It only takes longer otherwise.
            let _ = fadvise(&file, 0, None, Advice::WillNeed);
        }
    }

    /// What a file holds, if it can be read, and marks it as used.
    pub(super) fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        // NONBLOCK: something else than a file must not make this process wait.
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

    /// Replaces a file. Whoever reads sees the old one or the new one; after a loss of power, perhaps one that is damaged.
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
            // What failed is told; this may fail for the same reason.
            let _ = self.remove(temporary.as_bytes());
        }
        written
    }

    /// Removes a file; one that is not there is no error.
    pub(super) fn remove(&self, name: &[u8]) -> io::Result<()> {
        match unlinkat(&self.dir, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Removes what was left behind, and the files that were not used for the longest time, until the others take at most
    /// `limit_bytes`.
    pub(super) fn prune(&self, limit_bytes: u64) -> io::Result<()> {
        let mut kept = self.list()?;
        let now = SystemTime::now();
        let age = |kept: &Kept| now.duration_since(kept.used).unwrap_or_default();
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

    fn list(&self) -> io::Result<Vec<Kept>> {
        const BUFFER_BYTES: usize = 32 << 10;
        // A description of its own: the position in the directory belongs to it.
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

    fn look_at(&self, name: &CStr) -> io::Result<Kept> {
        /// Unit of `stx_blocks`.
        const SECTOR_BYTES: u64 = 512;
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        let found = statx(&self.dir, name, flags, StatxFlags::BASIC_STATS)?;
        let since_1970 = Duration::from_secs(found.stx_mtime.tv_sec.try_into().unwrap_or(0));
        Ok(Kept {
            name: name.to_bytes().to_owned(),
            bytes: found.stx_blocks.saturating_mul(SECTOR_BYTES),
            used: UNIX_EPOCH + since_1970 + Duration::from_nanos(found.stx_mtime.tv_nsec.into()),
        })
    }

    /// Opens a file in the directory itself.
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

/// Makes sure that only this user can write there.
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

/// The mtime is the time of the last use: many file systems are mounted without atimes.
fn mark_as_used(file: &File) {
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: libc::UTIME_NOW,
    };
    let times = Timestamps {
        last_access: now,
        last_modification: now,
    };
    // It is only removed earlier otherwise.
    let _ = futimens(file, &times);
}
