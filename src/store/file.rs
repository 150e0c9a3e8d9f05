//! Open files and their bounded cache.

use std::io::IoSliceMut;
use std::num::{NonZeroU64, NonZeroUsize};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lru::LruCache;
use rustix::fs::Advice;
use rustix::io::{Errno, ReadWriteFlags};

use super::{Patience, StoreError};

/// Shards of the file cache: queues that read different files seldom meet at one lock.
const SHARDS: usize = 16;

/// Names a file of a plan: which path of the closure, and which of its nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FileKey {
    /// Index of the store path in the closure.
    pub path: u32,
    /// Index of the node in the path's plan.
    pub node: u32,
}

/// What must not change between planning a file and reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Length of the file.
    pub size_bytes: u64,
    /// Whole seconds of the mtime.
    pub mtime_sec: i64,
    /// Nanoseconds of the mtime.
    pub mtime_nsec: u32,
}

/// A host file that is open for reading.
#[derive(Debug)]
pub struct HostFile {
    fd: OwnedFd,
    path: PathBuf,
}

impl HostFile {
    pub(super) fn new(fd: OwnedFd, path: PathBuf) -> Self {
        Self { fd, path }
    }

    /// Where the file lies on the host.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Fills `buf` from `offset`.
    ///
    /// # Errors
    /// When the host cannot read, or the file ends before `buf` is full. [`StoreError::WouldBlock`] as `patience` has
    /// it.
    pub fn read_exact_at(
        &self,
        buf: &mut [u8],
        offset: u64,
        patience: Patience,
    ) -> Result<(), StoreError> {
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            match self.read_at(&mut buf[done..], at, patience) {
                Ok(0) => return Err(self.shrank()),
                Ok(count) => done += count,
                Err(Errno::INTR) => {}
                Err(errno) if patience == Patience::Now && would_block(errno) => {
                    return Err(StoreError::WouldBlock);
                }
                Err(errno) => return Err(self.fault(errno)),
            }
        }
        Ok(())
    }

    fn read_at(&self, buf: &mut [u8], offset: u64, patience: Patience) -> Result<usize, Errno> {
        match patience {
            Patience::Wait => rustix::io::pread(&self.fd, buf, offset),
            Patience::Now => {
                let mut bufs = [IoSliceMut::new(buf)];
                rustix::io::preadv2(&self.fd, &mut bufs, offset, ReadWriteFlags::NOWAIT)
            }
        }
    }

    /// Has the host read a range into its memory, if it likes, without waiting for it.
    ///
    /// # Errors
    /// When the file system cannot read ahead.
    pub fn read_ahead(&self, offset: u64, len_bytes: u64) -> Result<(), StoreError> {
        rustix::fs::fadvise(
            &self.fd,
            offset,
            NonZeroU64::new(len_bytes),
            Advice::WillNeed,
        )
        .map_err(|errno| self.fault(errno))
    }

    /// The error for a read of this file that the host refused.
    pub fn fault(&self, errno: Errno) -> StoreError {
        StoreError::Io {
            path: self.path.clone(),
            action: "read",
            errno,
        }
    }

    /// The error for a read of this file that ended early.
    pub fn shrank(&self) -> StoreError {
        StoreError::Shrank {
            path: self.path.clone(),
        }
    }
}

impl AsFd for HostFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Whether `RWF_NOWAIT` was refused: not in memory, or the file system (or a sandbox) does not know the flag.
pub fn would_block(errno: Errno) -> bool {
    matches!(errno, Errno::AGAIN | Errno::OPNOTSUPP | Errno::NOSYS)
}

type Shard = LruCache<FileKey, Arc<HostFile>>;

/// Files that stay open, the least recently used leaving first.
#[derive(Debug)]
pub(super) struct FileCache {
    shards: [Mutex<Shard>; SHARDS],
}

impl FileCache {
    /// A cache of at most `max_open_files`, and of one file a shard at the least.
    pub(super) fn new(max_open_files: usize) -> Self {
        let each = NonZeroUsize::new(max_open_files / SHARDS).unwrap_or(NonZeroUsize::MIN);
        Self {
            shards: std::array::from_fn(|_| Mutex::new(LruCache::new(each))),
        }
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
        lock(&self.shards[(mixed >> 28) as usize % SHARDS])
    }
}

/// A cache is whole after any panic of another thread: no entry is ever half-written.
fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}
