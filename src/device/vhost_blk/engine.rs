//! Batches of requests, from the ring and back to it.
//!
//! What can be answered at once is answered by the queue's thread; what would block goes to a pool, and the thread
//! goes on. Queues share no lock on the way of what is answered at once.

mod batch;
mod job;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, RwLock};
use std::time::Instant;

use virtio_queue::DescriptorChain;
use vm_memory::GuestAddressSpace;

use super::super::log_limit::{LogLimit, Trouble, more_like_it};
use super::super::meter::{Counters, Meter};
use super::execute::{Completion, Disk, Outcome};
use super::guest::{SharedMemory, View};
use super::idle::IdleWakes;
use super::inflight::Ticket;
use super::poller::Poller;
use super::pool::Pool;
use super::request::{Parsed, parse};
use super::ring::{BATCH, Found, Ring, RingFault, RingGuard, WhenEmpty};
use batch::Batch;
pub(super) use job::{BlockingJob, FetchingJob};

/// Batches between two looks at which rings are in use.
const ROUNDS: usize = 64;

/// Enough for a disk's queue to be deep, few enough to cost nothing.
const BLOCKING_THREADS_MAX: usize = 16;

/// What all queues of one VM have in common.
pub(super) struct Engine {
    pub(super) disk: Disk,
    pub(super) disk_len_bytes: u64,
    pub(super) memory: SharedMemory,
    /// Counters for each queue thread, and the last ones for the pool.
    pub(super) meter: Meter,
    pub(super) limit: LogLimit,
    pub(super) pool: Pool<BlockingJob>,
    /// Has one thread, which waits for all that is to be fetched.
    pub(super) fetching: Pool<FetchingJob>,
    /// Threads of the pool read side by side; one that found no file descriptors left reads alone.
    shortage: RwLock<()>,
    /// The frontend has left: no more requests are carried out.
    pub(super) ended: AtomicBool,
}

/// What each queue thread has for itself.
pub(super) struct QueueThread {
    /// Which of the threads.
    pub(super) index: usize,
    pub(super) poller: Poller,
    pub(super) idle_wakes: IdleWakes,
}

impl Engine {
    pub(super) fn new(disk: Disk, memory: SharedMemory, meter: Meter) -> Self {
        Self {
            disk_len_bytes: disk.image.len_bytes(),
            disk,
            memory,
            meter,
            limit: LogLimit::new(),
            pool: Pool::new(BLOCKING_THREADS_MAX),
            fetching: Pool::new(1),
            shortage: RwLock::new(()),
            ended: AtomicBool::new(false),
        }
    }

    /// Whether requests of `ring` should still be carried out.
    fn is_wanted(&self, ring: &Ring) -> bool {
        !ring.is_halting() && !self.ended.load(Ordering::Relaxed)
    }

    /// Serves a thread's rings until all are empty and the guest has been asked to kick, or the frontend has left. A guest
    /// can make requests for ever, and rings can overlap so that each makes requests for the next.
    pub(super) fn serve(self: &Arc<Self>, rings: &[Ring], thread: &mut QueueThread) {
        thread.poller.woke();
        let mut in_use = Vec::with_capacity(rings.len());
        let mut rounds = 0;
        loop {
            in_use.clear();
            in_use.extend(rings.iter().filter(|ring| ring.is_running()));
            let before = rounds;
            rounds += (0..ROUNDS)
                .take_while(|_| self.serve_once(&in_use, thread))
                .count();
            if rounds < before + ROUNDS || self.ended.load(Ordering::Relaxed) {
                break;
            }
        }
        thread.idle_wakes.woke(rounds > 0);
        thread.poller.sleeps();
    }

    /// Gives every ring its batch; says whether there may be more.
    fn serve_once(self: &Arc<Self>, rings: &[&Ring], thread: &mut QueueThread) -> bool {
        self.serve_batches(rings, WhenEmpty::LeaveQuiet, thread.index)
            || (self.wait(rings, thread)
                && self.serve_batches(rings, WhenEmpty::LeaveQuiet, thread.index))
            || self.serve_batches(rings, WhenEmpty::AskForKick, thread.index)
    }

    fn wait(&self, rings: &[&Ring], thread: &mut QueueThread) -> bool {
        thread
            .poller
            .answered(self.meter.of(thread.index).requests());
        let guard = self.memory.memory();
        let memory = View::new(&guard);
        thread
            .poller
            .wait(|| rings.iter().any(|ring| ring.has_requests(&memory)))
    }

    /// Says whether any ring had requests.
    fn serve_batches(
        self: &Arc<Self>,
        rings: &[&Ring],
        when_empty: WhenEmpty,
        thread: usize,
    ) -> bool {
        let mut worked = false;
        // A ring that is being halted is looked at again after its next start, and its lock is needed elsewhere.
        for ring in rings.iter().filter(|ring| self.is_wanted(ring)) {
            match self.serve_batch(&mut ring.lock(), ring, when_empty, thread) {
                Ok(found) => worked |= found == Found::Requests,
                Err(fault) => {
                    worked |= matches!(fault, RingFault::Signal(_));
                    self.warn_of_ring(&fault);
                }
            }
        }
        worked
    }

    /// The ring's lock is held from the look at it to the publishing of what was answered at once.
    fn serve_batch(
        self: &Arc<Self>,
        guard: &mut RingGuard<'_>,
        ring: &Ring,
        when_empty: WhenEmpty,
        thread: usize,
    ) -> Result<Found, RingFault> {
        let mapped = self.memory.memory();
        let memory = View::new(&mapped);
        let mut chains = Vec::with_capacity(BATCH);
        let (found, first) = guard.collect(&memory, when_empty, &mut chains)?;
        if found != Found::Requests {
            return Ok(found);
        }
        if !std::ptr::eq(&raw const *mapped, &raw const *self.memory.memory()) {
            // The frontend added memory after this thread had taken hold of it and before the guest made these requests,
            // which may well use the new part. What was there before the requests must be looked up after them.
            guard.put_back(chains.len());
            return Ok(Found::Requests);
        }
        self.answer(guard, ring, chains, first, thread)?;
        Ok(found)
    }

    fn answer(
        self: &Arc<Self>,
        guard: &mut RingGuard<'_>,
        ring: &Ring,
        chains: Vec<DescriptorChain<&View<'_>>>,
        first: Ticket,
        thread: usize,
    ) -> Result<(), RingFault> {
        let mapped = self.memory.memory();
        let memory = View::new(&mapped);
        // All of them before the first is carried out: what the guest's CPU has just written is fetched at once that way,
        // not a line at a time between system calls.
        let parse = |chain| parse(chain, self.disk_len_bytes);
        let requests: Vec<Parsed> = chains.into_iter().map(parse).collect();
        let batch = Batch {
            engine: self,
            guard,
            ring,
            counters: self.meter.of(thread),
            taken: Instant::now(),
            memory,
        };
        batch.answer(&requests, first)
    }

    /// Counts and tells what came of a request.
    fn note(&self, outcome: Outcome, counters: &Counters) -> Completion {
        counters.count(outcome.result.as_ref().ok().copied());
        if let Err(error) = &outcome.result {
            let culprit = error.culprit(&self.disk.image);
            tell(self.limit.pass_request(culprit), error);
        }
        outcome.completion
    }

    fn warn_of_ring(&self, fault: &RingFault) {
        let trouble = match fault {
            RingFault::Signal(_) => Trouble::Signal,
            RingFault::Broken(_) | RingFault::Size { .. } => Trouble::Ring,
        };
        self.warn(trouble, fault);
    }

    fn warn(&self, trouble: Trouble, error: &dyn std::error::Error) {
        tell(self.limit.pass(trouble), error);
    }
}

/// Logs, as the limit has it.
fn tell(passed: Option<u64>, error: &dyn std::error::Error) {
    if let Some(dropped) = passed {
        tracing::warn!("{error}{}", more_like_it(dropped));
    }
}

#[cfg(test)]
mod tests;
