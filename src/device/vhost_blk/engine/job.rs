//! Requests that would block the queue's thread, carried out by a thread of the pool.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::execute::{Attempt, Completion, Outcome, Waited};
use super::super::guest::{Memory, View};
use super::super::inflight::Ticket;
use super::super::offload::{Claim, Period};
use super::super::pool::Job;
use super::super::request::Parsed;
use super::super::ring::Ring;
use super::Engine;
use crate::source::RemoteTree;

/// Some requests of one ring, in the order in which they were taken.
pub(in super::super) struct BlockingJob {
    pub(super) engine: Arc<Engine>,
    pub(super) ring: Ring,
    pub(super) requests: Vec<(Ticket, Parsed)>,
    /// When they were taken, as far as the ring goes.
    pub(super) period: Period,
    /// The same by the clock.
    pub(super) taken: Instant,
    /// As it was when the requests were taken: their buffers stay mapped.
    pub(super) memory: Arc<Memory>,
}

/// A job that needs something to be fetched: it waits without a claim, so that a halt does not wait for it.
pub(in super::super) struct FetchingJob {
    job: BlockingJob,
    /// How many answers of the fetcher there had been before it was tried.
    seen: u64,
}

/// How long it waits before it looks again whether it is still wanted.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

impl Job for FetchingJob {
    /// Until something has arrived; then it is tried again, and may come back.
    fn run(self) {
        let engine = Arc::clone(&self.job.engine);
        let Some(remote) = engine.disk.image.remote() else {
            return;
        };
        while self.is_wanted() {
            if remote.wait_for_arrival(self.seen, LOOK_AGAIN) {
                // Only when the pool has ended.
                let _ = engine.pool.submit(self.job);
                return;
            }
        }
    }

    fn is_wanted(&self) -> bool {
        self.job.is_wanted() && self.job.has_reader()
    }
}

/// What has been carried out of a job and not reported. The claim covers it, and all that is done meanwhile.
struct Progress<'j> {
    claim: Claim<'j>,
    completions: Vec<(Ticket, Completion)>,
}

impl Job for BlockingJob {
    fn run(self) {
        self.carry_out();
    }

    fn is_wanted(&self) -> bool {
        self.ring.shared.offload.period() == self.period
    }
}

/// They are answered, or nobody wants the answers any more.
impl Drop for BlockingJob {
    fn drop(&mut self) {
        self.engine.meter.last().left(self.requests.len());
    }
}

impl BlockingJob {
    fn has_reader(&self) -> bool {
        self.engine.is_wanted(&self.ring)
    }

    /// What is done is published before the thread waits for what is not.
    fn carry_out(&self) {
        let counters = self.engine.meter.last();
        let mut progress = None;
        for (index, (ticket, _)) in self.requests.iter().enumerate() {
            if !self.has_reader() {
                break;
            }
            let Some((mut done, outcome)) = self.proceed(progress.take(), index) else {
                return;
            };
            let completion = self.engine.note(outcome, counters);
            counters.took_since(self.taken, 1);
            counters.set_plans(self.engine.disk.image.plans_begun());
            done.completions.push((*ticket, completion));
            progress = Some(done);
        }
        if let Some(done) = progress {
            self.report(done);
        }
    }

    /// Carries request `index` out, at once if that is possible. None when it is not wanted any more, or when it and those
    /// that follow wait for something to be fetched.
    fn proceed<'j>(
        &'j self,
        progress: Option<Progress<'j>>,
        index: usize,
    ) -> Option<(Progress<'j>, Outcome)> {
        let (_, parsed) = &self.requests[index];
        // The first request has just been tried.
        if let Some(progress) = progress {
            let (memory, wanted) = (View::new(&self.memory), || self.has_reader());
            if let Attempt::Done(outcome) = self.engine.disk.try_execute(&wanted, parsed, &memory) {
                return Some((progress, outcome));
            }
            self.report(progress);
        }
        let seen = self.arrivals();
        let (claim, waited) = self.execute(parsed)?;
        match waited {
            Waited::Done(outcome) => {
                let completions = Vec::with_capacity(self.requests.len());
                Some((Progress { claim, completions }, outcome))
            }
            Waited::Fetching => {
                drop(claim);
                self.await_fetch(index, seen);
                None
            }
            Waited::Abandoned => None,
        }
    }

    /// Waits for the disk, if the request needs it. None when the ring was halted since the request was taken.
    fn execute(&self, parsed: &Parsed) -> Option<(Claim<'_>, Waited)> {
        let (disk, shortage) = (&self.engine.disk, &self.engine.shortage);
        let (memory, wanted) = (View::new(&self.memory), &|| self.has_reader());
        let among_others = || disk.execute_while(wanted, parsed, &memory);
        let (claim, waited) = self.execute_during(shortage.read(), among_others)?;
        match &waited {
            Waited::Done(Outcome {
                result: Err(error), ..
            }) if error.is_shortage() => {}
            _ => return Some((claim, waited)),
        }
        drop(claim);
        // Many reads at once hold many files open. One after the other they get by with few.
        let alone = || disk.execute_sparingly(wanted, parsed, &memory);
        self.execute_during(shortage.write(), alone)
    }

    /// Waits for all that the request needs, without a thread that could do it instead. None when it is not wanted any more.
    pub(super) fn execute_patiently(&self, parsed: &Parsed) -> Option<Outcome> {
        let memory = View::new(&self.memory);
        let wanted = &|| self.has_reader();
        loop {
            let seen = self.arrivals();
            match self.engine.disk.execute_while(wanted, parsed, &memory) {
                Waited::Done(outcome) => return Some(outcome),
                Waited::Abandoned => return None,
                Waited::Fetching if !self.has_reader() => return None,
                Waited::Fetching => {
                    let remote = self.engine.disk.image.remote()?;
                    remote.wait_for_arrival(seen, LOOK_AGAIN);
                }
            }
        }
    }

    /// How many answers of the fetcher there have been.
    fn arrivals(&self) -> u64 {
        let remote = self.engine.disk.image.remote();
        remote.map_or(0, RemoteTree::arrivals)
    }

    /// Leaves the requests from `index` on to a thread that waits until more has arrived than `seen`.
    fn await_fetch(&self, index: usize, seen: u64) {
        let requests = self.requests[index..].to_vec();
        // Both jobs leave when they are dropped.
        self.engine.meter.last().took(requests.len());
        let job = Self {
            engine: Arc::clone(&self.engine),
            ring: self.ring.clone(),
            requests,
            period: self.period,
            taken: self.taken,
            memory: Arc::clone(&self.memory),
        };
        if let Err(job) = self.engine.fetching.submit(FetchingJob { job, seen }) {
            // No thread can be started: then this one waits.
            job.run();
        }
    }

    /// Carries a request out while a lock is held. None when the ring was halted since the request was taken.
    ///
    /// The claim comes after the lock: a halt waits for claims, and must not wait for what another ring's request needs.
    fn execute_during<L>(
        &self,
        _lock: L,
        execute: impl FnOnce() -> Waited,
    ) -> Option<(Claim<'_>, Waited)> {
        let claim = self.ring.claim(self.period)?;
        Some((claim, execute()))
    }

    /// Gives the claim up, which must not be held while the ring's lock is waited for: a halt waits for it with the lock.
    fn report(&self, progress: Progress<'_>) {
        if let Err(fault) = self.ring.answer(progress.claim, &progress.completions) {
            self.engine.warn_of_ring(&fault);
        }
    }
}
