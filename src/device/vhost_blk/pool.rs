//! Threads for blocking work.
//!
//! We do not use io_uring: its operations bypass seccomp filters, and not only reads block but also opening files and
//! listing directories. Little is lost: a failed read with `RWF_NOWAIT` starts readahead (Linux 5.9 and later), so the
//! threads only wait, and one thread waits for several requests. Cold random 4 KiB reads over 2 GB with queue depth 32
//! on two cores, in reads per second: 53,800 through this pool; with fio, which does not pass data to a guest, 58,000
//! with io_uring, 12,000 with libaio, and 62,000, 68,000 and 72,000 with 16, 32 and 64 threads.

use std::collections::VecDeque;

use super::sync::thread::{self, JoinHandle};
use super::sync::{Arc, Condvar, Mutex, MutexGuard, lock, wait};

/// A unit of work.
pub(in crate::device) trait Job: Send + 'static {
    /// Does the work.
    fn run(self);

    /// Whether the result is still needed.
    fn is_wanted(&self) -> bool {
        true
    }
}

/// When this many jobs are queued, those that are not needed any more are dropped. Otherwise a frontend that repeatedly
/// stops and starts its rings could grow the queue without bound.
const JOBS_BEFORE_PURGE: usize = 4096;

/// A pool of threads, which are started on demand and kept until the end.
pub(in crate::device) struct Pool<J: Job> {
    shared: Arc<PoolShared<J>>,
    most_threads: usize,
}

struct PoolShared<J> {
    state: Mutex<PoolState<J>>,
    wake: Condvar,
}

struct PoolState<J> {
    jobs: VecDeque<J>,
    threads: Vec<JoinHandle<()>>,
    /// Number of threads that wait for a job.
    idle: usize,
    ended: bool,
}

impl<J: Job> Pool<J> {
    /// Creates a pool without starting threads.
    pub(in crate::device) fn new(most_threads: usize) -> Self {
        let state = PoolState {
            jobs: VecDeque::new(),
            threads: Vec::new(),
            idle: 0,
            ended: false,
        };
        let shared = PoolShared {
            state: Mutex::new(state),
            wake: Condvar::new(),
        };
        Self {
            shared: Arc::new(shared),
            most_threads,
        }
    }

    /// Queues `job`.
    ///
    /// # Errors
    /// Returns the job if there is no thread and none can be started.
    pub(in crate::device) fn submit(&self, job: J) -> Result<(), J> {
        let mut state = self.shared.lock();
        if !state.ended && state.idle <= state.jobs.len() && state.threads.len() < self.most_threads
        {
            self.start_thread(&mut state);
        }
        if state.ended || state.threads.is_empty() {
            return Err(job);
        }
        if state.jobs.len() >= JOBS_BEFORE_PURGE {
            state.jobs.retain(J::is_wanted);
        }
        state.jobs.push_back(job);
        drop(state);
        self.shared.wake.notify_one();
        Ok(())
    }

    /// Errors are ignored if there are other threads: these then do the work.
    fn start_thread(&self, state: &mut PoolState<J>) {
        let shared = Arc::clone(&self.shared);
        let name = "blocking".to_owned();
        let started = thread::Builder::new()
            .name(name)
            .spawn(move || shared.work());
        state.threads.extend(started);
    }

    /// Number of queued jobs.
    #[cfg(test)]
    pub(in crate::device) fn waiting(&self) -> usize {
        self.shared.lock().jobs.len()
    }

    /// Finishes the queued jobs and joins the threads.
    pub(in crate::device) fn end(&self) {
        for thread in self.shared.end() {
            // If a job panicked, the panic has been printed already.
            let _ = thread.join();
        }
    }
}

impl<J: Job> Drop for Pool<J> {
    /// Does not join the threads, because the pool may be dropped by one of them.
    fn drop(&mut self) {
        self.shared.end();
    }
}

impl<J: Job> PoolShared<J> {
    /// The lock is not held while jobs run.
    fn lock(&self) -> MutexGuard<'_, PoolState<J>> {
        lock(&self.state)
    }

    fn work(&self) {
        while let Some(job) = self.next() {
            job.run();
        }
    }

    /// Waits for a job; `None` when the pool has ended.
    fn next(&self) -> Option<J> {
        let mut state = self.lock();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                return Some(job);
            }
            if state.ended {
                return None;
            }
            state.idle += 1;
            state = wait(&self.wake, state);
            state.idle -= 1;
        }
    }

    fn end(&self) -> Vec<JoinHandle<()>> {
        let mut state = self.lock();
        state.ended = true;
        self.wake.notify_all();
        std::mem::take(&mut state.threads)
    }
}
