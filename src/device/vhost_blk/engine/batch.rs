//! One batch of requests: carried out in the order of the ring, handed to the pool, published.

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

/// Most bytes of data that wait to be published for what comes after them: the guest goes on with the first answers
/// while the last are being made. Small requests are not worth it: publishing every 16 of them cost 16 % of the 4 KiB
/// reads a second at queue depth 32, and 12 % more CPU, because the guest is interrupted more often.
const PUBLISH_BYTES: u32 = 256 << 10;

/// Most requests that one thread of the pool waits for, one after the other. The kernel reads for all of them at once,
/// and they are published in this order anyway; a thread, a wake-up and an interrupt for each cost more than half of the
/// reads a second (see [`pool`](super::super::pool)).
const TOGETHER: usize = 8;

/// Bytes of data after which a batch ends, so that the thread's other rings get their turn. What is left is taken again.
const BATCH_BYTES: u64 = 4 << 20;

/// A batch that has been taken from a ring.
pub(super) struct Batch<'b, 'r> {
    pub(super) engine: &'b Arc<Engine>,
    pub(super) guard: &'b mut RingGuard<'r>,
    pub(super) ring: &'b Ring,
    /// Those of this queue thread.
    pub(super) counters: &'b Counters,
    /// When the batch was taken.
    pub(super) taken: Instant,
    pub(super) memory: View<'b>,
}

/// What has been done and is not published, or not handed over, yet.
#[derive(Default)]
struct Pending {
    /// Data bytes that are done.
    due_bytes: u32,
    /// Requests that are done.
    due: u64,
    /// Data bytes that were done in the whole batch.
    total_bytes: u64,
    /// Reads that wait for a disk.
    late: Vec<(Ticket, Parsed)>,
}

impl Batch<'_, '_> {
    /// Answers `requests`; the first has ticket `first`, and so on.
    ///
    /// Stops early when the answers are not wanted any more. The halt that caused this abandons the rest.
    ///
    /// # Errors
    /// As [`RingGuard::publish`]. What was taken has been completed or put back, or will be completed by the pool, in any
    /// case.
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
                // A fault is told at the end.
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

    /// Answers requests that continue each other, with one read of the disk if that is possible.
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
        let completion = self.engine.note(outcome, self.counters);
        let len_bytes = completion.used_len_bytes;
        pending.due += 1;
        pending.due_bytes = pending.due_bytes.saturating_add(len_bytes);
        pending.total_bytes += u64::from(len_bytes);
        self.guard.complete(ticket, completion);
    }

    /// Has the pool carry requests out.
    fn hand_over(&mut self, requests: Vec<(Ticket, Parsed)>) {
        if requests.is_empty() {
            return;
        }
        self.engine.meter.last().took(requests.len());
        let job = BlockingJob {
            engine: Arc::clone(self.engine),
            ring: self.ring.clone(),
            requests,
            period: self.guard.period(),
            taken: self.taken,
            memory: self.engine.memory.memory().into_inner(),
        };
        if let Err(job) = self.engine.pool.submit(job) {
            for (ticket, parsed) in &job.requests {
                let Some(outcome) = job.execute_patiently(parsed) else {
                    return;
                };
                self.counters.took_since(self.taken, 1);
                let completion = self.engine.note(outcome, self.counters);
                self.guard.complete(*ticket, completion);
            }
        }
    }
}
