//! Threads for what would block.
//!
//! Not io_uring: its operations bypass seccomp filters, and what blocks here is not only reads but also opening files
//! and walking directories. Little is lost: the refused `RWF_NOWAIT` has the kernel begin to read (Linux 5.9 and later),
//! so that threads only wait, and one waits for several requests. Cold random 4 KiB reads over 2 GB at queue depth 32 on
//! two cores, reads a second: 53,800 through this pool, 58,000 with fio's io_uring, 12,000 with its libaio, and 62,000,
//! 68,000 and 72,000 with 16, 32 and 64 threads of its own, which hand nothing to a guest.

use std::collections::VecDeque;

use super::sync::thread::{self, JoinHandle};
use super::sync::{Arc, Condvar, Mutex, MutexGuard, lock, wait};

/// Something to be done.
pub(in crate::device) trait Job: Send + 'static {
    /// Does it.
    fn run(self);

    /// Whether anybody still needs it.
    fn is_wanted(&self) -> bool {
        true
    }
}

/// From so many waiting jobs on, those that nobody needs any more are dropped: a frontend that stops and starts its rings
/// must not pile them up.
const JOBS_BEFORE_PURGE: usize = 4096;

/// Threads that are started when they are needed and then stay.
pub(in crate::device) struct Pool<J: Job> {
    shared: Arc<Shared<J>>,
    most_threads: usize,
}

struct Shared<J> {
    state: Mutex<State<J>>,
    wake: Condvar,
}

struct State<J> {
    jobs: VecDeque<J>,
    threads: Vec<JoinHandle<()>>,
    /// Threads that wait for a job.
    idle: usize,
    ended: bool,
}

impl<J: Job> Pool<J> {
    /// No thread is started yet.
    pub(in crate::device) fn new(most_threads: usize) -> Self {
        let state = State {
            jobs: VecDeque::new(),
            threads: Vec::new(),
            idle: 0,
            ended: false,
        };
        let shared = Shared {
            state: Mutex::new(state),
            wake: Condvar::new(),
        };
        Self {
            shared: Arc::new(shared),
            most_threads,
        }
    }

    /// Has `job` done by a thread.
    ///
    /// # Errors
    /// The job, when there is no thread and none can be started.
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

    /// Without a new thread the others have more to do, that is all.
    fn start_thread(&self, state: &mut State<J>) {
        let shared = Arc::clone(&self.shared);
        let name = "blocking".to_owned();
        let started = thread::Builder::new()
            .name(name)
            .spawn(move || shared.work());
        state.threads.extend(started);
    }

    /// Jobs that no thread has begun.
    #[cfg(test)]
    pub(in crate::device) fn waiting(&self) -> usize {
        self.shared.lock().jobs.len()
    }

    /// Does what is left to do, and ends the threads.
    pub(in crate::device) fn end(&self) {
        for thread in self.shared.end() {
            // A job that panicked has said so.
            let _ = thread.join();
        }
    }
}

impl<J: Job> Drop for Pool<J> {
    /// Does not wait: it may be one of the pool's own threads that drops it.
    fn drop(&mut self) {
        self.shared.end();
    }
}

impl<J: Job> Shared<J> {
    /// Jobs are run without the lock.
    fn lock(&self) -> MutexGuard<'_, State<J>> {
        lock(&self.state)
    }

    fn work(&self) {
        while let Some(job) = self.next() {
            job.run();
        }
    }

    /// Waits for a job; none when the pool has ended.
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
