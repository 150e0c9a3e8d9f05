//! Executes one batch of requests in ring order, hands blocking ones to the pool, and publishes completions.

use std::sync::Arc;
use std::time::Instant;

use vm_memory::GuestAddressSpace;

use super::super::execute::{Attempt, Outcome, adjacent};
use super::super::guest::View;
use super::super::inflight::Ticket;
use super::super::request::Parsed;
use super::super::ring::{Ring, RingFault, RingGuard};
use super::{BlockingJob, Engine};
use crate::device::meter::Counters;

/// Completions are published when this many bytes of data have accumulated, so that the guest can process the first
/// ones while the others are being executed. For small requests this does not pay off: publishing every 16 of them
/// reduced 4 KiB reads per second by 16 % at queue depth 32 and increased CPU time by 12 %, because of more interrupts.
const PUBLISH_BYTES: u32 = 256 << 10;

/// Maximum number of requests in one job of the pool, which waits for them one after the other. The kernel reads for
/// all of them at the same time, and they are published in this order anyway. One job per request (with a wake-up and
/// an interrupt each) more than halved the reads per second (see [`pool`](super::super::pool)).
const TOGETHER: usize = 8;

/// A batch ends after this many bytes of data, so that the thread's other rings are served. The remaining requests are
/// put back.
const BATCH_BYTES: u64 = 4 << 20;

/// A batch of requests taken from a ring.
pub(super) struct Batch<'b, 'r> {
    pub(super) engine: &'b Arc<Engine>,
    pub(super) guard: &'b mut RingGuard<'r>,
    pub(super) ring: &'b Ring,
    /// The counters of this queue thread.
    pub(super) counters: &'b Counters,
    /// When the batch was taken.
    pub(super) taken: Instant,
    pub(super) memory: View<'b>,
}

/// Requests that are executed but not published, or not handed to the pool yet.
#[derive(Default)]
struct Pending {
    /// Data bytes that are executed but not published.
    due_bytes: u32,
    /// Requests that are executed but not published.
    due: u64,
    /// Data bytes executed in the whole batch.
    total_bytes: u64,
    /// Reads that wait for the disk.
    late: Vec<(Ticket, Parsed)>,
}

impl Batch<'_, '_> {
    /// Serves `requests`, which have consecutive tickets starting with `first`.
    ///
    /// Stops early when the requests are not wanted any more. The halt that caused this abandons the rest.
    ///
    /// # Errors
    /// As for [`RingGuard::publish`]. Even then, all requests have been completed, put back or handed to the pool.
    pub(super) fn answer(mut self, requests: &[Parsed], first: Ticket) -> Result<(), RingFault> {
        let mut pending = Pending::default();
        let mut published = Ok(());
        let mut rest = requests;
        let mut ticket = first;
        while !rest.is_empty() && pending.total_bytes < BATCH_BYTES {
            if !self.is_wanted() {
                return published.and(self.publish(&mut pending));
            }
            let (now, later) = rest.split_at(adjacent(rest));
            self.run(now, ticket, &mut pending);
            if pending.due_bytes >= PUBLISH_BYTES {
                pending.due_bytes = 0;
                // A fault is returned at the end.
                published = published.and(self.publish(&mut pending));
            }
            (rest, ticket) = (later, ticket.later(now.len()));
        }
        self.guard.put_back(rest.len());
        self.hand_over(std::mem::take(&mut pending.late));
        published.and(self.publish(&mut pending))
    }

    fn publish(&mut self, pending: &mut Pending) -> Result<(), RingFault> {
        if pending.due > 0 {
            let due = std::mem::take(&mut pending.due);
            self.counters.took_since(self.taken, due);
        }
        self.guard.publish()
    }

    fn is_wanted(&self) -> bool {
        self.engine.is_wanted(self.ring)
    }

    /// Executes adjacent requests, with one merged read if possible.
    fn run(&mut self, requests: &[Parsed], first: Ticket, pending: &mut Pending) {
        let (disk, memory) = (&self.engine.disk, self.memory);
        if let Some(outcomes) = disk.try_together(requests, &memory) {
            for (index, outcome) in outcomes.enumerate() {
                self.complete(first.later(index), outcome, pending);
            }
            return;
        }
        for (index, parsed) in requests.iter().enumerate() {
            let ticket = first.later(index);
            match disk.try_execute(&|| self.is_wanted(), parsed, &memory) {
                Attempt::Done(outcome) => self.complete(ticket, outcome, pending),
                Attempt::Underway => pending.late.push((ticket, parsed.clone())),
                Attempt::Blocked => self.hand_over(vec![(ticket, parsed.clone())]),
                Attempt::Abandoned => return,
            }
            if pending.late.len() == TOGETHER {
                self.hand_over(std::mem::take(&mut pending.late));
            }
        }
    }

    fn complete(&mut self, ticket: Ticket, outcome: Outcome, pending: &mut Pending) {
        let completion = self.engine.record(outcome, self.counters);
        let len_bytes = completion.used_len_bytes;
        pending.due += 1;
        pending.due_bytes = pending.due_bytes.saturating_add(len_bytes);
        pending.total_bytes += u64::from(len_bytes);
        self.guard.complete(ticket, completion);
    }

    /// Hands requests to the pool. If the pool has no threads, executes them here.
    fn hand_over(&mut self, requests: Vec<(Ticket, Parsed)>) {
        if requests.is_empty() {
            return;
        }
        self.engine.meter.last().took(requests.len());
        let job = BlockingJob {
            engine: Arc::clone(self.engine),
            ring: self.ring.clone(),
            requests,
            epoch: self.guard.epoch(),
            taken: self.taken,
            memory: self.engine.memory.memory().into_inner(),
        };
        if let Err(job) = self.engine.pool.submit(job) {
            for (ticket, parsed) in &job.requests {
                let Some(outcome) = job.execute_blocking(parsed) else {
                    return;
                };
                self.counters.took_since(self.taken, 1);
                let completion = self.engine.record(outcome, self.counters);
                self.guard.complete(*ticket, completion);
            }
        }
    }
}
