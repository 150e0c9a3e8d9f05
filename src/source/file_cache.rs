//! What is remembered of files, bounded.

use std::num::NonZeroUsize;
use std::sync::{Mutex, MutexGuard, PoisonError};

use lru::LruCache;

/// Queues that read different files seldom meet at one lock.
const SHARDS: usize = 16;

/// The caller's own name for a file: the same number is always the same file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FileId(pub u64);

type Shard<V> = LruCache<FileId, V>;

/// Something of each file, such as an open one; the least recently used leaves first.
#[derive(Debug)]
pub(super) struct FileCache<V> {
    /// At least one.
    shards: Vec<Mutex<Shard<V>>>,
    max_files: usize,
}

impl<V: Clone> FileCache<V> {
    /// A cache of at most `max_files`, and of one file at the least.
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

    /// How many files there may be.
    pub(super) fn max_files(&self) -> usize {
        self.max_files
    }

    pub(super) fn get(&self, id: FileId) -> Option<V> {
        self.shard(id).get(&id).cloned()
    }

    pub(super) fn insert(&self, id: FileId, value: V) {
        // Closing the evicted file is a system call: not under the lock.
        let evicted = self.shard(id).push(id, value);
        drop(evicted);
    }

    /// Forgets all of them.
    pub(super) fn clear(&self) {
        for shard in &self.shards {
            lock(shard).clear();
        }
    }

    fn shard(&self, id: FileId) -> MutexGuard<'_, Shard<V>> {
        // The highest bits of a product depend on all bits of the number (Fibonacci hashing).
        let mixed = id.0.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        lock(&self.shards[(mixed >> 60) as usize % self.shards.len()])
    }
}

/// A cache is whole after any panic of another thread: no entry is ever half-written.
fn lock<V>(shard: &Mutex<Shard<V>>) -> MutexGuard<'_, Shard<V>> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}
