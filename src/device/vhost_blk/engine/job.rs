//! Requests that would block the queue's thread, carried out by a thread of the pool.

use std::sync::Arc;
use std::time::Instant;

use super::super::execute::{Attempt, Completion, Outcome};
use super::super::guest::{Memory, View};
use super::super::inflight::Ticket;
use super::super::offload::{Claim, Period};
use super::super::pool::Job;
use super::super::request::Parsed;
use super::super::ring::Ring;
use super::Engine;

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
        for (ticket, parsed) in &self.requests {
            if !self.has_reader() {
                break;
            }
            let Some((mut done, outcome)) = self.proceed(progress.take(), parsed) else {
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

    /// Carries a request out, at once if that is possible. None when it is not wanted any more.
    fn proceed<'j>(
        &'j self,
        progress: Option<Progress<'j>>,
        parsed: &Parsed,
    ) -> Option<(Progress<'j>, Outcome)> {
        // The first request has just been tried.
        if let Some(progress) = progress {
            let (memory, wanted) = (View::new(&self.memory), || self.has_reader());
            if let Attempt::Done(outcome) = self.engine.disk.try_execute(&wanted, parsed, &memory) {
                return Some((progress, outcome));
            }
            self.report(progress);
        }
        let (claim, outcome) = self.execute(parsed)?;
        let completions = Vec::with_capacity(self.requests.len());
        Some((Progress { claim, completions }, outcome))
    }

    /// Waits for what the request needs. None when it is not wanted any more.
    fn execute(&self, parsed: &Parsed) -> Option<(Claim<'_>, Outcome)> {
        let (disk, shortage) = (&self.engine.disk, &self.engine.shortage);
        let (memory, wanted) = (View::new(&self.memory), &|| self.has_reader());
        let among_others = || disk.execute_while(wanted, parsed, &memory);
        let (claim, outcome) = self.execute_during(shortage.read(), among_others)?;
        if !matches!(&outcome.result, Err(error) if error.is_shortage()) {
            return Some((claim, outcome));
        }
        drop(claim);
        // Many reads at once hold many files open. One after the other they get by with few.
        let alone = || disk.execute_sparingly(wanted, parsed, &memory);
        self.execute_during(shortage.write(), alone)
    }

    /// Carries a request out while a lock is held. None when the ring was halted since the request was taken, too.
    ///
    /// The claim comes after the lock: a halt waits for claims, and must not wait for what another ring's request needs.
    fn execute_during<L>(
        &self,
        _lock: L,
        execute: impl FnOnce() -> Option<Outcome>,
    ) -> Option<(Claim<'_>, Outcome)> {
        let claim = self.ring.claim(self.period)?;
        execute().map(|outcome| (claim, outcome))
    }

    /// Gives the claim up, which must not be held while the ring's lock is waited for: a halt waits for it with the lock.
    fn report(&self, progress: Progress<'_>) {
        if let Err(fault) = self.ring.answer(progress.claim, &progress.completions) {
            self.engine.warn_of_ring(&fault);
        }
    }
}
