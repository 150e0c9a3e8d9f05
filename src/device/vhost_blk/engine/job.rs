//! Requests that would block the queue's thread, carried out by a thread of the pool.

use std::sync::Arc;

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
    /// When they were taken.
    pub(super) period: Period,
    /// As it was when the requests were taken: their buffers stay mapped.
    pub(super) memory: Arc<Memory>,
}

/// The requests of a job that have been carried out and not reported. The claim covers all that is done meanwhile.
struct Progress<'j> {
    job: &'j BlockingJob,
    claim: Claim<'j>,
    completions: Vec<(Ticket, Completion)>,
}

impl Job for BlockingJob {
    fn run(self) {
        if let Some(progress) = Progress::begin(&self) {
            progress.carry_out();
        }
    }

    fn is_wanted(&self) -> bool {
        self.ring.shared.offload.period() == self.period
    }
}

impl BlockingJob {
    fn has_reader(&self) -> bool {
        self.engine.is_wanted(&self.ring)
    }

    /// Waits for what the request needs. None when it is not wanted any more.
    fn execute(&self, parsed: &Parsed) -> Option<Outcome> {
        let memory = View::new(&self.memory);
        let wanted = &|| self.has_reader();
        let outcome = {
            let _reading = self.engine.shortage.read();
            self.engine.disk.execute_while(wanted, parsed, &memory)?
        };
        if !matches!(&outcome.result, Err(error) if error.is_shortage()) {
            return Some(outcome);
        }
        // Many reads at once hold many files open. One after the other they get by with few.
        let _alone = self.engine.shortage.write();
        self.engine.disk.execute_sparingly(wanted, parsed, &memory)
    }
}

impl<'j> Progress<'j> {
    /// None when the ring was halted since the requests were taken.
    fn begin(job: &'j BlockingJob) -> Option<Self> {
        Some(Self {
            claim: job.ring.claim(job.period)?,
            job,
            completions: Vec::with_capacity(job.requests.len()),
        })
    }

    /// What is done is published before the thread waits for what is not.
    fn carry_out(mut self) {
        let job = self.job;
        let memory = View::new(&job.memory);
        for (index, (ticket, parsed)) in job.requests.iter().enumerate() {
            if !job.has_reader() {
                break;
            }
            // The first of them has just been tried.
            let wanted = &|| job.has_reader();
            let tried = (index > 0).then(|| job.engine.disk.try_execute(wanted, parsed, &memory));
            let outcome = if let Some(Attempt::Done(outcome)) = tried {
                outcome
            } else {
                if !self.completions.is_empty() {
                    self.report();
                    let Some(next) = Self::begin(job) else { return };
                    self = next;
                }
                let Some(outcome) = job.execute(parsed) else {
                    break;
                };
                outcome
            };
            let thread = job.engine.counters.len() - 1;
            self.completions
                .push((*ticket, job.engine.note(outcome, thread)));
        }
        self.report();
    }

    /// Gives the claim up, which must not be held while the ring's lock is waited for: a halt waits for it with the lock.
    fn report(self) {
        if let Err(fault) = self.job.ring.answer(self.claim, &self.completions) {
            self.job.engine.warn_of_ring(&fault);
        }
    }
}
