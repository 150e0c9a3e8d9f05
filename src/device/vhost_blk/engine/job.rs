//! Blocking requests, executed by a thread of the pool.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::execute::{Attempt, Completion, Outcome, Waited};
use super::super::guest::{Memory, View};
use super::super::inflight::Ticket;
use super::super::offload::{Epoch, Permit};
use super::super::pool::Job;
use super::super::request::Parsed;
use super::super::ring::Ring;
use super::Engine;
use crate::source::RemoteTree;

/// Requests of one ring, in the order in which they were taken.
pub(in super::super) struct BlockingJob {
    pub(super) engine: Arc<Engine>,
    pub(super) ring: Ring,
    pub(super) requests: Vec<(Ticket, Parsed)>,
    /// The ring's epoch in which they were taken.
    pub(super) epoch: Epoch,
    /// The time when they were taken.
    pub(super) taken: Instant,
    /// The guest memory when the requests were taken, so that their buffers stay mapped.
    pub(super) memory: Arc<Memory>,
}

/// A job that waits for a fetch. It holds no permit, so that a halt does not wait for it.
pub(in super::super) struct FetchingJob {
    job: BlockingJob,
    /// The fetcher's number of answers before the job was last tried.
    seen: u64,
}

/// Interval for checking whether the job is still wanted.
const RECHECK_INTERVAL: Duration = Duration::from_millis(200);

impl Job for FetchingJob {
    /// Waits until something has arrived, and submits the job again. It may come back here.
    fn run(self) {
        let engine = Arc::clone(&self.job.engine);
        let Some(remote) = engine.disk.image.remote() else {
            return;
        };
        while self.is_wanted() {
            if remote.wait_for_arrival(self.seen, RECHECK_INTERVAL) {
                // An error means that the pool has ended.
                let _ = engine.pool.submit(self.job);
                return;
            }
        }
    }

    fn is_wanted(&self) -> bool {
        self.job.is_wanted() && self.job.has_reader()
    }
}

/// Executed requests of a job that are not reported yet, and the permit under which they were executed.
struct Progress<'j> {
    permit: Permit<'j>,
    completions: Vec<(Ticket, Completion)>,
}

impl Job for BlockingJob {
    fn run(self) {
        self.execute_all();
    }

    fn is_wanted(&self) -> bool {
        self.ring.shared.offload.epoch() == self.epoch
    }
}

/// The requests have been completed or are not wanted any more.
impl Drop for BlockingJob {
    fn drop(&mut self) {
        self.engine.meter.last().left(self.requests.len());
    }
}

impl BlockingJob {
    fn has_reader(&self) -> bool {
        self.engine.is_wanted(&self.ring)
    }

    /// Executes the requests. Completions are published before the thread waits for the next request.
    fn execute_all(&self) {
        let counters = self.engine.meter.last();
        let mut progress = None;
        for (index, (ticket, _)) in self.requests.iter().enumerate() {
            if !self.has_reader() {
                break;
            }
            let Some((mut done, outcome)) = self.proceed(progress.take(), index) else {
                return;
            };
            let completion = self.engine.record(outcome, counters);
            counters.took_since(self.taken, 1);
            counters.set_plans(self.engine.disk.image.plans_begun());
            done.completions.push((*ticket, completion));
            progress = Some(done);
        }
        if let Some(done) = progress {
            self.report(done);
        }
    }

    /// Executes request `index`, without waiting if possible. `None` if it is not wanted any more, or if it and the
    /// following ones have to wait for a fetch.
    fn proceed<'j>(
        &'j self,
        progress: Option<Progress<'j>>,
        index: usize,
    ) -> Option<(Progress<'j>, Outcome)> {
        let (_, parsed) = &self.requests[index];
        // The queue's thread has already tried the first request without waiting.
        if let Some(progress) = progress {
            let (memory, has_reader) = (View::new(&self.memory), || self.has_reader());
            if let Attempt::Done(outcome) =
                self.engine.disk.try_execute(&has_reader, parsed, &memory)
            {
                return Some((progress, outcome));
            }
            self.report(progress);
        }
        let seen = self.arrivals();
        let (permit, waited) = self.execute(parsed)?;
        match waited {
            Waited::Done(outcome) => {
                let completions = Vec::with_capacity(self.requests.len());
                Some((
                    Progress {
                        permit,
                        completions,
                    },
                    outcome,
                ))
            }
            Waited::Fetching => {
                drop(permit);
                self.await_fetch(index, seen);
                None
            }
            Waited::Abandoned => None,
        }
    }

    /// Executes a request and waits for the disk. `None` if the ring was halted since the request was taken.
    fn execute(&self, parsed: &Parsed) -> Option<(Permit<'_>, Waited)> {
        let (disk, shortage) = (&self.engine.disk, &self.engine.shortage);
        let (memory, has_reader) = (View::new(&self.memory), &|| self.has_reader());
        let among_others = || disk.execute_while(has_reader, parsed, &memory);
        let (permit, waited) = self.execute_during(shortage.read(), among_others)?;
        match &waited {
            Waited::Done(Outcome {
                result: Err(error), ..
            }) if error.is_shortage() => {}
            _ => return Some((permit, waited)),
        }
        drop(permit);
        // Concurrent reads hold many files open. Sequential reads need only few descriptors.
        let alone = || disk.execute_sparingly(has_reader, parsed, &memory);
        self.execute_during(shortage.write(), alone)
    }

    /// Executes a request in the queue's thread, when the pool has no threads, and waits for everything it needs.
    /// `None` if it is not wanted any more.
    pub(super) fn execute_blocking(&self, parsed: &Parsed) -> Option<Outcome> {
        let memory = View::new(&self.memory);
        let has_reader = &|| self.has_reader();
        loop {
            let seen = self.arrivals();
            match self.engine.disk.execute_while(has_reader, parsed, &memory) {
                Waited::Done(outcome) => return Some(outcome),
                Waited::Abandoned => return None,
                Waited::Fetching if !self.has_reader() => return None,
                Waited::Fetching => {
                    let remote = self.engine.disk.image.remote()?;
                    remote.wait_for_arrival(seen, RECHECK_INTERVAL);
                }
            }
        }
    }

    /// The fetcher's number of answers so far.
    fn arrivals(&self) -> u64 {
        let remote = self.engine.disk.image.remote();
        remote.map_or(0, RemoteTree::arrivals)
    }

    /// Moves the requests from `index` on to a job that waits until the fetcher has more than `seen` answers.
    fn await_fetch(&self, index: usize, seen: u64) {
        let requests = self.requests[index..].to_vec();
        // Both jobs decrement the counter when they are dropped.
        self.engine.meter.last().took(requests.len());
        let job = Self {
            engine: Arc::clone(&self.engine),
            ring: self.ring.clone(),
            requests,
            epoch: self.epoch,
            taken: self.taken,
            memory: Arc::clone(&self.memory),
        };
        if let Err(job) = self.engine.fetching.submit(FetchingJob { job, seen }) {
            // No thread can be started, so wait in this one.
            job.run();
        }
    }

    /// Executes a request while a lock is held. `None` if the ring was halted since the request was taken.
    ///
    /// The permit is taken after the lock: a halt waits for permits, and must not wait for requests of other rings.
    fn execute_during<L>(
        &self,
        _lock: L,
        execute: impl FnOnce() -> Waited,
    ) -> Option<(Permit<'_>, Waited)> {
        let permit = self.ring.permit(self.epoch)?;
        Some((permit, execute()))
    }

    /// Releases the permit and publishes. The permit must not be held while waiting for the ring's lock, because a halt
    /// holds the lock while it waits for permits.
    fn report(&self, progress: Progress<'_>) {
        if let Err(fault) = self.ring.answer(progress.permit, &progress.completions) {
            self.engine.warn_of_ring(&fault);
        }
    }
}
