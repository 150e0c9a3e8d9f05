//! A virtqueue that survives the death of the process that serves it.
//!
//! The process may be killed at any instruction. What is left is the ring in guest memory, and a new process goes on
//! from there. That loses nothing and repeats nothing the guest could notice, by five rules:
//!
//! 1. **Published is a prefix.** Whenever `used.idx == u` is visible, `used[0..u)` are exactly the heads
//!    `avail[0..u)`, and their data and status bytes are in place. Requests may be carried out in any order and by
//!    other threads, but [`RingGuard::publish`] hands back only the front of the list that [`RingGuard::collect`]
//!    filled.
//! 2. **Resume from the prefix.** When a ring is set up, `next_avail = next_used = used.idx`, read from guest memory:
//!    by rule 1 everything before it is answered and everything from it on is not. Whatever base the frontend sends is
//!    ignored: it tells what it last heard, and a process that was killed told it nothing. Requests that had been
//!    carried out but not published are carried out again, which no one can see: reads of an immutable disk have no
//!    effect but their data, and their buffers belong to the device until they are published.
//! 3. **Interrupt with every call descriptor.** Death between the index and the interrupt would leave the guest
//!    waiting for answers that lie in front of it. So the descriptor is signalled as soon as it is set; a needless
//!    interrupt costs the guest one look at the ring.
//! 4. **Look when enabled.** The kick for a request that a dead process had received will not come again.
//!    `vhost-user-backend` 0.24 calls `handle_event` when it registers an enabled ring.
//! 5. **Nothing lands late.** Every write to guest memory is done by a system call or copy that has returned before
//!    the request is published, and none is left to the kernel: no direct I/O into guest pages outlives the process.
//!
//! # Halts
//!
//! GET_VRING_BASE, disabling, and every change to a ring that runs go through `Ring::halt`. It publishes what has been
//! carried out, abandons what has not, and sets `next_avail = next_used`, so that the base that the frontend is told and
//! `used.idx` agree (rule 2 carries the rest out after the next start). Once it has returned no thread writes to guest
//! memory for this ring. A thread that writes there holds either the ring's lock, which the halt has taken, or a
//! [`Claim`], which the halt has waited for. A thread that takes the lock later finds nothing to publish.
//!
//! A halt waits only for requests that are being carried out, and those end at the next slice
//! ([`Disk::execute_while`](super::execute::Disk)), or once a walk has come to the block that they need. It does not wait
//! for requests that are queued in the pool, nor for what other rings' requests hold.
//!
//! # Memory ordering
//!
//! x86 keeps stores in order and loads in order; aarch64 keeps neither. What the driver and the device need of each
//! other is stated in the code with C11 orderings, which hold on both:
//!
//! - *A request before its index.* The driver stores descriptors and the ring element before `avail.idx`, with a write
//!   barrier between. `Queue::iter` and [`Ring::has_requests`] load `avail.idx` with acquire (`ldar`), and elements and
//!   descriptors after it.
//! - *The answer before its index.* Data and status are stored by the thread that carries a request out, by `preadv` or
//!   by copies. On the queue thread they come before `add_used` in program order; on a thread of the pool, they come
//!   before the unlock of `Offload`'s mutex, which the publishing thread locks afterwards. `add_used` stores the
//!   element plainly and then the index with release (`stlr`), which orders everything before it, including what another
//!   thread wrote and this one synchronised with: release is cumulative.
//! - *Publish, then look for the wish to be interrupted* (and the driver: state the wish, then look at `used.idx`).
//!   *Ask for kicks, then look for requests* (and the driver: store `avail.idx`, then look whether a kick is wanted).
//!   Both are store-then-load on both sides, which neither acquire nor release orders. So there is a `SeqCst` fence
//!   (`dmb ish`) between the two, in `used::wants_interrupt` and in `Queue::enable_notification`; Linux has
//!   `virtio_mb` at the same places. The 16-bit accesses are single-copy atomic.
//! - *Resume.* `used.idx` is loaded relaxed when a ring is set up: this process stored it, or another that is dead, and
//!   a message over a socket lies between.
//! - A guest shares cacheable memory with this process, so `dmb ish` is enough: no device is on the other side.

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
use super::offload::{Claim, Offload, Period};
use super::sync::{Arc, AtomicUsize, Mutex, MutexGuard, Ordering, lock};
use super::used;

/// Most requests taken from a ring at once: a bound on how long the first of them waits to be published.
pub const BATCH: usize = 64;

/// Why a ring cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum RingFault {
    /// Its indexes are impossible, or it is not in memory. It rests until the frontend sets it up again.
    #[error("the ring is broken until it is set up again: {0}")]
    Broken(QueueError),
    /// Its length is not one that a split virtqueue may have (virtio 1.2, section 2.7).
    #[error(
        "the frontend set a queue size of {size}: it must be a power of two and at most {}",
        super::config::QUEUE_SIZE_MAX
    )]
    Size {
        /// What the frontend asked for.
        size: u16,
    },
    /// The guest could not be interrupted.
    #[error("the guest cannot be interrupted: {0}")]
    Signal(io::Error),
}

/// What [`RingGuard::collect`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// There are requests to carry out.
    Requests,
    /// There are none; with [`WhenEmpty::AskForKick`] the guest will kick when there are.
    Nothing,
    /// The ring is stopped, disabled or broken.
    Stopped,
}

/// What to do about a ring in which nothing is available.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenEmpty {
    /// Nothing: the caller will look again very soon.
    LeaveQuiet,
    /// Enable notifications: ask the guest to kick.
    AskForKick,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Health {
    /// Never started, or stopped by the frontend.
    Stopped,
    Sound,
    /// Why, for the next look at the ring to report.
    Unfit {
        size: u16,
    },
    Broken,
}

/// A virtqueue. Clones share one state.
#[derive(Clone)]
pub struct Ring {
    pub(super) vring: VringMutex<SharedMemory>,
    pub(super) shared: Arc<Shared>,
}

pub(super) struct Shared {
    pub(super) memory: SharedMemory,
    /// Held while a batch is under way. Taken before the lock inside `vring`, never the other way round.
    pub(super) state: Mutex<State>,
    /// Halts that have begun and not ended. Threads that hold the ring's lock or a claim give way.
    halts: AtomicUsize,
    pub(super) offload: Offload,
    pub(super) call: Call,
    /// Set before anything is taken from the ring.
    pub(super) log: OnceLock<Arc<DirtyLog>>,
    /// Kicks of a disabled ring.
    pub(super) disabled_wakes: Mutex<IdleWakes>,
}

pub(super) struct State {
    pub(super) health: Health,
    pub(super) in_flight: InFlight,
    /// The size that the frontend asked for last, if it cannot be.
    pub(super) bad_size: Option<u16>,
}

/// The ring's lock: the right to serve it, from the look at it to the publishing.
pub struct RingGuard<'r> {
    ring: &'r Ring,
    pub(super) state: MutexGuard<'r, State>,
}

impl Shared {
    pub(super) fn new(memory: SharedMemory) -> Self {
        Self {
            memory,
            state: Mutex::new(State {
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
    /// Waits until no batch is under way, and keeps others from beginning one.
    pub fn lock(&self) -> RingGuard<'_> {
        RingGuard {
            ring: self,
            state: lock(&self.shared.state),
        }
    }

    /// Names the log of the device that serves this ring.
    pub fn log_to(&self, log: &Arc<DirtyLog>) {
        self.shared.log.get_or_init(|| Arc::clone(log));
    }

    /// Whether a halt is waiting. Threads that serve this ring should stop.
    pub fn is_halting(&self) -> bool {
        self.shared.halts.load(Ordering::Relaxed) > 0
    }

    /// Brings the ring to rest: publishes what has been carried out, abandons what has not. From then on nothing is
    /// written to guest memory for it, until a guard collects requests again.
    pub(super) fn halt(&self) -> RingGuard<'_> {
        self.shared.halts.fetch_add(1, Ordering::Relaxed);
        let mut guard = self.lock();
        self.shared.offload.halt();
        // A fault does not matter any more: the ring is being stopped, or set up again.
        let _ = guard.publish();
        guard.abandon();
        self.shared.halts.fetch_sub(1, Ordering::Relaxed);
        guard
    }

    /// Grants a thread of the pool the right to carry out requests that were taken in `period`; none once the ring has
    /// been halted.
    pub fn claim(&self, period: Period) -> Option<Claim<'_>> {
        self.shared.offload.claim(period)
    }

    /// Gives the claim up and publishes what can be published.
    ///
    /// # Errors
    /// As [`RingGuard::publish`].
    pub fn answer(
        &self,
        claim: Claim<'_>,
        completions: &[(Ticket, Completion)],
    ) -> Result<(), RingFault> {
        claim.finish(completions);
        // The holder of the lock may publish them first. Then there is nothing left to do here.
        self.lock().publish()
    }

    /// Whether the guest has made requests available that nobody has taken.
    pub fn has_requests(&self, memory: &impl GuestMemory) -> bool {
        let state = self.vring.get_ref();
        let queue = state.get_queue();
        let index = queue.avail_idx(memory, Ordering::Acquire);
        is_running(&state) && index.is_ok_and(|index| index.0 != queue.next_avail())
    }

    /// Whether requests may come: the frontend has set the ring up.
    pub fn is_running(&self) -> bool {
        is_running(&self.vring.get_ref())
    }

    /// Marks the used ring in the log. All of it: a process that was killed may have written to any part.
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
    /// Takes up to [`BATCH`] requests from the ring. Returns what it found, and the ticket of the first request: those
    /// after it have the tickets after it.
    ///
    /// # Errors
    /// [`RingFault`]; from then on the ring is [`Found::Stopped`].
    pub fn collect<'m, M: GuestMemory>(
        &mut self,
        memory: &'m M,
        when_empty: WhenEmpty,
        chains: &mut Vec<DescriptorChain<&'m M>>,
    ) -> Result<(Found, Ticket), RingFault> {
        chains.clear();
        let mut vring = self.ring.vring.get_mut();
        if self.state.health != Health::Sound || !is_running(&vring) {
            drop(vring);
            return self.stopped();
        }
        let queue = vring.get_queue_mut();
        // A guest may make the same descriptors available again and again; what is under way stays bounded.
        let room = usize::from(queue.size()).saturating_sub(self.state.in_flight.len());
        let found = take(queue, memory, when_empty, room.min(BATCH), chains);
        self.ring.mark_used(queue);
        drop(vring);
        let first = self.state.in_flight.take(chains.len());
        found
            .map(|found| (found, first))
            .map_err(|error| self.broken(error))
    }

    fn stopped(&mut self) -> Result<(Found, Ticket), RingFault> {
        if let Health::Unfit { size } = self.state.health {
            self.state.health = Health::Broken;
            return Err(RingFault::Size { size });
        }
        Ok((Found::Stopped, self.state.in_flight.take(0)))
    }

    /// Undoes the taking of the last `count` requests, none of which has been carried out.
    pub fn put_back(&mut self, count: usize) {
        self.state.in_flight.untake(count);
        let mut vring = self.ring.vring.get_mut();
        let queue = vring.get_queue_mut();
        (0..count).for_each(|_| queue.go_to_previous_position());
    }

    /// Takes note that a request has been carried out.
    pub fn complete(&mut self, ticket: Ticket, completion: Completion) {
        self.state.in_flight.complete(ticket, completion);
    }

    /// For [`Ring::claim`]: when the requests were taken that the guard has collected.
    pub fn period(&self) -> Period {
        self.ring.shared.offload.period()
    }

    /// Hands requests back to the guest, in the order in which they were taken and as far as they have been carried
    /// out, and interrupts it if it asked for that.
    ///
    /// In the memory of now, which is looked up under the lock: the frontend may have stopped the ring, replaced its
    /// memory and started the ring again since the caller began.
    ///
    /// # Errors
    /// [`RingFault`].
    pub fn publish(&mut self) -> Result<(), RingFault> {
        let shared = &self.ring.shared;
        shared.offload.collect(&mut self.state.in_flight);
        if self.state.health != Health::Sound {
            return Ok(());
        }
        let memory = shared.memory.memory();
        let mut vring = self.ring.vring.get_mut();
        let queue = vring.get_queue_mut();
        let (wanted, published) =
            used::publish(queue, &View::new(&memory), &mut self.state.in_flight);
        self.ring.mark_used(queue);
        drop(vring);
        let signalled = match wanted {
            true => shared.call.signal().map_err(RingFault::Signal),
            false => Ok(()),
        };
        published.map_err(|error| self.broken(error)).and(signalled)
    }

    fn broken(&mut self, error: QueueError) -> RingFault {
        self.state.health = Health::Broken;
        RingFault::Broken(error)
    }

    /// Takes all requests that are not published off the list, and goes back to before the first of them.
    fn abandon(&mut self) {
        self.state.in_flight.forget();
        if self.state.health != Health::Stopped {
            let mut vring = self.ring.vring.get_mut();
            let queue = vring.get_queue_mut();
            queue.set_next_avail(queue.next_used());
        }
    }

    /// Rule 2. The ring must have been halted.
    pub(super) fn resume(&mut self) {
        if let Some(size) = self.state.bad_size {
            self.state.health = Health::Unfit { size };
            return;
        }
        match self.ring.vring.queue_used_idx() {
            Ok(index) => {
                self.ring.vring.set_queue_next_avail(index);
                self.ring.vring.set_queue_next_used(index);
                self.state.health = Health::Sound;
            }
            // Not in memory yet: setting the addresses comes back here.
            Err(_) => self.state.health = Health::Broken,
        }
    }
}

/// Takes up to `most` of what is available; with nothing there, asks for kicks if it should, and looks once more.
fn take<'m, M: GuestMemory>(
    queue: &mut Queue,
    memory: &'m M,
    when_empty: WhenEmpty,
    most: usize,
    chains: &mut Vec<DescriptorChain<&'m M>>,
) -> Result<Found, QueueError> {
    queue.disable_notification(memory)?;
    chains.extend(queue.iter(memory)?.take(most));
    if !chains.is_empty() {
        return Ok(Found::Requests);
    }
    if when_empty == WhenEmpty::LeaveQuiet && most > 0 {
        return Ok(Found::Nothing);
    }
    // With no room left, a guest that plays by the rules has nothing to offer until something is published.
    if !queue.enable_notification(memory)? || most == 0 {
        return Ok(Found::Nothing);
    }
    // A request arrived in between.
    queue.disable_notification(memory)?;
    chains.extend(queue.iter(memory)?.take(most));
    if chains.is_empty() {
        // The index moved, but its element cannot be read: looking again would never end.
        return Err(QueueError::InvalidAvailRingIndex);
    }
    Ok(Found::Requests)
}
