//! Serves batches of requests.
//!
//! The queue's thread executes requests that do not block, and hands the others to a pool. Requests that do not block
//! take no lock that is shared between queues.

mod batch;
mod job;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, RwLock};
use std::time::Instant;

use virtio_queue::DescriptorChain;
use vm_memory::GuestAddressSpace;

use super::super::log_limit::{LogKind, LogLimit, and_similar};
use super::super::meter::{Counters, Meter};
use super::execute::{BlkDisk, Completion, Outcome};
use super::guest::{SharedMemory, View};
use super::idle::IdleWakes;
use super::inflight::Ticket;
use super::poller::Poller;
use super::pool::Pool;
use super::request::{Parsed, parse};
use super::ring::{BATCH, Collected, Ring, RingFault, RingGuard, WhenEmpty};
use batch::Batch;
pub(super) use job::{BlockingJob, FetchingJob};

/// Number of rounds between two checks of which rings are running.
const ROUNDS: usize = 64;

/// Enough threads to keep a disk's queue filled, few enough to be cheap.
const BLOCKING_THREADS_MAX: usize = 16;

/// The state shared by all queues of one VM.
pub(super) struct Engine {
    pub(super) disk: BlkDisk,
    pub(super) disk_len_bytes: u64,
    pub(super) memory: SharedMemory,
    /// Counters for each queue thread; the last ones are for the pool.
    pub(super) meter: Meter,
    pub(super) limit: LogLimit,
    pub(super) pool: Pool<BlockingJob>,
    /// A pool with one thread, which waits for fetches.
    pub(super) fetching: Pool<FetchingJob>,
    /// Threads of the pool normally share this lock. A thread that ran out of file descriptors takes it exclusively and
    /// reads alone.
    shortage: RwLock<()>,
    /// The frontend has disconnected: requests are not executed any more.
    pub(super) ended: AtomicBool,
}

/// The state of one queue thread.
pub(super) struct QueueThread {
    /// Its index.
    pub(super) index: usize,
    pub(super) poller: Poller,
    pub(super) idle_wakes: IdleWakes,
}

impl Engine {
    pub(super) fn new(disk: BlkDisk, memory: SharedMemory, meter: Meter) -> Self {
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

    /// Whether requests of `ring` should still be executed.
    fn is_wanted(&self, ring: &Ring) -> bool {
        !ring.is_halting() && !self.ended.load(Ordering::Relaxed)
    }

    /// Serves a thread's rings until all are empty with notifications enabled, or until the frontend has disconnected.
    /// This may not end otherwise: a guest can submit requests for ever, and rings can overlap so that serving one
    /// fills the next.
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

    /// Serves one batch of every ring; returns whether there may be more requests.
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

    /// Returns whether any ring had requests.
    fn serve_batches(
        self: &Arc<Self>,
        rings: &[&Ring],
        when_empty: WhenEmpty,
        thread: usize,
    ) -> bool {
        let mut worked = false;
        // Skip rings that are being halted: the halt needs their lock, and they are checked again after their next
        // start.
        for ring in rings.iter().filter(|ring| self.is_wanted(ring)) {
            match self.serve_batch(&mut ring.lock(), ring, when_empty, thread) {
                Ok(found) => worked |= found == Collected::Requests,
                Err(fault) => {
                    worked |= matches!(fault, RingFault::Signal(_));
                    self.warn_of_ring(&fault);
                }
            }
        }
        worked
    }

    /// Serves one batch. The ring's lock is held from taking the requests until publishing those that did not block.
    fn serve_batch(
        self: &Arc<Self>,
        guard: &mut RingGuard<'_>,
        ring: &Ring,
        when_empty: WhenEmpty,
        thread: usize,
    ) -> Result<Collected, RingFault> {
        let mapped = self.memory.memory();
        let memory = View::new(&mapped);
        let mut chains = Vec::with_capacity(BATCH);
        let (found, first) = guard.collect(&memory, when_empty, &mut chains)?;
        if found != Collected::Requests {
            return Ok(found);
        }
        if !std::ptr::eq(&raw const *mapped, &raw const *self.memory.memory()) {
            // The frontend changed the memory after this thread loaded it, and the requests may use new memory. Put
            // them back and start again: the memory must be loaded after the requests were seen.
            guard.put_back(chains.len());
            return Ok(Collected::Requests);
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
        // Parse all requests before executing the first one: the cache misses on data just written by the guest's CPU
        // then overlap, instead of occurring one by one between system calls.
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

    /// Counts the result of a request and logs errors.
    fn record(&self, outcome: Outcome, counters: &Counters) -> Completion {
        counters.count(outcome.result.as_ref().ok().copied());
        if let Err(error) = &outcome.result {
            let culprit = error.culprit(&self.disk.image);
            log(self.limit.pass_request(culprit), error);
        }
        outcome.completion
    }

    fn warn_of_ring(&self, fault: &RingFault) {
        let kind = match fault {
            RingFault::Signal(_) => LogKind::Signal,
            RingFault::Broken(_) | RingFault::Size { .. } => LogKind::Ring,
        };
        self.warn(kind, fault);
    }

    fn warn(&self, kind: LogKind, error: &dyn std::error::Error) {
        log(self.limit.pass(kind), error);
    }
}

/// Logs an error, unless the limit suppresses it (`None`).
fn log(passed: Option<u64>, error: &dyn std::error::Error) {
    if let Some(dropped) = passed {
        tracing::warn!("{error}{}", and_similar(dropped));
    }
}

#[cfg(test)]
mod tests;
