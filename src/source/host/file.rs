//! Open files.

use std::num::NonZeroU64;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nix::time::{ClockId, clock_gettime};
use rustix::fs::{Advice, AtFlags};
use rustix::io::Errno;

use super::statx;
use crate::source::{Awaits, Destination, IoMode, SourceError};
use crate::tree::{FileKind, Stamp, Stat};

/// Minimum interval between two checks that an open file has not changed. A check takes as long as reading 4 KiB
/// (measured: 0.85 µs and 0.98 µs), so it is not done for every read. Ten checks per second have no measurable cost.
const CHECK_INTERVAL_MS: u64 = 100;

/// An open file of the host.
#[derive(Debug)]
pub struct HostFile {
    fd: OwnedFd,
    path: PathBuf,
    stamp: Stamp,
    /// When the stamp was last checked, in [`coarse_ms`].
    checked_ms: AtomicU64,
    /// A read has failed, so the next reader must open the file again.
    faulty: AtomicBool,
    /// Another process writes to it, so its mtime may change.
    is_written: bool,
}

impl HostFile {
    /// The caller has just checked that the file has `stamp`.
    pub(super) fn new(fd: OwnedFd, path: PathBuf, stamp: Stamp) -> Self {
        Self {
            fd,
            path,
            stamp,
            checked_ms: AtomicU64::new(coarse_ms()),
            faulty: AtomicBool::new(false),
            is_written: false,
        }
    }

    /// Disables the check for changes, for a file that is still being written elsewhere than where it is read.
    #[must_use]
    pub(in crate::source) fn while_written(self) -> Self {
        Self {
            is_written: true,
            ..self
        }
    }

    /// Creates a file with its current stamp. `path` is for messages.
    pub(in crate::source) fn of_open(fd: OwnedFd, path: PathBuf) -> Result<Self, SourceError> {
        match statx(&fd, c"", AtFlags::EMPTY_PATH) {
            Ok(found) => Ok(Self::new(fd, path, Stat::from(&found).stamp())),
            Err(errno) => Err(SourceError::Io {
                path,
                action: "stat",
                errno,
            }),
        }
    }

    /// Creates a file with its current stamp.
    #[cfg(test)]
    pub(in crate::source) fn for_tests(file: std::fs::File) -> Self {
        Self::of_open(file.into(), "a test's file".into()).unwrap()
    }

    /// Returns its device and inode, and its current length.
    pub(in crate::source) fn now(&self) -> Option<([u64; 2], u64)> {
        let found = rustix::fs::fstat(&self.fd).ok()?;
        let len_bytes = u64::try_from(found.st_size).ok()?;
        Some(([found.st_dev, found.st_ino], len_bytes))
    }

    pub(in crate::source) fn path(&self) -> &Path {
        &self.path
    }

    pub(in crate::source) fn len_bytes(&self) -> u64 {
        self.stamp.size_bytes
    }

    /// Returns whether no read or check has failed.
    pub(in crate::source) fn is_usable(&self) -> bool {
        !self.faulty.load(Ordering::Relaxed)
    }

    /// Returns whether it can be used for a file that was planned with `stamp`. Not after a failed read: the fault may concern
    /// only this open file, and the path may refer to another file by now.
    pub(super) fn is_still(&self, stamp: Stamp) -> bool {
        self.stamp == stamp && self.is_usable()
    }

    /// Checks that the file has not changed since it was planned. To be called after a read and before its bytes are
    /// used: a write that preceded the read has changed the mtime by then. A change within the last 100 ms may go
    /// unnoticed.
    fn check(&self) -> Result<(), SourceError> {
        let now_ms = coarse_ms();
        let age_ms = now_ms.saturating_sub(self.checked_ms.load(Ordering::Relaxed));
        if self.is_written || age_ms < CHECK_INTERVAL_MS {
            return Ok(());
        }
        let found = statx(&self.fd, c"", AtFlags::EMPTY_PATH).map_err(|errno| self.fault(errno))?;
        let found = Stat::from(&found);
        if found.kind != FileKind::Regular || found.stamp() != self.stamp {
            self.faulty.store(true, Ordering::Relaxed);
            return Err(SourceError::Changed {
                path: self.path.clone(),
            });
        }
        self.checked_ms.store(now_ms, Ordering::Relaxed);
        Ok(())
    }

    /// See [`File::read_into`](crate::source::File::read_into).
    pub(in crate::source) fn read_into(
        &self,
        to: &mut Destination<'_>,
        offset: u64,
        len_bytes: u64,
        mode: IoMode,
    ) -> Result<(), SourceError> {
        let (mut at, mut rest) = (offset, len_bytes);
        while rest > 0 {
            match to.read(self.fd.as_fd(), at, rest, mode)? {
                Ok(0) => return Err(self.shrank()),
                Ok(count) => {
                    at += count as u64;
                    rest -= count as u64;
                }
                Err(Errno::INTR) => {}
                Err(errno) if mode == IoMode::NoWait && would_block(errno) => {
                    return Err(SourceError::WouldBlock(Awaits::Data));
                }
                Err(errno) => return Err(self.fault(errno)),
            }
        }
        self.check()
    }

    pub(in crate::source) fn read_ahead(
        &self,
        offset: u64,
        len_bytes: u64,
    ) -> Result<(), SourceError> {
        rustix::fs::fadvise(
            &self.fd,
            offset,
            NonZeroU64::new(len_bytes),
            Advice::WillNeed,
        )
        .map_err(|errno| self.fault(errno))
    }

    fn fault(&self, errno: Errno) -> SourceError {
        self.faulty.store(true, Ordering::Relaxed);
        SourceError::Io {
            path: self.path.clone(),
            action: "read",
            errno,
        }
    }

    fn shrank(&self) -> SourceError {
        self.faulty.store(true, Ordering::Relaxed);
        SourceError::Shrank {
            path: self.path.clone(),
        }
    }
}

/// Milliseconds of a monotonic clock that is cheap to read and lags by a few milliseconds. Returns 0 without that clock
/// (which Linux always has), which disables checks.
fn coarse_ms() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE);
    now.map_or(0, |now| {
        now.tv_sec().cast_unsigned() * 1000 + now.tv_nsec().cast_unsigned() / 1_000_000
    })
}

/// Returns whether a read with `RWF_NOWAIT` failed because the data is not in memory, or because the file system or a sandbox
/// does not support the flag.
fn would_block(errno: Errno) -> bool {
    matches!(errno, Errno::AGAIN | Errno::OPNOTSUPP | Errno::NOSYS)
}
