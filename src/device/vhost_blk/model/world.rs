//! Simulates a guest, its frontend, a queue thread and a pool around real rings.
//!
//! Compiled both with `shuttle`'s threads and with real ones.

use std::fs::File;
use std::os::fd::OwnedFd;

use nix::sys::eventfd::{EfdFlags, EventFd};
use vhost_user_backend::VringT;
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};

use super::execute::Completion;
use super::guest::{Memory, SharedMemory};
use super::inflight::Ticket;
use super::offload::Epoch;
use super::pool::{Job, Pool};
use super::ring::{Collected, Ring, WhenEmpty};
use super::sync::{Arc, Condvar, Mutex, thread};
use super::testing::{ANSWER, Driver};

/// What the frontend does while requests are in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// GET_VRING_BASE, and a start with an arbitrary base.
    Stop,
    /// SET_VRING_ENABLE.
    Disable,
    /// A stop, and a start with another driver in the same memory.
    Reset { event_idx: bool },
    /// SET_VRING_ADDR of a running ring.
    Addresses,
    /// SET_FEATURES while rings are running.
    EventIdx(bool),
    /// The connection ends.
    Leave,
}

/// Number of requests submitted before each change.
const BURST: usize = 3;

/// How often other threads may run before a halted ring is checked again.
const REST: usize = 6;

/// One ring, with its device side and its driver side.
struct Queue {
    ring: Ring,
    driver: Driver,
    kick: File,
    size: u16,
    event_idx: bool,
}

/// Wakes the queue's thread, like the event loop.
#[derive(Default)]
struct Doorbell {
    state: Mutex<Bell>,
    rung: Condvar,
}

#[derive(Default)]
struct Bell {
    rung: bool,
    ended: bool,
}

impl Doorbell {
    fn ring(&self) {
        self.state.lock().unwrap().rung = true;
        self.rung.notify_one();
    }

    fn end(&self) {
        self.state.lock().unwrap().ended = true;
        self.rung.notify_one();
    }

    /// Waits until it is rung. False at the end.
    fn wait(&self) -> bool {
        let mut state = self.state.lock().unwrap();
        while !state.rung && !state.ended {
            state = self.rung.wait(state).unwrap();
        }
        state.rung = false;
        !state.ended
    }
}

/// A request as the device sees it.
struct Request {
    ticket: Ticket,
    head: u16,
    buffers: Vec<(GuestAddress, u32)>,
}

impl Request {
    fn execute(&self, memory: &Memory) -> (Ticket, Completion) {
        for (address, len) in &self.buffers {
            let answer = &ANSWER[..*len as usize];
            memory.write_slice(answer, *address).unwrap();
        }
        let completion = Completion {
            head: self.head,
            used_len_bytes: 16,
        };
        (self.ticket, completion)
    }
}

/// Requests executed by a thread of the pool, which reports each one separately, like the engine's job.
struct PoolJob {
    ring: Ring,
    requests: Vec<Request>,
    epoch: Epoch,
    memory: Memory,
}

impl Job for PoolJob {
    fn run(self) {
        for request in &self.requests {
            let Some(permit) = self.ring.permit(self.epoch) else {
                return;
            };
            // The thread would wait for a disk here.
            thread::yield_now();
            if self.ring.is_halting() {
                return;
            }
            let completion = request.execute(&self.memory);
            self.ring.answer(permit, &[completion]).unwrap();
        }
    }
}

/// Serves the rings until they are empty.
fn serve(rings: &[Ring], memories: &[SharedMemory], pool: &Pool<PoolJob>) {
    let mut busy = true;
    while busy {
        busy = false;
        for (ring, memory) in rings.iter().zip(memories) {
            busy |= serve_batch(ring, memory, WhenEmpty::AskForKick, pool);
        }
    }
}

/// Executes every second request, and hands the others to the pool.
fn serve_batch(
    ring: &Ring,
    memory: &SharedMemory,
    when_empty: WhenEmpty,
    pool: &Pool<PoolJob>,
) -> bool {
    if ring.is_halting() {
        return false;
    }
    let mapped = memory.memory();
    let mut locked = ring.lock();
    let mut chains = Vec::new();
    let (found, first) = locked.collect(&*mapped, when_empty, &mut chains).unwrap();
    let mut late = Vec::new();
    for (index, chain) in chains.into_iter().enumerate() {
        let request = Request {
            ticket: first.later(index),
            head: chain.head_index(),
            buffers: chain
                .writable()
                .map(|part| (part.addr(), part.len()))
                .collect(),
        };
        if ring.is_halting() {
            break;
        }
        if index % 2 == 1 {
            let (ticket, completion) = request.execute(&mapped);
            locked.complete(ticket, completion);
        } else {
            late.push(request);
        }
    }
    let job = PoolJob {
        ring: ring.clone(),
        requests: late,
        epoch: locked.epoch(),
        memory: (*mapped).clone(),
    };
    assert!(job.requests.is_empty() || pool.submit(job).is_ok());
    locked.publish().unwrap();
    found == Collected::Requests
}

pub struct World {
    queues: Vec<Queue>,
    bell: Arc<Doorbell>,
    server: thread::JoinHandle<()>,
    pool: Arc<Pool<PoolJob>>,
}

impl World {
    /// Applies each of `changes` to every ring while requests are in flight.
    pub fn run(sizes: &[u16], changes: impl IntoIterator<Item = Change>) {
        let mut world = Self::new(sizes);
        for (turn, change) in changes.into_iter().enumerate() {
            for index in 0..world.queues.len() {
                world.submit(index, BURST);
            }
            if change == Change::Leave {
                return world.end();
            }
            for index in 0..world.queues.len() {
                world.change(index, change, turn);
            }
        }
        for index in 0..world.queues.len() {
            world.submit(index, BURST);
            world.finish(index);
        }
        world.end();
    }

    fn new(sizes: &[u16]) -> Self {
        let queues: Vec<Queue> = sizes.iter().map(|size| Queue::new(*size)).collect();
        let pool = Arc::new(Pool::new(2));
        let bell = Arc::new(Doorbell::default());
        let rings: Vec<Ring> = queues.iter().map(|queue| queue.ring.clone()).collect();
        let memories: Vec<SharedMemory> = queues
            .iter()
            .map(|queue| SharedMemory::new(queue.driver.memory().clone()))
            .collect();
        let (served, rung) = (Arc::clone(&pool), Arc::clone(&bell));
        let server = thread::spawn(move || {
            while rung.wait() {
                serve(&rings, &memories, &served);
            }
        });
        Self {
            queues,
            bell,
            server,
            pool,
        }
    }

    /// Submits requests, and kicks only if the device wants it: if the device misses to ask, a request is never
    /// completed.
    fn submit(&mut self, index: usize, count: usize) {
        let queue = &mut self.queues[index];
        queue.driver.take_back().unwrap();
        let before = queue.driver.avail_index();
        queue.driver.submit(count);
        if queue.driver.wants_kick(queue.event_idx, before) {
            self.bell.ring();
        }
    }

    fn change(&mut self, index: usize, change: Change, turn: usize) {
        let queue = &mut self.queues[index];
        match change {
            Change::Stop => {
                queue.stop();
                queue.start(turn);
            }
            Change::Disable => {
                queue.ring.set_enabled(false);
                queue.check_rest();
                queue.ring.set_enabled(true);
            }
            Change::Reset { event_idx } => {
                queue.stop();
                queue.ring.set_queue_event_idx(event_idx);
                queue.event_idx = event_idx;
                let memory = queue.driver.memory().clone();
                queue.driver = Driver::in_memory(memory, queue.size, 0);
                queue.start(turn);
            }
            Change::Addresses => {
                let (descriptors, avail, used) = queue.driver.addresses();
                queue.ring.set_queue_info(descriptors, avail, used).unwrap();
            }
            Change::EventIdx(event_idx) => {
                queue.ring.set_queue_event_idx(event_idx);
                queue.event_idx = event_idx;
            }
            Change::Leave => unreachable!("handled by the caller"),
        }
        self.look(index, change);
    }

    /// Simulates `vhost-user-backend`, which wakes the thread when a ring is started or enabled (rule 4), and when its
    /// kick descriptor is readable.
    fn look(&self, index: usize, change: Change) {
        let registered = !matches!(change, Change::Addresses | Change::EventIdx(_));
        let mut kick = &self.queues[index].kick;
        let kicked = std::io::Read::read(&mut kick, &mut [0; 8]).is_ok();
        if registered || kicked {
            self.bell.ring();
        }
    }

    /// Waits until all requests are completed.
    fn finish(&mut self, index: usize) {
        let driver = &mut self.queues[index].driver;
        loop {
            driver.check_prefix().unwrap();
            driver.take_back().unwrap();
            if driver.check_nothing_lost().is_ok() {
                return;
            }
            thread::yield_now();
        }
    }

    fn end(self) {
        self.bell.end();
        self.server.join().unwrap();
        self.pool.end();
        for queue in self.queues {
            queue.driver.check_prefix().unwrap();
        }
    }
}

impl Queue {
    fn new(size: u16) -> Self {
        // Start close to the point where both indexes wrap around.
        let driver = Driver::new(size, u16::MAX - 1);
        let memory = SharedMemory::new(driver.memory().clone());
        let ring = Ring::new(memory, 256).unwrap();
        let kick = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap();
        let kick = File::from(OwnedFd::from(kick));
        let queue = Self {
            ring,
            driver,
            kick,
            size,
            event_idx: false,
        };
        queue.start(0);
        queue
    }

    /// Starts the ring with the base reported to the frontend, with the available index, or with an arbitrary base.
    fn start(&self, turn: usize) {
        let (descriptors, avail, used) = self.driver.addresses();
        self.ring.set_queue_size(self.size);
        let base = [
            self.ring.queue_next_avail(),
            self.driver.avail_index(),
            0x1234,
        ][turn % 3];
        self.ring.set_queue_next_avail(base);
        self.ring.set_queue_info(descriptors, avail, used).unwrap();
        self.ring.set_kick(Some(self.kick.try_clone().unwrap()));
        self.ring.set_queue_ready(true);
        self.ring.set_enabled(true);
    }

    fn stop(&mut self) {
        self.ring.set_queue_ready(false);
        self.check_rest();
        self.ring.set_kick(None);
    }

    /// Checks that the base equals the used index, and that no thread changes guest memory any more.
    fn check_rest(&self) {
        let base = self.ring.queue_next_avail();
        assert_eq!(base, self.driver.used_index(), "base and used index");
        let before = self.bytes();
        for _ in 0..REST {
            thread::yield_now();
        }
        assert!(before == self.bytes(), "written to after a stop");
        self.driver.check_prefix().unwrap();
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; 0x10000];
        self.driver
            .memory()
            .read_slice(&mut bytes, GuestAddress(0))
            .unwrap();
        bytes
    }
}
