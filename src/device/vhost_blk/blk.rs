//! The device: what a frontend asks of it, and its threads.

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

use super::super::log_limit::Trouble;
use super::super::meter::{Meter, Stats};
use super::config::{self, ConfigSpace, QUEUE_SIZE_MAX, QUEUES};
use super::dirty::RegionLog;
use super::engine::{Engine, QueueThread};
use super::execute::Disk;
use super::guest::SharedMemory;
use super::idle::IdleWakes;
use super::poller::Poller;
use super::request::ID_BYTES;
use super::ring::Ring;
use crate::image::Image;
use crate::process::ProcessError;

/// More threads than this do not make one VM faster: a guest's reads are few and short.
const DEFAULT_THREADS_MAX: usize = 4;

/// How one VM's disk is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceOptions {
    /// What the guest sees as the disk's serial: the first 20 bytes count.
    pub serial: String,
    /// Queues that a frontend may set up, 64 at most; [`serve`](super::super) offers fewer where descriptors are short.
    pub queues: u16,
    /// Threads that serve queues; queue `q` belongs to thread `q % threads`. More than there are queues is no use.
    pub threads: NonZeroUsize,
    /// How long a thread looks for further requests before it sleeps, at most; zero for never.
    pub poll: Duration,
}

/// Long enough for a guest to take an answer and ask again where a wake-up takes 100 µs; `docs/performance.md` has figures.
pub const DEFAULT_POLL: Duration = Duration::from_micros(200);

impl DeviceOptions {
    /// As many threads as there are CPUs, but at most four.
    pub fn default_threads() -> NonZeroUsize {
        let cpus = thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        let most = NonZeroUsize::new(DEFAULT_THREADS_MAX).unwrap_or(NonZeroUsize::MIN);
        cpus.min(most)
    }

    /// Counters for all threads of one device.
    ///
    /// # Errors
    /// When there is no memory left.
    pub fn meter(&self) -> Result<Meter, ProcessError> {
        // One for each queue thread, and one for the pool.
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

/// How a thread is told to end: the end it waits on and the end that tells.
type ExitEvent = (EventConsumer, EventNotifier);

/// A read-only disk for one VM.
pub struct BlkDevice {
    engine: Arc<Engine>,
    config: ConfigSpace,
    queues: u16,
    /// One for each thread, which alone takes it.
    threads: Vec<Mutex<QueueThread>>,
    /// Made in advance: a thread without one could never be joined.
    exits: Mutex<Vec<Option<ExitEvent>>>,
    /// Whether a frontend has said anything at all.
    addressed: OnceLock<()>,
}

impl BlkDevice {
    /// A device that serves `image` to the frontend whose memory is mapped into `memory`, and counts in `meter`.
    ///
    /// # Errors
    /// When the host has no file descriptors left.
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
        let disk = Disk {
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

    /// The frontend has left: its queue threads come back soon, whatever lies in the rings.
    pub fn leave(&self) {
        self.engine.ended.store(true, Ordering::Relaxed);
    }

    /// Waits for requests that other threads still carry out. For the end: from then on all threads block.
    pub fn finish(&self) {
        self.engine.fetching.end();
        self.engine.pool.end();
    }

    /// What was served so far; exact once the threads have ended and [`finish`](Self::finish) has returned.
    pub fn stats(&self) -> Stats {
        self.engine.meter.stats()
    }

    /// Whether a frontend has asked for the features, which is the first thing all of them do.
    pub fn was_addressed(&self) -> bool {
        self.addressed.get().is_some()
    }

    /// Waits until a frontend has said something.
    pub fn wait_until_addressed(&self) {
        self.addressed.wait();
    }

    /// Whether the frontend has shared any memory.
    pub fn has_memory(&self) -> bool {
        self.engine.memory.memory().num_regions() > 0
    }

    fn warn_of_missing_memory(&self) {
        if self.engine.limit.pass(Trouble::Memory).is_some() {
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

    /// Nothing to do: the rings keep it.
    fn set_event_idx(&self, _enabled: bool) {}

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        self.config.read(offset, size)
    }

    /// `memory` is the very object that the handler replaces.
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

    /// Looks at all of the thread's rings, whichever one has the event. Always `Ok`: an error ends the thread.
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
