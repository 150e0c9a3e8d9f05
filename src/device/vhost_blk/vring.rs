//! Implements `vhost-user-backend`'s [`VringT`] for [`Ring`]: the changes that the frontend's messages make.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use vhost_user_backend::{VringMutex, VringState, VringStateGuard, VringStateMutGuard, VringT};
use virtio_queue::{Error as QueueError, QueueT};

use super::config::QUEUE_SIZE_MAX;
use super::guest::SharedMemory;
use super::ring::{Health, Ring, RingGuard, RingShared};
use super::sync::{Arc, lock};

impl Ring {
    /// Halts the ring, applies `change`, and resumes the ring if it was running.
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

    /// Wakes the queue's thread as if the guest had kicked: the thread may have found the ring halted and gone to
    /// sleep, and the guest has no reason to kick again.
    #[allow(unsafe_code)]
    fn kick(&self) {
        let vring = self.vring.get_ref();
        if let Some(kick) = vring.get_kick() {
            // SAFETY: `vring` is locked, so the descriptor stays open during the call.
            let kick = unsafe { BorrowedFd::borrow_raw(kick.as_raw_fd()) };
            // The descriptor is non-blocking (see `set_kick`). If it is not writable, it is not an eventfd, and a
            // frontend that changes a running ring has to kick itself.
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
            shared: Arc::new(RingShared::new(memory)),
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

    /// Disabling halts the ring before it returns.
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

    /// Ignored for a running ring (rule 2).
    fn set_queue_next_avail(&self, base: u16) {
        if !self.is_ready() {
            self.vring.set_queue_next_avail(base);
        }
    }

    /// Ignored for a running ring (rule 2).
    fn set_queue_next_used(&self, index: u16) {
        if !self.is_ready() {
            self.vring.set_queue_next_used(index);
        }
    }

    fn queue_used_idx(&self) -> Result<u16, QueueError> {
        self.vring.queue_used_idx()
    }

    /// This cannot return an error, so an invalid size is recorded. Setting the ring's addresses then fails, which ends
    /// the connection, and the ring does not start.
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
        // SET_FEATURES calls this for all rings, even if nothing changes.
        if self.vring.get_ref().get_queue().event_idx_enabled() != enabled {
            self.change(|_| self.vring.set_queue_event_idx(enabled));
        }
    }

    /// Starting a ring resumes it (rule 2). Stopping it halts it before this returns.
    fn set_queue_ready(&self, ready: bool) {
        if ready {
            let mut guard = self.halt();
            guard.resume();
            self.vring.set_queue_ready(true);
        } else {
            // Clear the flag first, so that a busy queue thread stops.
            self.vring.set_queue_ready(false);
            self.halt().state.health = Health::Stopped;
        }
    }

    /// Makes the descriptor non-blocking: otherwise the thread would block for ever if another process consumed the
    /// event.
    fn set_kick(&self, file: Option<File>) {
        if let Some(kick) = &file {
            // If fcntl(2) fails, epoll rejects the descriptor as well.
            let flags = fcntl_getfl(kick).unwrap_or(OFlags::empty());
            let _ = fcntl_setfl(kick, flags | OFlags::NONBLOCK);
        }
        self.vring.set_kick(file);
    }

    /// Never fails: an error would end the thread, and the ring is checked in any case.
    fn read_kick(&self) -> io::Result<bool> {
        let read = self.vring.read_kick();
        let enabled = read.unwrap_or_else(|_| self.vring.get_ref().is_enabled());
        if !enabled {
            // The event loop does not call the device then. Slow down wake-ups: a replaced descriptor can still be
            // registered and permanently readable.
            lock(&self.shared.disabled_wakes).woke(false);
        }
        Ok(enabled)
    }

    /// Signals the new descriptor (rule 3).
    fn set_call(&self, file: Option<File>) {
        self.shared.call.set(file);
        // An error is ignored here; it will be reported when an interrupt is needed.
        let _ = self.shared.call.signal();
    }

    fn set_err(&self, file: Option<File>) {
        self.vring.set_err(file);
    }
}
