//! Coordinates threads of the pool with a ring.
//!
//! A thread of the pool holds a [`Permit`] while it may write to the guest's buffers. Every halt of the ring starts a
//! new [`Epoch`]: permits for earlier epochs are refused from then on, and the halt waits for the permits that were
//! granted. So a halt does not wait for requests that no thread has started.

use super::execute::Completion;
use super::inflight::{InFlight, Ticket};
use super::sync::{AtomicBool, Condvar, Mutex, MutexGuard, Ordering, lock, wait};

/// Counts the halts of a ring. Requests belong to the epoch in which they were taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Epoch(u64);

/// State shared between threads of the pool and the ring.
#[derive(Default)]
pub(super) struct Offload {
    state: Mutex<OffloadState>,
    /// Notified when the last permit is released.
    idle: Condvar,
    /// Whether there are completions. Saves the queue thread from locking `state` if there are none.
    has_completions: AtomicBool,
}

#[derive(Default)]
struct OffloadState {
    epoch: Epoch,
    permits: usize,
    /// Executed requests that have not been moved to the list of requests in flight yet.
    completions: Vec<(Ticket, Completion)>,
}

/// Allows a thread of the pool to execute requests of a ring.
pub struct Permit<'o> {
    offload: &'o Offload,
}

impl Offload {
    /// The current epoch. It does not change while the caller holds the ring's lock.
    pub(super) fn epoch(&self) -> Epoch {
        lock(&self.state).epoch
    }

    /// Grants a permit for requests that were taken in `epoch`. `None` if the ring has been halted since.
    pub(super) fn permit(&self, epoch: Epoch) -> Option<Permit<'_>> {
        let mut state = lock(&self.state);
        (state.epoch == epoch).then(|| {
            state.permits += 1;
            Permit { offload: self }
        })
    }

    /// Moves completions to `in_flight`.
    pub(super) fn collect(&self, in_flight: &mut InFlight) {
        let nothing = !self.has_completions.load(Ordering::Relaxed)
            || !self.has_completions.swap(false, Ordering::Acquire);
        if nothing {
            return;
        }
        for (ticket, completion) in lock(&self.state).completions.drain(..) {
            in_flight.complete(ticket, completion);
        }
    }

    /// Starts a new epoch and waits until all permits of the previous one are released. The caller holds the ring's
    /// lock.
    pub(super) fn halt(&self) {
        let mut state = lock(&self.state);
        state.epoch.0 += 1;
        while state.permits > 0 {
            state = wait(&self.idle, state);
        }
    }

    /// Whether a thread of the pool is executing a request of this ring.
    #[cfg(test)]
    pub(super) fn is_claimed(&self) -> bool {
        lock(&self.state).permits > 0
    }
}

impl Permit<'_> {
    /// Reports completions and releases the permit.
    ///
    /// Both happen under one lock, so that a halt that finds no permits finds these completions.
    pub(super) fn finish(self, completions: &[(Ticket, Completion)]) {
        let mut state = lock(&self.offload.state);
        state.completions.extend_from_slice(completions);
        self.offload.has_completions.store(true, Ordering::Release);
        self.release(&mut state);
        drop(state);
        std::mem::forget(self);
    }

    fn release(&self, state: &mut MutexGuard<'_, OffloadState>) {
        state.permits -= 1;
        if state.permits == 0 {
            self.offload.idle.notify_all();
        }
    }
}

/// Requests that were executed but not reported are executed again after the ring's next start.
impl Drop for Permit<'_> {
    fn drop(&mut self) {
        self.release(&mut lock(&self.offload.state));
    }
}
