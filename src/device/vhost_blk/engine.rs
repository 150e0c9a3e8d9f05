//! Batches of requests, from the ring and back to it.
//!
//! What can be answered at once is answered by the queue's thread; what would block goes to a pool, and the thread
//! goes on. Queues share no lock on the way of what is answered at once.

mod batch;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use virtio_queue::DescriptorChain;
use vm_memory::GuestAddressSpace;

use super::super::log_limit::{LogLimit, Trouble};
use super::execute::{Attempt, Disk, Done, Outcome};
use super::guest::{Memory, SharedMemory, View};
use super::inflight::Ticket;
use super::poller::Poller;
use super::pool::{Job, Pool};
use super::request::{Parsed, parse};
use super::ring::{BATCH, Look, Quiet, Ring, RingFault, Turn};
use super::stats::Counters;
use batch::Batch;

/// Batches between two looks at which rings are in use.
const ROUNDS: usize = 64;

/// Enough for a disk's queue to be deep, few enough to cost nothing.
const BLOCKING_THREADS_MAX: usize = 16;

/// What all queues of one VM have in common.
pub(super) struct Engine {
    pub(super) disk: Disk,
    pub(super) disk_len_bytes: u64,
    pub(super) memory: SharedMemory,
    /// One for each queue thread, and one for the pool.
    pub(super) counters: Vec<Counters>,
    pub(super) limit: LogLimit,
    pub(super) pool: Pool<Handed>,
    /// The frontend has left: nobody is served any more.
    pub(super) ended: AtomicBool,
}

/// What each queue thread has for itself.
pub(super) struct Habit {
    /// Which of the threads.
    pub(super) thread: usize,
    pub(super) poller: Poller,
}

impl Engine {
    pub(super) fn new(disk: Disk, memory: SharedMemory, threads: usize) -> Self {
        Self {
            disk_len_bytes: disk.image.len_bytes(),
            disk,
            memory,
            counters: (0..=threads).map(|_| Counters::default()).collect(),
            limit: LogLimit::new(),
            pool: Pool::new(BLOCKING_THREADS_MAX),
            ended: AtomicBool::new(false),
        }
    }

    /// Serves a thread's rings until all are empty and the guest has been asked to kick, or the frontend has left: who
    /// holds the memory can make requests for ever, and two rings can lie so that each makes the other's requests.
    pub(super) fn serve(self: &Arc<Self>, rings: &[Ring], habit: &mut Habit) {
        habit.poller.woke();
        let mut in_use = Vec::with_capacity(rings.len());
        loop {
            in_use.clear();
            in_use.extend(rings.iter().filter(|ring| ring.is_running()));
            let busy = (0..ROUNDS).all(|_| self.serve_once(&in_use, habit));
            if !busy || self.ended.load(Ordering::Relaxed) {
                return habit.poller.sleeps();
            }
        }
    }

    /// Gives every ring its batch; says whether there may be more.
    fn serve_once(self: &Arc<Self>, rings: &[&Ring], habit: &mut Habit) -> bool {
        self.serve_batches(rings, Quiet::Poll, habit.thread)
            || (self.wait(rings, &mut habit.poller)
                && self.serve_batches(rings, Quiet::Poll, habit.thread))
            || self.serve_batches(rings, Quiet::Kick, habit.thread)
    }

    fn wait(&self, rings: &[&Ring], poller: &mut Poller) -> bool {
        let guard = self.memory.memory();
        let memory = View::new(&guard);
        poller.wait(|| rings.iter().any(|ring| ring.has_requests(&memory)))
    }

    /// Says whether any ring had requests.
    fn serve_batches(self: &Arc<Self>, rings: &[&Ring], quiet: Quiet, thread: usize) -> bool {
        let mut worked = false;
        for ring in rings {
            // Taken anew for each batch, so that one who waits to stop the ring gets his chance.
            match self.serve_batch(&mut ring.turn(), ring, quiet, thread) {
                Ok(look) => worked |= look == Look::Work,
                Err(fault) => {
                    worked |= matches!(fault, RingFault::Signal(_));
                    self.warn_of_ring(&fault);
                }
            }
        }
        worked
    }

    /// The ring's lock is held to collect and to publish, not while the disk is read.
    fn serve_batch(
        self: &Arc<Self>,
        turn: &mut Turn<'_>,
        ring: &Ring,
        quiet: Quiet,
        thread: usize,
    ) -> Result<Look, RingFault> {
        let guard = self.memory.memory();
        let memory = View::new(&guard);
        let mut chains = Vec::with_capacity(BATCH);
        let (look, first) = turn.collect(&memory, quiet, &mut chains)?;
        if look != Look::Work {
            return Ok(look);
        }
        if !std::ptr::eq(&raw const *guard, &raw const *self.memory.memory()) {
            // The frontend added memory after this thread had taken hold of it and before the guest made these requests,
            // which may well use the new part. What was there before the requests must be looked up after them.
            turn.put_back(chains.len());
            return Ok(Look::Work);
        }
        self.answer(turn, ring, chains, first, thread)?;
        Ok(look)
    }

    fn answer(
        self: &Arc<Self>,
        turn: &mut Turn<'_>,
        ring: &Ring,
        chains: Vec<DescriptorChain<&View<'_>>>,
        first: Ticket,
        thread: usize,
    ) -> Result<(), RingFault> {
        let guard = self.memory.memory();
        let memory = View::new(&guard);
        // All of them before the first is carried out: what the guest's CPU has just written is fetched at once that way,
        // not a line at a time between system calls.
        let parse = |chain| parse(chain, self.disk_len_bytes);
        let requests: Vec<Parsed> = chains.into_iter().map(parse).collect();
        let batch = Batch {
            engine: self,
            turn,
            ring,
            thread,
            memory,
        };
        batch.answer(&requests, first)
    }

    /// Counts and tells what came of a request.
    fn note(&self, outcome: Outcome, thread: usize) -> Done {
        if let Some(counters) = self.counters.get(thread) {
            counters.count(&outcome);
        }
        if let Err(error) = &outcome.result {
            let culprit = error.culprit(&self.disk.image);
            tell(self.limit.pass_request(culprit), error);
        }
        outcome.done
    }

    fn warn_of_ring(&self, fault: &RingFault) {
        let trouble = match fault {
            RingFault::Signal(_) => Trouble::Signal,
            RingFault::Broken(_) => Trouble::Ring,
        };
        self.warn(trouble, fault);
    }

    fn warn(&self, trouble: Trouble, error: &dyn std::error::Error) {
        tell(self.limit.pass(trouble), error);
    }
}

/// Logs, as the limit has it.
fn tell(passed: Option<u64>, error: &dyn std::error::Error) {
    match passed {
        Some(0) => tracing::warn!("{error}"),
        Some(dropped) => tracing::warn!("{error} ({dropped} more like it)"),
        None => {}
    }
}

/// Requests that would block the queue's thread.
pub(super) struct Handed {
    engine: Arc<Engine>,
    ring: Ring,
    requests: Vec<(Ticket, Parsed)>,
    /// As it was when the requests were taken: their buffers stay mapped.
    memory: Arc<Memory>,
}

impl Handed {
    /// What is done is published before the thread waits for what is not.
    fn carry_out(&self) {
        let memory = View::new(&self.memory);
        let disk = &self.engine.disk;
        let mut answers = Vec::with_capacity(self.requests.len());
        for (index, (ticket, parsed)) in self.requests.iter().enumerate() {
            // The first of them has just been tried.
            let outcome = match (index > 0).then(|| disk.try_execute(parsed, &memory)) {
                Some(Attempt::Done(outcome)) => outcome,
                _ => {
                    self.deliver(&mut answers);
                    disk.execute(parsed, &memory)
                }
            };
            let thread = self.engine.counters.len() - 1;
            answers.push((*ticket, self.engine.note(outcome, thread)));
        }
        self.deliver(&mut answers);
    }

    fn deliver(&self, answers: &mut Vec<(Ticket, Done)>) {
        if answers.is_empty() {
            return;
        }
        // The ring lies in the memory of now.
        let memory = self.engine.memory.memory();
        if let Err(fault) = self.ring.answer(&View::new(&memory), answers) {
            self.engine.warn_of_ring(&fault);
        }
        answers.clear();
    }
}

impl Job for Handed {
    fn run(self) {
        self.carry_out();
    }
}

#[cfg(test)]
mod tests;
