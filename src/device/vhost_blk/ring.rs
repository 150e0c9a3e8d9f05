//! A virtqueue that survives the death of the process that serves it.
//!
//! The process may be killed at any instruction. What is left is the ring in guest memory, and a new process goes on
//! from there. That loses nothing and repeats nothing the guest could notice, by five rules:
//!
//! 1. **Published is a prefix.** Whenever `used.idx == u` is visible, `used[0..u)` are exactly the heads
//!    `avail[0..u)`, and their data and status bytes are in place. Requests may be carried out in any order and by
//!    other threads, but [`Turn::publish`] hands back only the front of the list that [`Turn::collect`] filled;
//!    `add_used` stores the element before the index, with release order, and both come after data and status in
//!    program order, or behind the lock that another thread's answer passed through.
//! 2. **Resume from the prefix.** When a ring is set up, `next_avail = next_used = used.idx`, read from guest memory:
//!    by rule 1 everything before it is answered and everything from it on is not. Whatever base the frontend sends is
//!    ignored: it tells what it last heard, and a process that was killed told it nothing. Requests that had been
//!    carried out but not published are carried out again, which no one can see: reads of an immutable disk have no
//!    effect but their data, and their buffers belong to the device until they are published. A clean stop waits for
//!    all that is under way ([`Ring::set_queue_ready`]), so that then too the two indexes are equal.
//! 3. **Interrupt with every call descriptor.** Death between the index and the interrupt would leave the guest
//!    waiting for answers that lie in front of it. So the descriptor is signalled as soon as it is set; a needless
//!    interrupt costs the guest one look at the ring.
//! 4. **Look when enabled.** The kick for a request that a dead process had received will not come again.
//!    `vhost-user-backend` 0.24 calls `handle_event` when it registers an enabled ring.
//! 5. **Nothing lands late.** Every write to guest memory is done by a system call or copy that has returned before
//!    the request is published, and none is left to the kernel: no direct I/O into guest pages outlives the process.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use vhost_user_backend::{VringMutex, VringState, VringStateGuard, VringStateMutGuard, VringT};
use virtio_queue::{DescriptorChain, Error as QueueError, Queue, QueueOwnedT, QueueT};
use vm_memory::GuestMemory;

use super::execute::Done;
use super::guest::SharedMemory;
use super::inflight::{InFlight, Ticket};

/// Most requests taken from a ring at once: a bound on how long the first of them waits to be published.
pub const BATCH: usize = 64;

/// Why a ring cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum RingFault {
    /// Its indexes are impossible, or it is not in memory. It rests until the frontend sets it up again.
    #[error("the ring is broken until it is set up again: {0}")]
    Broken(QueueError),
    /// The guest could not be interrupted.
    #[error("the guest cannot be interrupted: {0}")]
    Signal(io::Error),
}

/// What a look at the ring found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// There are requests to carry out.
    Work,
    /// There are none; if [`Quiet::Kick`] was asked for, the guest will kick when there are.
    Idle,
    /// The ring is stopped, disabled or broken.
    Stopped,
}

/// What to do about a ring in which nothing is available.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quiet {
    /// Nothing: whoever asks will look again very soon.
    Poll,
    /// Ask the guest to kick.
    Kick,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Health {
    Sound,
    Broken,
}

/// A virtqueue. Clones share one state.
#[derive(Clone)]
pub struct Ring {
    vring: VringMutex<SharedMemory>,
    shared: Arc<Shared>,
}

struct Shared {
    /// Held while a batch is under way. Taken before the lock inside `vring`, never the other way round.
    turn: Mutex<State>,
    /// Notified when the last request that was under way has been carried out.
    settled: Condvar,
    /// Answers of other threads, for whoever holds the turn next. Held for a push or a drain only.
    mail: Mutex<Vec<(Ticket, Done)>>,
    /// Whether there is mail: spares the queue's thread a lock.
    has_mail: AtomicBool,
    /// How the guest is interrupted. Held for a look or an exchange only.
    call: Mutex<Option<Arc<File>>>,
}

struct State {
    health: Health,
    in_flight: InFlight,
}

/// The right to serve a ring: from the look at it to the publishing.
pub struct Turn<'r> {
    ring: &'r Ring,
    state: MutexGuard<'r, State>,
}

impl Ring {
    /// Waits until no batch is under way, and keeps others from beginning one.
    pub fn turn(&self) -> Turn<'_> {
        Turn {
            ring: self,
            state: lock(&self.shared.turn),
        }
    }

    /// Like [`turn`](Self::turn), and waits until no other thread carries out a request either: nothing may land in a
    /// buffer that the guest has got back (rule 5).
    fn settled_turn(&self) -> Turn<'_> {
        let mut turn = self.turn();
        turn.read_mail();
        while !turn.state.in_flight.is_settled() {
            let waited = self.shared.settled.wait(turn.state);
            turn = Turn {
                ring: self,
                state: waited.unwrap_or_else(PoisonError::into_inner),
            };
            turn.read_mail();
        }
        turn
    }

    /// Answers requests from a thread that does not hold the turn, and publishes what can be published.
    ///
    /// # Errors
    /// As [`Turn::publish`].
    pub fn answer(
        &self,
        memory: &impl GuestMemory,
        answers: &[(Ticket, Done)],
    ) -> Result<(), RingFault> {
        lock(&self.shared.mail).extend_from_slice(answers);
        self.shared.has_mail.store(true, Ordering::Release);
        // The holder of the turn may take the mail first; then there is nothing left to publish here.
        self.turn().publish(memory)
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

    fn is_ready(&self) -> bool {
        self.vring.get_ref().get_queue().ready()
    }

    /// Never waits, whatever the frontend gave: a descriptor that takes nothing more has been signalled and not been
    /// looked at since. Not by making it non-blocking: the frontend shares that flag, and may rely on waiting.
    fn interrupt(&self) -> io::Result<()> {
        let Some(call) = lock(&self.shared.call).clone() else {
            return Ok(());
        };
        let mut ready = [PollFd::new(call.as_fd(), PollFlags::POLLOUT)];
        match poll(&mut ready, PollTimeout::ZERO) {
            Ok(0) => Ok(()),
            _ => (&*call).write_all(&1u64.to_ne_bytes()),
        }
    }
}

fn is_running(state: &VringState<SharedMemory>) -> bool {
    state.is_enabled() && state.get_queue().ready()
}

/// A panic while the lock was held does not harm what it guards: lists are whole between any two statements.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Turn<'_> {
    /// Takes up to [`BATCH`] requests from the ring. Returns what it found, and the ticket of the first request: those
    /// after it have the tickets after it.
    ///
    /// # Errors
    /// [`RingFault::Broken`]; from then on the ring is [`Look::Stopped`].
    pub fn collect<'m, M: GuestMemory>(
        &mut self,
        memory: &'m M,
        quiet: Quiet,
        chains: &mut Vec<DescriptorChain<&'m M>>,
    ) -> Result<(Look, Ticket), RingFault> {
        chains.clear();
        let mut vring = self.ring.vring.get_mut();
        if self.state.health == Health::Broken || !is_running(&vring) {
            return Ok((Look::Stopped, self.state.in_flight.take(0)));
        }
        let queue = vring.get_queue_mut();
        // A guest may make the same descriptors available again and again; what is under way stays bounded.
        let room = usize::from(queue.size()).saturating_sub(self.state.in_flight.len());
        let look = take(queue, memory, quiet, room.min(BATCH), chains);
        drop(vring);
        let first = self.state.in_flight.take(chains.len());
        look.map(|look| (look, first))
            .map_err(|error| self.broken(error))
    }

    /// Undoes the taking of the last `count` requests, none of which has been carried out.
    pub fn put_back(&mut self, count: usize) {
        self.state.in_flight.untake(count);
        let mut vring = self.ring.vring.get_mut();
        let queue = vring.get_queue_mut();
        (0..count).for_each(|_| queue.go_to_previous_position());
    }

    /// Takes note that a request has been carried out.
    pub fn complete(&mut self, ticket: Ticket, done: Done) {
        self.state.in_flight.complete(ticket, done);
    }

    /// Hands requests back to the guest, in the order in which they were taken and as far as they have been carried
    /// out, and interrupts it if it asked for that.
    ///
    /// # Errors
    /// [`RingFault`].
    pub fn publish(&mut self, memory: &impl GuestMemory) -> Result<(), RingFault> {
        self.read_mail();
        if self.state.health == Health::Broken {
            return Ok(());
        }
        let mut vring = self.ring.vring.get_mut();
        let put = put(vring.get_queue_mut(), memory, &mut self.state.in_flight);
        drop(vring);
        match put {
            Ok(true) => self.ring.interrupt().map_err(RingFault::Signal),
            Ok(false) => Ok(()),
            Err(error) => Err(self.broken(error)),
        }
    }

    /// Takes note of what other threads have carried out.
    fn read_mail(&mut self) {
        let shared = &self.ring.shared;
        let empty = !shared.has_mail.load(Ordering::Relaxed)
            || !shared.has_mail.swap(false, Ordering::Acquire);
        if empty {
            return;
        }
        for (ticket, done) in lock(&shared.mail).drain(..) {
            self.state.in_flight.complete(ticket, done);
        }
        if self.state.in_flight.is_settled() {
            shared.settled.notify_all();
        }
    }

    fn broken(&mut self, error: QueueError) -> RingFault {
        self.state.health = Health::Broken;
        RingFault::Broken(error)
    }

    /// Rule 2. The turn must be a settled one.
    fn resume(&mut self) {
        self.state.in_flight.forget();
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
    quiet: Quiet,
    most: usize,
    chains: &mut Vec<DescriptorChain<&'m M>>,
) -> Result<Look, QueueError> {
    queue.disable_notification(memory)?;
    chains.extend(queue.iter(memory)?.take(most));
    if !chains.is_empty() {
        return Ok(Look::Work);
    }
    if quiet == Quiet::Poll && most > 0 {
        return Ok(Look::Idle);
    }
    // With no room left, a guest that plays by the rules has nothing to offer until something is published.
    if !queue.enable_notification(memory)? || most == 0 {
        return Ok(Look::Idle);
    }
    // A request arrived in between.
    queue.disable_notification(memory)?;
    chains.extend(queue.iter(memory)?.take(most));
    if chains.is_empty() {
        // The index moved, but its element cannot be read: looking again would never end.
        return Err(QueueError::InvalidAvailRingIndex);
    }
    Ok(Look::Work)
}

/// Rule 1. Returns whether the guest wants an interrupt.
fn put(
    queue: &mut Queue,
    memory: &impl GuestMemory,
    in_flight: &mut InFlight,
) -> Result<bool, QueueError> {
    let before = in_flight.len();
    while let Some(done) = in_flight.pop_done() {
        queue.add_used(memory, done.head, done.used_len_bytes)?;
    }
    Ok(in_flight.len() < before && queue.needs_notification(memory)?)
}

impl<'a> VringStateGuard<'a, SharedMemory> for Ring {
    type G = MutexGuard<'a, VringState<SharedMemory>>;
}

impl<'a> VringStateMutGuard<'a, SharedMemory> for Ring {
    type G = MutexGuard<'a, VringState<SharedMemory>>;
}

impl VringT<SharedMemory> for Ring {
    fn new(memory: SharedMemory, max_queue_size: u16) -> Result<Self, QueueError> {
        Ok(Self {
            vring: VringMutex::new(memory, max_queue_size)?,
            shared: Arc::new(Shared {
                turn: Mutex::new(State {
                    health: Health::Broken,
                    in_flight: InFlight::default(),
                }),
                settled: Condvar::new(),
                mail: Mutex::default(),
                has_mail: AtomicBool::new(false),
                call: Mutex::default(),
            }),
        })
    }

    fn get_ref(&self) -> <Self as VringStateGuard<'_, SharedMemory>>::G {
        self.vring.get_ref()
    }

    fn get_mut(&self) -> <Self as VringStateMutGuard<'_, SharedMemory>>::G {
        self.vring.get_mut()
    }

    fn add_used(&self, desc_index: u16, len: u32) -> Result<(), QueueError> {
        self.vring.add_used(desc_index, len)
    }

    fn signal_used_queue(&self) -> io::Result<()> {
        self.interrupt()
    }

    fn enable_notification(&self) -> Result<bool, QueueError> {
        self.vring.enable_notification()
    }

    fn disable_notification(&self) -> Result<(), QueueError> {
        self.vring.disable_notification()
    }

    fn needs_notification(&self) -> Result<bool, QueueError> {
        self.vring.needs_notification()
    }

    /// A disabled ring is at rest when this returns.
    fn set_enabled(&self, enabled: bool) {
        self.vring.set_enabled(enabled);
        if !enabled {
            drop(self.settled_turn());
        }
    }

    fn set_queue_info(
        &self,
        desc_table: u64,
        avail_ring: u64,
        used_ring: u64,
    ) -> Result<(), QueueError> {
        let mut turn = self.settled_turn();
        self.vring
            .set_queue_info(desc_table, avail_ring, used_ring)?;
        if self.is_ready() {
            turn.resume();
        }
        Ok(())
    }

    fn queue_next_avail(&self) -> u16 {
        self.vring.queue_next_avail()
    }

    /// Rule 2: a ring that is running knows better.
    fn set_queue_next_avail(&self, base: u16) {
        if !self.is_ready() {
            self.vring.set_queue_next_avail(base);
        }
    }

    /// Rule 2: a ring that is running knows better.
    fn set_queue_next_used(&self, index: u16) {
        if !self.is_ready() {
            self.vring.set_queue_next_used(index);
        }
    }

    fn queue_used_idx(&self) -> Result<u16, QueueError> {
        self.vring.queue_used_idx()
    }

    fn set_queue_size(&self, size: u16) {
        self.vring.set_queue_size(size);
    }

    fn set_queue_event_idx(&self, enabled: bool) {
        self.vring.set_queue_event_idx(enabled);
    }

    /// Rule 2. A ring that is not ready is at rest when this returns.
    fn set_queue_ready(&self, ready: bool) {
        if ready {
            let mut turn = self.settled_turn();
            turn.resume();
            self.vring.set_queue_ready(true);
        } else {
            // First the flag, so that a busy queue thread leaves; then wait for it, and for what it gave away.
            self.vring.set_queue_ready(false);
            drop(self.settled_turn());
        }
    }

    /// Makes the descriptor non-blocking: an event that someone else consumed must not stop the thread for good.
    fn set_kick(&self, file: Option<File>) {
        if let Some(kick) = &file {
            // A descriptor without flags is refused by epoll anyway.
            let flags = fcntl_getfl(kick).unwrap_or(OFlags::empty());
            let _ = fcntl_setfl(kick, flags | OFlags::NONBLOCK);
        }
        self.vring.set_kick(file);
    }

    /// Never fails: an error would end the thread, and the ring is looked at in any case.
    fn read_kick(&self) -> io::Result<bool> {
        Ok(self
            .vring
            .read_kick()
            .unwrap_or_else(|_| self.vring.get_ref().is_enabled()))
    }

    /// Rule 3.
    fn set_call(&self, file: Option<File>) {
        *lock(&self.shared.call) = file.map(Arc::new);
        // Without a descriptor this does nothing; a broken one shows when it is needed.
        let _ = self.interrupt();
    }

    fn set_err(&self, file: Option<File>) {
        self.vring.set_err(file);
    }
}

#[cfg(test)]
mod tests;
