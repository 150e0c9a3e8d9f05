//! A ring as `vhost-user-backend` wants it: what the frontend's messages do to it.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use vhost_user_backend::{VringMutex, VringState, VringStateGuard, VringStateMutGuard, VringT};
use virtio_queue::{Error as QueueError, QueueT};

use super::config::QUEUE_SIZE_MAX;
use super::guest::SharedMemory;
use super::ring::{Health, Ring, RingGuard, Shared};
use super::sync::{Arc, lock};

impl Ring {
    /// Changes a ring that may be running. Nothing is under way for it meanwhile.
    fn change<T>(&self, change: impl FnOnce(&mut RingGuard<'_>) -> T) -> T {
        let mut guard = self.halt();
        let changed = change(&mut guard);
        if self.is_ready() {
            guard.resume();
            drop(guard);
            self.kick();
        }
        changed
    }

    /// Has the queue's thread look at the ring, as if the guest had kicked: it may have found the ring halted and gone to
    /// sleep, and the guest has no reason to kick again.
    #[allow(unsafe_code)]
    fn kick(&self) {
        let vring = self.vring.get_ref();
        if let Some(kick) = vring.get_kick() {
            // SAFETY: `vring` is locked, so the descriptor stays open until after the call.
            let kick = unsafe { BorrowedFd::borrow_raw(kick.as_raw_fd()) };
            // The descriptor does not block (see `set_kick`). One that cannot be written to is no eventfd, and a
            // frontend that changes a ring while it runs has to kick then.
            let _ = rustix::io::write(kick, &1u64.to_ne_bytes());
        }
    }
}

impl<'a> VringStateGuard<'a, SharedMemory> for Ring {
    type G = std::sync::MutexGuard<'a, VringState<SharedMemory>>;
}

impl<'a> VringStateMutGuard<'a, SharedMemory> for Ring {
    type G = std::sync::MutexGuard<'a, VringState<SharedMemory>>;
}

impl VringT<SharedMemory> for Ring {
    fn new(memory: SharedMemory, max_queue_size: u16) -> Result<Self, QueueError> {
        Ok(Self {
            vring: VringMutex::new(memory.clone(), max_queue_size)?,
            shared: Arc::new(Shared::new(memory)),
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
        self.shared.call.signal()
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
            drop(self.halt());
        }
    }

    fn set_queue_info(
        &self,
        desc_table: u64,
        avail_ring: u64,
        used_ring: u64,
    ) -> Result<(), QueueError> {
        self.change(|guard| {
            if let Some(size) = guard.state.bad_size {
                tracing::warn!("{}", super::ring::RingFault::Size { size });
                return Err(QueueError::InvalidSize);
            }
            self.vring.set_queue_info(desc_table, avail_ring, used_ring)
        })
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

    /// The caller acknowledges whatever is asked for, so a size that cannot be is remembered: the ring's addresses are
    /// refused, which ends the connection, and the ring does not start.
    fn set_queue_size(&self, size: u16) {
        let fits = size.is_power_of_two() && size <= QUEUE_SIZE_MAX;
        self.change(|guard| {
            guard.state.bad_size = (!fits).then_some(size);
            if fits {
                self.vring.set_queue_size(size);
            }
        });
    }

    fn set_queue_event_idx(&self, enabled: bool) {
        // Comes for all rings with every SET_FEATURES.
        if self.vring.get_ref().get_queue().event_idx_enabled() != enabled {
            self.change(|_| self.vring.set_queue_event_idx(enabled));
        }
    }

    /// Rule 2. A ring that is not ready is at rest when this returns.
    fn set_queue_ready(&self, ready: bool) {
        if ready {
            let mut guard = self.halt();
            guard.resume();
            self.vring.set_queue_ready(true);
        } else {
            // First the flag, so that a busy queue thread leaves.
            self.vring.set_queue_ready(false);
            self.halt().state.health = Health::Stopped;
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
        let read = self.vring.read_kick();
        let enabled = read.unwrap_or_else(|_| self.vring.get_ref().is_enabled());
        if !enabled {
            // The device will not hear of it: a descriptor that was replaced can still be registered, and readable.
            lock(&self.shared.disabled_wakes).woke(false);
        }
        Ok(enabled)
    }

    /// Rule 3.
    fn set_call(&self, file: Option<File>) {
        self.shared.call.set(file);
        // Without a descriptor this does nothing; a broken one shows when it is needed.
        let _ = self.shared.call.signal();
    }

    fn set_err(&self, file: Option<File>) {
        self.vring.set_err(file);
    }
}
