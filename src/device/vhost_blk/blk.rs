//! The device as the frontend sees it, and its threads.

use std::io;
use std::num::NonZeroUsize;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::VhostUserBackend;
use vm_memory::{GuestAddressSpace, GuestMemoryBackend};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{
    EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier,
};

use super::super::log_limit::LogKind;
use super::super::meter::{Meter, Stats};
use super::config::{self, ConfigSpace, QUEUE_SIZE_MAX, QUEUES};
use super::dirty::RegionLog;
use super::engine::{Engine, QueueThread};
use super::execute::BlkDisk;
use super::guest::SharedMemory;
use super::idle::IdleWakes;
use super::poller::Poller;
use super::request::ID_BYTES;
use super::ring::Ring;
use crate::image::Image;
use crate::process::ProcessError;

/// More threads do not make a VM faster: a guest's reads are few and short.
const DEFAULT_THREADS_MAX: usize = 4;

/// Options of one VM's device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceOptions {
    /// The disk's serial number in the guest. Truncated to 20 bytes.
    pub serial: String,
    /// Number of queues offered, at most 64. The server offers fewer if descriptors are scarce.
    pub queues: u16,
    /// Number of threads that serve queues; queue `q` belongs to thread `q % threads`.
    pub threads: NonZeroUsize,
    /// Maximum time that a thread polls for requests before it sleeps; zero disables polling.
    pub poll: Duration,
}

/// Default of [`DeviceOptions::poll`], in microseconds: long enough for a guest to process a completion and submit again if a
/// wake-up takes 100 µs; see `docs/performance.md`.
pub const DEFAULT_POLL_US: u64 = 200;

impl DeviceOptions {
    /// One thread per CPU, at most four.
    pub fn default_threads() -> NonZeroUsize {
        let cpus = thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        let most = NonZeroUsize::new(DEFAULT_THREADS_MAX).unwrap_or(NonZeroUsize::MIN);
        cpus.min(most)
    }

    /// Creates counters for all threads of one device.
    ///
    /// # Errors
    /// There is no memory left.
    pub fn meter(&self) -> Result<Meter, ProcessError> {
        // One per queue thread, and one shared by the pool.
        Meter::new(self.queue_threads() + 1)
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

/// The event that stops a thread.
type ExitEvent = (EventConsumer, EventNotifier);

/// A read-only disk for one VM.
pub struct BlkDevice {
    engine: Arc<Engine>,
    config: ConfigSpace,
    queues: u16,
    /// The state of each queue thread, which is the only one to lock it.
    threads: Vec<Mutex<QueueThread>>,
    /// Created in advance, so that this can fail: a thread without exit event could never be joined.
    exits: Mutex<Vec<Option<ExitEvent>>>,
    /// Set when the frontend has sent its first message.
    addressed: OnceLock<()>,
}

impl BlkDevice {
    /// Creates a device that serves `image` to the frontend whose memory is mapped in `memory`.
    ///
    /// # Errors
    /// The host has no file descriptors left.
    pub fn new(
        image: Arc<Image>,
        options: &DeviceOptions,
        meter: Meter,
        memory: SharedMemory,
    ) -> io::Result<Self> {
        let threads = options.queue_threads();
        let exits = (0..threads)
            .map(|_| {
                new_event_consumer_and_notifier(EventFlag::NONBLOCK | EventFlag::CLOEXEC).map(Some)
            })
            .collect::<io::Result<_>>()?;
        let queue_thread = |index| {
            Mutex::new(QueueThread {
                index,
                poller: Poller::new(options.poll),
                idle_wakes: IdleWakes::default(),
            })
        };
        let queues = options.queues.clamp(1, QUEUES);
        let config = ConfigSpace::new(image.len_bytes(), queues);
        let disk = BlkDisk {
            image,
            serial: options.padded_serial(),
            log: Arc::default(),
        };
        Ok(Self {
            engine: Arc::new(Engine::new(disk, memory, meter)),
            config,
            queues,
            threads: (0..threads).map(queue_thread).collect(),
            exits: Mutex::new(exits),
            addressed: OnceLock::new(),
        })
    }

    /// The frontend has disconnected: makes the queue threads return soon, even if requests are pending.
    pub fn leave(&self) {
        self.engine.ended.store(true, Ordering::Relaxed);
    }

    /// Stops the pools and waits for their threads. To be called last: after that, blocking requests would block the
    /// queue threads.
    pub fn finish(&self) {
        self.engine.fetching.end();
        self.engine.pool.end();
    }

    /// Totals of what was served; exact after the threads have ended and [`finish`](Self::finish) has returned.
    pub fn stats(&self) -> Stats {
        self.engine.meter.stats()
    }

    /// Whether the frontend has requested the features, which is the first message of every frontend.
    pub fn was_addressed(&self) -> bool {
        self.addressed.get().is_some()
    }

    /// Waits for the frontend's first message.
    pub fn wait_until_addressed(&self) {
        self.addressed.wait();
    }

    /// Whether the frontend has shared any memory.
    pub fn has_memory(&self) -> bool {
        self.engine.memory.memory().num_regions() > 0
    }

    fn warn_of_missing_memory(&self) {
        if self.engine.limit.pass(LogKind::Memory).is_some() {
            tracing::error!("{}", super::error::ConnectionError::MemoryNotShared);
        }
    }
}

impl VhostUserBackend for BlkDevice {
    type Bitmap = RegionLog;
    type Vring = Ring;

    fn num_queues(&self) -> usize {
        usize::from(self.queues)
    }

    fn max_queue_size(&self) -> usize {
        usize::from(QUEUE_SIZE_MAX)
    }

    fn features(&self) -> u64 {
        let _ = self.addressed.set(());
        config::features()
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        config::protocol_features()
    }

    /// Nothing to do: `vhost-user-backend` sets it for each ring as well.
    fn set_event_idx(&self, _enabled: bool) {}

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        self.config.read(offset, size)
    }

    /// `memory` is the object that was given to the handler, so only the new regions' bitmaps are left to set up.
    fn update_memory(&self, memory: SharedMemory) -> io::Result<()> {
        let memory = memory.memory();
        let log = &self.engine.disk.log;
        memory
            .iter()
            .for_each(|region| (**region).bitmap().attach(log));
        Ok(())
    }

    fn acked_features(&self, features: u64) {
        let log_all = VhostUserVirtioFeatures::LOG_ALL.bits();
        self.engine.disk.log.switch(features & log_all != 0);
    }

    fn reset_device(&self) {
        self.engine.disk.log.switch(false);
    }

    fn queues_per_thread(&self) -> Vec<u64> {
        let threads = self.threads.len();
        let queues_of = |thread| (thread..usize::from(QUEUES)).step_by(threads);
        (0..threads)
            .map(|thread| queues_of(thread).fold(0, |mask, queue| mask | 1 << queue))
            .collect()
    }

    fn exit_event(&self, thread_index: usize) -> Option<ExitEvent> {
        let mut exits = self.exits.lock().unwrap_or_else(PoisonError::into_inner);
        exits.get_mut(thread_index)?.take()
    }

    /// Serves all rings of the thread, regardless of which one was kicked. Always returns `Ok`, because an error would
    /// end the thread.
    fn handle_event(
        &self,
        _device_event: u16,
        _events: EventSet,
        vrings: &[Ring],
        thread_id: usize,
    ) -> io::Result<()> {
        if let Some(thread) = self.threads.get(thread_id) {
            let mut thread = thread.lock().unwrap_or_else(PoisonError::into_inner);
            vrings
                .iter()
                .for_each(|ring| ring.log_to(&self.engine.disk.log));
            if self.has_memory() {
                self.engine.serve(vrings, &mut thread);
            } else {
                self.warn_of_missing_memory();
                thread.idle_wakes.woke(false);
            }
        }
        Ok(())
    }
}
