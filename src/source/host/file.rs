//! Open files and their bounded cache.

use std::io::IoSliceMut;
use std::num::{NonZeroU64, NonZeroUsize};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lru::LruCache;
use nix::time::{ClockId, clock_gettime};
use rustix::fs::{Advice, AtFlags};
use rustix::io::{Errno, ReadWriteFlags};

use super::statx;
use crate::source::{IoMode, SourceError};
use crate::tree::{FileKind, Stamp, Stat};

/// Shards of the file cache: queues that read different files seldom meet at one lock.
const SHARDS: usize = 16;

/// How long an open file is believed to be what it was. Looking costs as much as reading 4 KiB (0.85 µs and 0.98 µs
/// were measured), so it is not done for every read: ten times a second for a file that is in constant use costs
/// nothing that can be seen.
const BELIEVED_MS: u64 = 100;

/// Names a file of a plan: which path of the closure, and which of its nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FileKey {
    /// Index of the store path in the closure.
    pub path: u32,
    /// Index of the node in the path's plan.
    pub node: u32,
}

/// A host file that is open for reading.
#[derive(Debug)]
pub struct HostFile {
    fd: OwnedFd,
    path: PathBuf,
    stamp: Stamp,
    /// When the stamp was last looked at, in the time of [`coarse_ms`].
    checked_ms: AtomicU64,
    /// A read has failed: whoever wants the file next opens it anew.
    faulty: AtomicBool,
}

impl HostFile {
    /// The file must have been found to have `stamp`.
    pub(super) fn new(fd: OwnedFd, path: PathBuf, stamp: Stamp) -> Self {
        Self {
            fd,
            path,
            stamp,
            checked_ms: AtomicU64::new(coarse_ms()),
            faulty: AtomicBool::new(false),
        }
    }

    /// Whether it can be used for a file that was planned with `stamp`. Not after a failed read: what was wrong may lie
    /// in this open file only, and in its place there may be another one by now.
    pub(super) fn is_still(&self, stamp: Stamp) -> bool {
        self.stamp == stamp && !self.faulty.load(Ordering::Relaxed)
    }

    /// Makes sure that the file is still the one that was planned. To be asked after a read and before its bytes are
    /// used: a write that came before the read has changed the mtime by then. A change in the last tenth of a second
    /// may go unnoticed.
    ///
    /// # Errors
    /// [`SourceError::Changed`], or the host cannot tell.
    pub fn check(&self) -> Result<(), SourceError> {
        let now_ms = coarse_ms();
        if now_ms.saturating_sub(self.checked_ms.load(Ordering::Relaxed)) < BELIEVED_MS {
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

    /// Where the file lies on the host.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Fills `buf` from `offset`.
    ///
    /// # Errors
    /// When the host cannot read, the file ends before `buf` is full, or it is not what was planned any more.
    /// [`SourceError::WouldBlock`] as `mode` has it.
    pub fn read_exact_at(
        &self,
        buf: &mut [u8],
        offset: u64,
        mode: IoMode,
    ) -> Result<(), SourceError> {
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            match self.read_at(&mut buf[done..], at, mode) {
                Ok(0) => return Err(self.shrank()),
                Ok(count) => done += count,
                Err(Errno::INTR) => {}
                Err(errno) if mode == IoMode::NoWait && would_block(errno) => {
                    return Err(SourceError::WouldBlock);
                }
                Err(errno) => return Err(self.fault(errno)),
            }
        }
        self.check()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64, mode: IoMode) -> Result<usize, Errno> {
        match mode {
            IoMode::Blocking => rustix::io::pread(&self.fd, buf, offset),
            IoMode::NoWait => {
                let mut bufs = [IoSliceMut::new(buf)];
                rustix::io::preadv2(&self.fd, &mut bufs, offset, ReadWriteFlags::NOWAIT)
            }
        }
    }

    /// Has the host read a range into its memory, if it likes, without waiting for it.
    ///
    /// # Errors
    /// When the file system cannot read ahead.
    pub fn read_ahead(&self, offset: u64, len_bytes: u64) -> Result<(), SourceError> {
        rustix::fs::fadvise(
            &self.fd,
            offset,
            NonZeroU64::new(len_bytes),
            Advice::WillNeed,
        )
        .map_err(|errno| self.fault(errno))
    }

    /// The error for a read of this file that the host refused.
    pub fn fault(&self, errno: Errno) -> SourceError {
        self.faulty.store(true, Ordering::Relaxed);
        SourceError::Io {
            path: self.path.clone(),
            action: "read",
            errno,
        }
    }

    /// The error for a read of this file that ended early.
    pub fn shrank(&self) -> SourceError {
        self.faulty.store(true, Ordering::Relaxed);
        SourceError::Shrank {
            path: self.path.clone(),
        }
    }
}

impl AsFd for HostFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Milliseconds since some start, from the clock that costs next to nothing and is a few of them behind. Without that
/// clock, which Linux always has, files would be believed for ever.
fn coarse_ms() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE);
    now.map_or(0, |now| {
        now.tv_sec().cast_unsigned() * 1000 + now.tv_nsec().cast_unsigned() / 1_000_000
    })
}

/// Whether `RWF_NOWAIT` was refused: not in memory, or the file system (or a sandbox) does not know the flag.
pub fn would_block(errno: Errno) -> bool {
    matches!(errno, Errno::AGAIN | Errno::OPNOTSUPP | Errno::NOSYS)
}

type Shard = LruCache<FileKey, Arc<HostFile>>;

/// Files that stay open, the least recently used leaving first.
#[derive(Debug)]
pub(super) struct FileCache {
    /// At least one.
    shards: Vec<Mutex<Shard>>,
    max_open_files: usize,
}

impl FileCache {
    /// A cache of at most `max_open_files`, and of one file at the least.
    pub(super) fn new(max_open_files: usize) -> Self {
        let shards = max_open_files.clamp(1, SHARDS);
        let each = NonZeroUsize::new(max_open_files / shards).unwrap_or(NonZeroUsize::MIN);
        Self {
            shards: (0..shards)
                .map(|_| Mutex::new(LruCache::new(each)))
                .collect(),
            max_open_files: shards * each.get(),
        }
    }

    /// How many files may stay open.
    pub(super) fn max_open_files(&self) -> usize {
        self.max_open_files
    }

    pub(super) fn get(&self, key: FileKey) -> Option<Arc<HostFile>> {
        self.shard(key).get(&key).cloned()
    }

    pub(super) fn insert(&self, key: FileKey, file: Arc<HostFile>) {
        // Closing the evicted file is a system call: not under the lock.
        let evicted = self.shard(key).push(key, file);
        drop(evicted);
    }

    /// Closes every file nobody is reading.
    pub(super) fn clear(&self) {
        for shard in &self.shards {
            lock(shard).clear();
        }
    }

    fn shard(&self, key: FileKey) -> MutexGuard<'_, Shard> {
        let mixed = (key.path ^ key.node.rotate_left(16)).wrapping_mul(0x9E37_79B9);
        lock(&self.shards[(mixed >> 28) as usize % self.shards.len()])
    }
}

/// A cache is whole after any panic of another thread: no entry is ever half-written.
fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}
