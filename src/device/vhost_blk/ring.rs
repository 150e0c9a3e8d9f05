//! A virtqueue that survives crashes of the process that serves it.
//!
//! The process may be killed at any instruction. The ring in guest memory remains, and a new process resumes from it.
//! Five rules guarantee that no request is lost and no request is completed twice:
//!
//! 1. **Published requests are a prefix.** Whenever `used.idx == u` is visible, `used[0..u)` are exactly the heads
//!    `avail[0..u)`, and their data and status bytes have been written. Requests may be executed in any order and by
//!    any thread, but [`RingGuard::publish`] only returns the front of the list that [`RingGuard::collect`] filled.
//! 2. **Resume from the prefix.** When a ring is set up, `next_avail = next_used = used.idx`, read from guest memory.
//!    By rule 1, exactly the requests before that index have been completed. The base that the frontend sends is
//!    ignored, because it is out of date if the previous process was killed. Requests that were executed but not
//!    published are executed again. The guest cannot notice that: reads of an immutable disk have no side effects, and
//!    the buffers belong to the device until the request is published.
//! 3. **Signal every new call descriptor.** If a process dies after it stored the index and before it sent the
//!    interrupt, the guest would wait for completions that are already in the ring. So a call descriptor is signalled
//!    as soon as it is set. A spurious interrupt only makes the guest check the ring.
//! 4. **Check the ring when it is enabled.** If a dead process consumed a kick, it will not be repeated.
//!    `vhost-user-backend` 0.24 calls `handle_event` when it registers an enabled ring.
//! 5. **No late writes.** Every system call or copy that writes to guest memory returns before the request is
//!    published. No write continues in the kernel: there is no direct I/O into guest pages that could outlive the
//!    process.
//!
//! # Halts
//!
//! GET_VRING_BASE, disabling, and every change to a running ring go through `Ring::halt`. It publishes the requests
//! that have been executed, abandons the others, and sets `next_avail = next_used`, so that the base reported to the
//! frontend equals `used.idx` (by rule 2 the abandoned requests are executed after the next start). After it returns,
//! no thread writes to guest memory for this ring: a thread that writes holds either the ring's lock, which the halt
//! has acquired, or a [`Permit`], which the halt has waited for. A thread that acquires the lock later finds nothing to
//! publish.
//!
//! A halt waits only for requests that are being executed. These stop at the next slice
//! ([`BlkDisk::execute_while`](super::execute::BlkDisk)), or when planning has reached the block that they need. A halt does
//! not wait for requests that are queued in the pool, nor for resources held by requests of other rings.
//!
//! # Memory ordering
//!
//! x86 does not reorder stores with stores or loads with loads; aarch64 reorders both. The code uses C11 orderings,
//! which are correct on both:
//!
//! - *A request before its index.* The driver stores descriptors and the ring element before `avail.idx`, separated by
//!   a write barrier. `Queue::iter` and [`Ring::has_requests`] load `avail.idx` with acquire (`ldar`), and elements and
//!   descriptors after it.
//! - *The data before their index.* The thread that executes a request stores data and status, with `preadv` or by
//!   copying. On the queue thread, this precedes `add_used` in program order. On a thread of the pool, it precedes the
//!   unlock of `Offload`'s mutex, which the publishing thread locks afterwards. `add_used` stores the element with a
//!   plain store and then the index with release (`stlr`). Release is cumulative: it also orders the writes of other
//!   threads that this thread has synchronised with.
//! - *Publish, then check whether an interrupt is wanted* (the driver: request interrupts, then check `used.idx`).
//!   *Request kicks, then check for requests* (the driver: store `avail.idx`, then check whether a kick is wanted).
//!   Both are a store followed by a load on both sides, which acquire and release do not order. So there is a `SeqCst`
//!   fence (`dmb ish`) in between, in `used::wants_interrupt` and in `Queue::enable_notification`. Linux has
//!   `virtio_mb` in the same places. The 16-bit accesses are single-copy atomic.
//! - *Resume.* `used.idx` is loaded with relaxed ordering when a ring is set up: it was stored by this process or by
//!   one that is dead, and a socket message was received in between.
//! - A guest shares cacheable memory with this process, so `dmb ish` is sufficient; there is no hardware device
//!   involved.

use std::io;
use std::sync::OnceLock;

use vhost_user_backend::{VringMutex, VringState, VringT};
use virtio_queue::{DescriptorChain, Error as QueueError, Queue, QueueOwnedT, QueueT};
use vm_memory::{GuestAddress, GuestAddressSpace, GuestMemory};

use super::call::Call;
use super::dirty::DirtyLog;
use super::execute::Completion;
use super::guest::{SharedMemory, View};
use super::idle::IdleWakes;
use super::inflight::{InFlight, Ticket};
use super::offload::{Epoch, Offload, Permit};
use super::sync::{Arc, AtomicUsize, Mutex, MutexGuard, Ordering, lock};
use super::used;

/// Maximum number of requests taken from a ring at once. It bounds how long the first one waits to be published.
pub const BATCH: usize = 64;

/// A fault of a ring.
#[derive(Debug, thiserror::Error)]
pub enum RingFault {
    /// Its indexes are inconsistent, or it is not in guest memory. It is not served until the frontend sets it up
    /// again.
    #[error("the ring is broken until it is set up again: {0}")]
    Broken(QueueError),
    /// The queue size is not valid for a split virtqueue (virtio 1.2, section 2.7).
    #[error(
        "the frontend set a queue size of {size}: it must be a power of two and at most {}",
        super::config::QUEUE_SIZE_MAX
    )]
    Size {
        /// The requested size.
        size: u16,
    },
    /// The guest could not be interrupted.
    #[error("the guest cannot be interrupted: {0}")]
    Signal(io::Error),
}

/// Result of [`RingGuard::collect`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Collected {
    /// There are requests to execute.
    Requests,
    /// There are none. With [`WhenEmpty::AskForKick`], the guest will kick when there are.
    Nothing,
    /// The ring is stopped, disabled or broken.
    Stopped,
}

/// What to do if the ring is empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenEmpty {
    /// Leave notifications disabled, because the caller will check the ring again very soon.
    LeaveQuiet,
    /// Enable notifications, so that the guest kicks.
    AskForKick,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Health {
    /// Never started, or stopped by the frontend.
    Stopped,
    Operational,
    /// The frontend set an invalid size, which is reported the next time the ring is served.
    BadSize {
        size: u16,
    },
    Broken,
}

/// A virtqueue. Clones share one state.
#[derive(Clone)]
pub struct Ring {
    pub(super) vring: VringMutex<SharedMemory>,
    pub(super) shared: Arc<RingShared>,
}

pub(super) struct RingShared {
    pub(super) memory: SharedMemory,
    /// Held while a batch is being served. Lock order: this before the lock inside `vring`.
    pub(super) state: Mutex<RingState>,
    /// Number of halts in progress. Threads that hold the ring's lock or a permit should release it soon.
    halts: AtomicUsize,
    pub(super) offload: Offload,
    pub(super) call: Call,
    /// Set before any request is taken from the ring.
    pub(super) log: OnceLock<Arc<DirtyLog>>,
    /// Counts kicks of a disabled ring.
    pub(super) disabled_wakes: Mutex<IdleWakes>,
}

pub(super) struct RingState {
    pub(super) health: Health,
    pub(super) in_flight: InFlight,
    /// The size that the frontend requested last, if it is invalid.
    pub(super) bad_size: Option<u16>,
}

/// The ring's lock, held from taking requests until publishing them.
pub struct RingGuard<'r> {
    ring: &'r Ring,
    pub(super) state: MutexGuard<'r, RingState>,
}

impl RingShared {
    pub(super) fn new(memory: SharedMemory) -> Self {
        Self {
            memory,
            state: Mutex::new(RingState {
                health: Health::Stopped,
                in_flight: InFlight::default(),
                bad_size: None,
            }),
            halts: AtomicUsize::new(0),
            offload: Offload::default(),
            call: Call::default(),
            log: OnceLock::new(),
            disabled_wakes: Mutex::new(IdleWakes::default()),
        }
    }
}

impl Ring {
    /// Locks the ring. Waits until no other thread is serving a batch.
    pub fn lock(&self) -> RingGuard<'_> {
        RingGuard {
            ring: self,
            state: lock(&self.shared.state),
        }
    }

    /// Sets the dirty log of the device that serves this ring.
    pub fn log_to(&self, log: &Arc<DirtyLog>) {
        self.shared.log.get_or_init(|| Arc::clone(log));
    }

    /// Whether a halt is in progress. Threads that serve this ring should stop.
    pub fn is_halting(&self) -> bool {
        self.shared.halts.load(Ordering::Relaxed) > 0
    }

    /// Halts the ring: publishes the requests that have been executed and abandons the others. Afterwards nothing is
    /// written to guest memory for this ring until a guard collects requests again.
    pub(super) fn halt(&self) -> RingGuard<'_> {
        self.shared.halts.fetch_add(1, Ordering::Relaxed);
        let mut guard = self.lock();
        self.shared.offload.halt();
        // A fault does not matter: the ring is being stopped or set up again.
        let _ = guard.publish();
        guard.abandon();
        self.shared.halts.fetch_sub(1, Ordering::Relaxed);
        guard
    }

    /// Allows a thread of the pool to execute requests that were taken in `epoch`. `None` if the ring has been halted
    /// since.
    pub fn permit(&self, epoch: Epoch) -> Option<Permit<'_>> {
        self.shared.offload.permit(epoch)
    }

    /// Releases the permit with its completions, and publishes what can be published.
    ///
    /// # Errors
    /// As for [`RingGuard::publish`].
    pub fn answer(
        &self,
        permit: Permit<'_>,
        completions: &[(Ticket, Completion)],
    ) -> Result<(), RingFault> {
        permit.finish(completions);
        // The current holder of the lock may publish them first. Then nothing is left to do here.
        self.lock().publish()
    }

    /// Whether there are available requests that have not been taken.
    pub fn has_requests(&self, memory: &impl GuestMemory) -> bool {
        let state = self.vring.get_ref();
        let queue = state.get_queue();
        let index = queue.avail_idx(memory, Ordering::Acquire);
        is_running(&state) && index.is_ok_and(|index| index.0 != queue.next_avail())
    }

    /// Whether the frontend has set up and enabled the ring.
    pub fn is_running(&self) -> bool {
        is_running(&self.vring.get_ref())
    }

    /// Marks the whole used ring in the dirty log, because a killed process may have written to any part of it.
    fn mark_used(&self, queue: &Queue) {
        if let Some(log) = self.shared.log.get()
            && log.is_on()
        {
            let len_bytes = used::len_bytes(queue.size());
            log.mark(GuestAddress(queue.used_ring()), len_bytes);
        }
    }

    pub(super) fn is_ready(&self) -> bool {
        self.vring.get_ref().get_queue().ready()
    }
}

fn is_running(state: &VringState<SharedMemory>) -> bool {
    state.is_enabled() && state.get_queue().ready()
}

impl RingGuard<'_> {
    /// Takes up to [`BATCH`] requests from the ring. Returns what it found, and the ticket of the first request. The
    /// following requests have consecutive tickets.
    ///
    /// # Errors
    /// After a [`RingFault`], the ring is [`Collected::Stopped`].
    pub fn collect<'m, M: GuestMemory>(
        &mut self,
        memory: &'m M,
        when_empty: WhenEmpty,
        chains: &mut Vec<DescriptorChain<&'m M>>,
    ) -> Result<(Collected, Ticket), RingFault> {
        chains.clear();
        let mut vring = self.ring.vring.get_mut();
        if self.state.health != Health::Operational || !is_running(&vring) {
            drop(vring);
            return self.stopped();
        }
        let queue = vring.get_queue_mut();
        // Bound the number of requests in flight: a guest may make the same descriptors available repeatedly.
        let room = usize::from(queue.size()).saturating_sub(self.state.in_flight.len());
        let found = take(queue, memory, when_empty, room.min(BATCH), chains);
        self.ring.mark_used(queue);
        drop(vring);
        let first = self.state.in_flight.take(chains.len());
        found
            .map(|found| (found, first))
            .map_err(|error| self.broken(error))
    }

    fn stopped(&mut self) -> Result<(Collected, Ticket), RingFault> {
        if let Health::BadSize { size } = self.state.health {
            self.state.health = Health::Broken;
            return Err(RingFault::Size { size });
        }
        Ok((Collected::Stopped, self.state.in_flight.take(0)))
    }

    /// Returns the last `count` requests to the ring. None of them may have been executed.
    pub fn put_back(&mut self, count: usize) {
        self.state.in_flight.drop_last(count);
        let mut vring = self.ring.vring.get_mut();
        let queue = vring.get_queue_mut();
        (0..count).for_each(|_| queue.go_to_previous_position());
    }

    /// Records that a request has been executed.
    pub fn complete(&mut self, ticket: Ticket, completion: Completion) {
        self.state.in_flight.complete(ticket, completion);
    }

    /// The epoch of the requests that this guard has collected, for [`Ring::permit`].
    pub fn epoch(&self) -> Epoch {
        self.ring.shared.offload.epoch()
    }

    /// Publishes executed requests in the order in which they were taken, up to the first one that has not been
    /// executed. Interrupts the guest if it requested that.
    ///
    /// It uses the current guest memory, looked up under the lock: since the caller started, the frontend may have
    /// stopped the ring, replaced the memory and started the ring again.
    ///
    /// # Errors
    /// [`RingFault`].
    pub fn publish(&mut self) -> Result<(), RingFault> {
        let shared = &self.ring.shared;
        shared.offload.collect(&mut self.state.in_flight);
        if self.state.health != Health::Operational {
            return Ok(());
        }
        let memory = shared.memory.memory();
        let mut vring = self.ring.vring.get_mut();
        let queue = vring.get_queue_mut();
        let (is_interrupt_wanted, published) =
            used::publish(queue, &View::new(&memory), &mut self.state.in_flight);
        self.ring.mark_used(queue);
        drop(vring);
        let signalled = match is_interrupt_wanted {
            true => shared.call.signal().map_err(RingFault::Signal),
            false => Ok(()),
        };
        published.map_err(|error| self.broken(error)).and(signalled)
    }

    fn broken(&mut self, error: QueueError) -> RingFault {
        self.state.health = Health::Broken;
        RingFault::Broken(error)
    }

    /// Forgets all requests that are not published, and moves `next_avail` back to the first of them.
    fn abandon(&mut self) {
        self.state.in_flight.forget();
        if self.state.health != Health::Stopped {
            let mut vring = self.ring.vring.get_mut();
            let queue = vring.get_queue_mut();
            queue.set_next_avail(queue.next_used());
        }
    }

    /// Implements rule 2. The ring must be halted.
    pub(super) fn resume(&mut self) {
        if let Some(size) = self.state.bad_size {
            self.state.health = Health::BadSize { size };
            return;
        }
        match self.ring.vring.queue_used_idx() {
            Ok(index) => {
                self.ring.vring.set_queue_next_avail(index);
                self.ring.vring.set_queue_next_used(index);
                self.state.health = Health::Operational;
            }
            // The ring is not in memory yet. This function is called again when its addresses are set.
            Err(_) => self.state.health = Health::Broken,
        }
    }
}

/// Takes up to `most` available requests. If there are none, enables notifications if requested, and checks again.
fn take<'m, M: GuestMemory>(
    queue: &mut Queue,
    memory: &'m M,
    when_empty: WhenEmpty,
    most: usize,
    chains: &mut Vec<DescriptorChain<&'m M>>,
) -> Result<Collected, QueueError> {
    queue.disable_notification(memory)?;
    chains.extend(queue.iter(memory)?.take(most));
    if !chains.is_empty() {
        return Ok(Collected::Requests);
    }
    if when_empty == WhenEmpty::LeaveQuiet && most > 0 {
        return Ok(Collected::Nothing);
    }
    // If no room is left (`most` is 0), a correct guest cannot make requests available before some are published.
    if !queue.enable_notification(memory)? || most == 0 {
        return Ok(Collected::Nothing);
    }
    // A request arrived before notifications were enabled.
    queue.disable_notification(memory)?;
    chains.extend(queue.iter(memory)?.take(most));
    if chains.is_empty() {
        // The index changed but its element cannot be read; retrying would loop for ever.
        return Err(QueueError::InvalidAvailRingIndex);
    }
    Ok(Collected::Requests)
}
