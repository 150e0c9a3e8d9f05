//! A bounded cache with an entry per file.

use std::num::NonZeroUsize;
use std::sync::{Mutex, MutexGuard, PoisonError};

use lru::LruCache;

/// Number of shards with separate locks, so that queues that read different files rarely contend.
const SHARDS: usize = 16;

/// The caller's identifier of a file. The same number always means the same file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FileId(pub u64);

type Shard<V> = LruCache<FileId, V>;

/// An LRU cache of a value per file, such as an open descriptor.
#[derive(Debug)]
pub(super) struct FileCache<V> {
    /// Never empty.
    shards: Vec<Mutex<Shard<V>>>,
    max_files: usize,
}

impl<V: Clone> FileCache<V> {
    /// Creates a cache of at most `max_files` files, but at least one.
    pub(super) fn new(max_files: usize) -> Self {
        let shards = max_files.clamp(1, SHARDS);
        let each = NonZeroUsize::new(max_files / shards).unwrap_or(NonZeroUsize::MIN);
        Self {
            shards: (0..shards)
                .map(|_| Mutex::new(LruCache::new(each)))
                .collect(),
            max_files: shards * each.get(),
        }
    }

    /// Returns the maximum number of files.
    pub(super) fn max_files(&self) -> usize {
        self.max_files
    }

    pub(super) fn get(&self, id: FileId) -> Option<V> {
        self.shard(id).get(&id).cloned()
    }

    pub(super) fn insert(&self, id: FileId, value: V) {
        // Drop the evicted value after the lock is released: closing a file is a system call.
        let evicted = self.shard(id).push(id, value);
        drop(evicted);
    }

    /// Removes all entries.
    pub(super) fn clear(&self) {
        for shard in &self.shards {
            lock(shard).clear();
        }
    }

    fn shard(&self, id: FileId) -> MutexGuard<'_, Shard<V>> {
        // Fibonacci hashing: the highest bits of the product depend on all bits of the number.
        let mixed = id.0.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        lock(&self.shards[(mixed >> 60) as usize % self.shards.len()])
    }
}

/// Locks a shard, ignoring poisoning: a panic leaves no entry half-written.
fn lock<V>(shard: &Mutex<Shard<V>>) -> MutexGuard<'_, Shard<V>> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}
