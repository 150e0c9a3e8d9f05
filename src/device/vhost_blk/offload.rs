//! What threads of the pool do for one ring, and how it is ended.
//!
//! A thread of the pool holds a [`Claim`] while it may write to the guest's buffers. Every halt of the ring begins a new
//! [`Period`]: claims for an earlier one are refused from then on, and the halt waits for those that were granted. So it
//! does not wait for requests that no thread has begun.

use super::execute::Completion;
use super::inflight::{InFlight, Ticket};
use super::sync::{AtomicBool, Condvar, Mutex, MutexGuard, Ordering, lock, wait};

/// The time between two halts of a ring. Never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Period(u64);

/// What threads of the pool share with the ring.
#[derive(Default)]
pub(super) struct Offload {
    state: Mutex<State>,
    /// Notified when the last claim ends.
    idle: Condvar,
    /// Whether there are completions: spares the queue thread a lock.
    has_completions: AtomicBool,
}

#[derive(Default)]
struct State {
    period: Period,
    claims: usize,
    /// Requests that were carried out and are not yet entered in the list of requests in flight.
    completions: Vec<(Ticket, Completion)>,
}

/// The right of a thread of the pool to carry out requests of a ring.
pub struct Claim<'o> {
    offload: &'o Offload,
}

impl Offload {
    /// The current period. Stable while the caller holds the ring's lock.
    pub(super) fn period(&self) -> Period {
        lock(&self.state).period
    }

    /// Grants the right to carry out requests that were taken in `period`; none if the ring has been halted since.
    pub(super) fn claim(&self, period: Period) -> Option<Claim<'_>> {
        let mut state = lock(&self.state);
        (state.period == period).then(|| {
            state.claims += 1;
            Claim { offload: self }
        })
    }

    /// Enters in `in_flight` what has been carried out.
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

    /// Begins a new period, and waits until no claim of the last one is left. The caller holds the ring's lock.
    pub(super) fn halt(&self) {
        let mut state = lock(&self.state);
        state.period.0 += 1;
        while state.claims > 0 {
            state = wait(&self.idle, state);
        }
    }

    /// Whether a thread of the pool is carrying out a request of this ring.
    #[cfg(test)]
    pub(super) fn is_claimed(&self) -> bool {
        lock(&self.state).claims > 0
    }
}

impl Claim<'_> {
    /// Reports what has been carried out, and gives the claim up.
    ///
    /// Both under one lock: a halt that finds no claim finds these completions.
    pub(super) fn finish(self, completions: &[(Ticket, Completion)]) {
        let mut state = lock(&self.offload.state);
        state.completions.extend_from_slice(completions);
        self.offload.has_completions.store(true, Ordering::Release);
        self.release(&mut state);
        drop(state);
        std::mem::forget(self);
    }

    fn release(&self, state: &mut MutexGuard<'_, State>) {
        state.claims -= 1;
        if state.claims == 0 {
            self.offload.idle.notify_all();
        }
    }
}

/// What was carried out and not reported is lost, and carried out again after the ring's next start.
impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.release(&mut lock(&self.offload.state));
    }
}
