//! The device: batches of requests, threads, counters.
//!
//! No lock is shared between queues: what they have in common is read-only or atomic, and each thread counts for itself.

use std::io;
use std::num::NonZeroUsize;
use std::ops::Deref;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost_user_backend::VhostUserBackend;
use virtio_queue::DescriptorChain;
use vm_memory::{GuestAddressSpace, GuestMemoryBackend};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{
    EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier,
};

use super::config::{self, ConfigSpace, QUEUE_SIZE_MAX, QUEUES};
use super::execute::{Disk, Done, Outcome};
use super::guest::{Memory, SharedMemory};
use super::limit::{LogLimit, Trouble};
use super::request::{ID_BYTES, parse};
use super::ring::{BATCH, Look, Ring, RingFault, Turn};
use crate::image::Image;

/// More threads than this do not make one VM faster: a guest's reads are few and short.
const DEFAULT_THREADS_MAX: usize = 4;

/// How one VM's disk is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceOptions {
    /// What the guest sees as the disk's serial: the first 20 bytes count.
    pub serial: String,
    /// Threads that serve queues; queue `q` belongs to thread `q % threads`. More than there are queues is no use.
    pub threads: NonZeroUsize,
}

impl DeviceOptions {
    /// As many threads as there are CPUs, but at most four.
    pub fn default_threads() -> NonZeroUsize {
        let cpus = thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        let most = NonZeroUsize::new(DEFAULT_THREADS_MAX).unwrap_or(NonZeroUsize::MIN);
        cpus.min(most)
    }

    fn queue_threads(&self) -> usize {
        self.threads.get().min(usize::from(QUEUES))
    }

    fn padded_serial(&self) -> [u8; ID_BYTES] {
        let mut serial = [0; ID_BYTES];
        serial
            .iter_mut()
            .zip(self.serial.bytes())
            .for_each(|(to, from)| *to = from);
        serial
    }
}

/// What was served so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Requests answered, whatever the answer.
    pub requests: u64,
    /// Data bytes delivered to the guest.
    pub bytes: u64,
    /// Requests answered with an error, or not at all.
    pub errors: u64,
}

/// One thread's counters, on cache lines of their own (two: CPUs fetch them in pairs).
#[derive(Debug, Default)]
#[repr(align(128))]
struct Counters {
    requests: AtomicU64,
    bytes: AtomicU64,
    errors: AtomicU64,
}

impl Counters {
    fn count(&self, outcome: &Outcome) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        match &outcome.result {
            Ok(bytes) => self.bytes.fetch_add(*bytes, Ordering::Relaxed),
            Err(_) => self.errors.fetch_add(1, Ordering::Relaxed),
        };
    }

    fn add_to(&self, stats: &mut Stats) {
        stats.requests += self.requests.load(Ordering::Relaxed);
        stats.bytes += self.bytes.load(Ordering::Relaxed);
        stats.errors += self.errors.load(Ordering::Relaxed);
    }
}

/// How a thread is told to end: the end it waits on and the end that tells.
type ExitEvent = (EventConsumer, EventNotifier);

/// A read-only disk for one VM.
pub struct BlkDevice {
    disk: Disk,
    disk_len_bytes: u64,
    config: ConfigSpace,
    memory: SharedMemory,
    counters: Vec<Counters>,
    /// Made in advance: a thread without one could never be joined.
    exits: Mutex<Vec<Option<ExitEvent>>>,
    /// Whether a frontend has said anything at all.
    addressed: AtomicBool,
    limit: LogLimit,
}

impl BlkDevice {
    /// A device that serves `image` to whatever maps its memory into `memory`.
    ///
    /// # Errors
    /// When the host has no file descriptors left.
    pub fn new(
        image: Arc<Image>,
        options: &DeviceOptions,
        memory: SharedMemory,
    ) -> io::Result<Self> {
        let disk_len_bytes = image.len_bytes();
        let threads = options.queue_threads();
        let exits = (0..threads)
            .map(|_| {
                new_event_consumer_and_notifier(EventFlag::NONBLOCK | EventFlag::CLOEXEC).map(Some)
            })
            .collect::<io::Result<_>>()?;
        Ok(Self {
            disk: Disk {
                image,
                serial: options.padded_serial(),
            },
            disk_len_bytes,
            config: ConfigSpace::new(disk_len_bytes),
            memory,
            counters: (0..threads).map(|_| Counters::default()).collect(),
            exits: Mutex::new(exits),
            addressed: AtomicBool::new(false),
            limit: LogLimit::new(),
        })
    }

    /// What was served so far; exact once the threads have ended.
    pub fn stats(&self) -> Stats {
        let mut stats = Stats::default();
        self.counters
            .iter()
            .for_each(|counters| counters.add_to(&mut stats));
        stats
    }

    /// Whether a frontend has asked for the features, which is the first thing all of them do.
    pub fn was_addressed(&self) -> bool {
        self.addressed.load(Ordering::Relaxed)
    }

    /// Whether the frontend has shared any memory.
    pub fn has_memory(&self) -> bool {
        self.memory.memory().num_regions() > 0
    }

    /// Serves a ring until it is empty.
    pub fn drain(&self, ring: &Ring, thread: usize) {
        let mut done = Vec::with_capacity(BATCH);
        loop {
            // Taken anew for each batch, so that one who waits to stop the ring gets his chance.
            match self.serve_batch(&mut ring.turn(), thread, &mut done) {
                Ok(Look::Work) => {}
                Ok(Look::Idle | Look::Stopped) => return,
                Err(fault @ RingFault::Signal(_)) => self.warn(Trouble::Signal, &fault),
                Err(fault @ RingFault::Broken(_)) => return self.warn(Trouble::Ring, &fault),
            }
        }
    }

    /// The ring's lock is held to collect and to publish, not while the disk is read.
    fn serve_batch(
        &self,
        turn: &mut Turn<'_>,
        thread: usize,
        done: &mut Vec<Done>,
    ) -> Result<Look, RingFault> {
        let guard = self.memory.memory();
        let memory: &Memory = guard.deref();
        let mut chains = Vec::with_capacity(BATCH);
        let look = turn.collect(memory, &mut chains)?;
        if look != Look::Work {
            return Ok(look);
        }
        if !ptr::eq(memory, self.memory.memory().deref()) {
            // The frontend added memory after this thread had taken hold of it and before the guest made these requests,
            // which may well use the new part. What was there before the requests must be looked up after them.
            turn.put_back(chains.len());
            return Ok(Look::Work);
        }
        done.clear();
        done.extend(
            chains
                .into_iter()
                .map(|chain| self.serve(chain, memory, thread)),
        );
        turn.publish(memory, done)?;
        Ok(look)
    }

    fn serve(&self, chain: DescriptorChain<&Memory>, memory: &Memory, thread: usize) -> Done {
        let outcome = self
            .disk
            .execute(&parse(chain, self.disk_len_bytes), memory);
        if let Some(counters) = self.counters.get(thread) {
            counters.count(&outcome);
        }
        if let Err(error) = &outcome.result {
            self.warn(Trouble::Request, error);
        }
        outcome.done
    }

    fn warn(&self, trouble: Trouble, error: &dyn std::error::Error) {
        match self.limit.pass(trouble) {
            Some(0) => tracing::warn!("{error}"),
            Some(dropped) => tracing::warn!("{error} ({dropped} more like it)"),
            None => {}
        }
    }

    fn warn_of_missing_memory(&self) {
        if self.limit.pass(Trouble::Memory).is_some() {
            tracing::error!("{}", super::TransportError::MemoryNotShared);
        }
    }
}

impl VhostUserBackend for BlkDevice {
    type Bitmap = ();
    type Vring = Ring;

    fn num_queues(&self) -> usize {
        usize::from(QUEUES)
    }

    fn max_queue_size(&self) -> usize {
        usize::from(QUEUE_SIZE_MAX)
    }

    fn features(&self) -> u64 {
        self.addressed.store(true, Ordering::Relaxed);
        config::features()
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        config::protocol_features()
    }

    /// Nothing to do: the rings keep it.
    fn set_event_idx(&self, _enabled: bool) {}

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        self.config.read(offset, size)
    }

    /// Nothing to do: `memory` is the very object that the handler replaces.
    fn update_memory(&self, _memory: SharedMemory) -> io::Result<()> {
        Ok(())
    }

    fn queues_per_thread(&self) -> Vec<u64> {
        let threads = self.counters.len();
        let queues_of = |thread| (thread..usize::from(QUEUES)).step_by(threads);
        (0..threads)
            .map(|thread| queues_of(thread).fold(0, |mask, queue| mask | 1 << queue))
            .collect()
    }

    fn exit_event(&self, thread_index: usize) -> Option<ExitEvent> {
        let mut exits = self.exits.lock().unwrap_or_else(PoisonError::into_inner);
        exits.get_mut(thread_index)?.take()
    }

    /// `device_event` counts within `vrings`, and those are the thread's own. Always `Ok`: an error ends the thread.
    fn handle_event(
        &self,
        device_event: u16,
        _events: EventSet,
        vrings: &[Ring],
        thread_id: usize,
    ) -> io::Result<()> {
        if !self.has_memory() {
            self.warn_of_missing_memory();
        } else if let Some(ring) = vrings.get(usize::from(device_event)) {
            self.drain(ring, thread_id);
        }
        Ok(())
    }
}
