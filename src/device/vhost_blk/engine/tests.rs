use std::time::{Duration, Instant};

use vhost_user_backend::VringT;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::device::vhost_blk::guest::Memory;
use crate::device::vhost_blk::testing::{flags, memory, put_header};
use crate::image::testing::{tree_image, with_planning_held};

const AVAIL: u64 = 0x1000;
const USED: u64 = 0x2000;
const RING: u16 = 16;

/// Address of the first file's data (design, address space); reading it needs a plan.
const PLANNED_SECTOR: u64 = (128 << 30) / 512;

/// A guest with one queue, and the engine that serves it.
struct Guest {
    _tree: tempfile::TempDir,
    engine: Arc<Engine>,
    ring: Ring,
    memory: Memory,
    thread: QueueThread,
    submitted: u16,
}

impl Guest {
    fn new() -> Self {
        let tree = tempfile::tempdir().unwrap();
        std::fs::write(tree.path().join("file"), vec![7; 10_000]).unwrap();
        let disk = BlkDisk {
            log: Arc::default(),
            image: Arc::new(tree_image(tree.path())),
            serial: [0; 20],
        };
        let memory = memory(0x100_0000);
        let shared = SharedMemory::new(memory.clone());
        let ring = Ring::new(shared.clone(), 256).unwrap();
        ring.set_queue_size(RING);
        ring.set_queue_info(0, AVAIL, USED).unwrap();
        ring.set_queue_ready(true);
        ring.set_enabled(true);
        Self {
            _tree: tree,
            engine: Arc::new(Engine::new(disk, shared, Meter::new(2).unwrap())),
            ring,
            memory,
            thread: QueueThread {
                index: 0,
                poller: Poller::new(Duration::ZERO),
                idle_wakes: IdleWakes::default(),
            },
            submitted: 0,
        }
    }

    /// Submits a read of 4 KiB at each sector and runs the queue's thread.
    fn read(&mut self, sectors: &[u64]) {
        for sector in sectors {
            self.submit(*sector);
        }
        self.engine
            .serve(std::slice::from_ref(&self.ring), &mut self.thread);
    }

    fn submit(&mut self, sector: u64) {
        let slot = u64::from(self.submitted);
        let (header, data, first) = (place(slot), place(slot) + 0x1000, 3 * slot);
        put_header(&self.memory, header, 0, sector);
        self.memory
            .write_obj(0xeeu8, GuestAddress(header + 16))
            .unwrap();
        let next = |by: u64| u16::try_from(first + by).unwrap();
        let chain = [
            Descriptor::new(header, 16, flags(true, false), next(1)),
            Descriptor::new(data, 4096, flags(true, true), next(2)),
            Descriptor::new(header + 16, 1, flags(false, true), 0),
        ];
        for (index, descriptor) in (first..).zip(chain) {
            let at = GuestAddress(16 * index);
            self.memory.write_obj(descriptor, at).unwrap();
        }
        let element = GuestAddress(AVAIL + 4 + 2 * slot);
        self.memory.write_obj(next(0), element).unwrap();
        self.submitted += 1;
        self.memory
            .write_obj(self.submitted, GuestAddress(AVAIL + 2))
            .unwrap();
    }

    fn status(&self, slot: u64) -> u8 {
        let at = GuestAddress(place(slot) + 16);
        self.memory.read_obj(at).unwrap()
    }

    fn published(&self) -> u16 {
        self.memory.read_obj(GuestAddress(USED + 2)).unwrap()
    }

    /// Heads in the used ring.
    fn heads(&self) -> Vec<u32> {
        let element = |index: u16| GuestAddress(USED + 4 + 8 * u64::from(index));
        (0..self.published())
            .map(|index| self.memory.read_obj(element(index)).unwrap())
            .collect()
    }

    fn wait_for(&self, published: u16) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while self.published() != published {
            assert!(Instant::now() < deadline, "{}", self.published());
            std::thread::yield_now();
        }
    }
}

fn place(slot: u64) -> u64 {
    0x10000 + 0x4000 * slot
}

#[test]
fn blocking_requests_do_not_delay_others_and_order_is_kept() {
    let mut guest = Guest::new();
    let image = Arc::clone(&guest.engine.disk.image);
    with_planning_held(&image, 0, || {
        guest.read(&[0, PLANNED_SECTOR, 0, PLANNED_SECTOR + 8]);
        guest.read(&[0]);
        // The thread returned: the superblock was read each time, but only the first read may be published.
        assert_eq!(
            [0, 1, 2, 3, 4].map(|slot| guest.status(slot)),
            [0, 0xee, 0, 0xee, 0]
        );
        assert_eq!(guest.published(), 1);
    });
    guest.wait_for(5);
    assert_eq!(guest.heads(), [0, 3, 6, 9, 12]);
    assert_eq!([1, 3].map(|slot| guest.status(slot)), [0, 0]);
    let mut data = [0; 4096];
    let at = GuestAddress(place(1) + 0x1000);
    guest.memory.read_slice(&mut data, at).unwrap();
    assert!(data == [7; 4096]);
}

fn wait_until(what: &str, reached: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !reached() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::yield_now();
    }
}

/// A stop waits only for the request that a thread of the pool is executing.
#[test]
fn stopping_a_ring_waits_for_a_running_request() {
    let mut guest = Guest::new();
    let image = Arc::clone(&guest.engine.disk.image);
    let stop = with_planning_held(&image, 0, || {
        guest.read(&[PLANNED_SECTOR]);
        wait_until("no thread began", || guest.ring.shared.offload.is_claimed());
        let ring = guest.ring.clone();
        let stop = std::thread::spawn(move || ring.set_queue_ready(false));
        wait_until("no stop began", || guest.ring.is_halting());
        assert!(!stop.is_finished());
        stop
    });
    stop.join().unwrap();
    assert_eq!((guest.published(), guest.status(0)), (1, 0));
    assert_eq!(guest.ring.queue_next_avail(), 1);
}

/// If descriptors are short, a request may have to wait for one of another ring. A stop of its ring waits for neither.
#[test]
fn a_stop_does_not_wait_for_another_rings_request_under_a_shortage() {
    let mut guest = Guest::new();
    let engine = Arc::clone(&guest.engine);
    let other = engine.shortage.write().unwrap();
    for _ in 0..5 {
        guest.read(&[PLANNED_SECTOR]);
        wait_until("no thread began", || engine.pool.waiting() == 0);
        let ring = guest.ring.clone();
        let stop = std::thread::spawn(move || ring.set_queue_ready(false));
        wait_until("the stop waits", || stop.is_finished());
        assert_eq!(guest.ring.queue_next_avail(), 0);
        guest.ring.set_queue_ready(true);
    }
    drop(other);
    guest.read(&[]);
    guest.wait_for(5);
    assert!((0..5).all(|slot| guest.status(slot) == 0));
}

/// Where large requests write the first block of the disk.
const SUPERBLOCK: u64 = 0x8_0000;

/// Fills the ring with requests of a GiB each. Executing all of them would take minutes.
fn submit_large(guest: &mut Guest) -> u16 {
    const LEN: u32 = 8 << 20;
    const PARTS: u16 = 126;
    let (table, header) = (0x8000, place(0));
    put_header(&guest.memory, header, 0, 0);
    let first = Descriptor::new(header, 16, flags(true, false), 1);
    let status = Descriptor::new(header + 16, 1, flags(false, true), 0);
    // The superblock goes to a separate buffer.
    let superblock = Descriptor::new(SUPERBLOCK, 4096, flags(true, true), 2);
    let zeros =
        (2..=PARTS).map(|index| Descriptor::new(0x10_0000, LEN, flags(true, true), index + 1));
    let data = std::iter::once(superblock).chain(zeros);
    let chain = std::iter::once(first).chain(data).chain([status]);
    for (index, descriptor) in (0u64..).zip(chain) {
        let at = GuestAddress(table + 16 * index);
        guest.memory.write_obj(descriptor, at).unwrap();
    }
    for slot in 0..u64::from(RING) {
        let indirect = Descriptor::new(table, 16 * (u32::from(PARTS) + 2), 4, 0);
        guest
            .memory
            .write_obj(indirect, GuestAddress(16 * slot))
            .unwrap();
        let element = GuestAddress(AVAIL + 4 + 2 * slot);
        guest
            .memory
            .write_obj(u16::try_from(slot).unwrap(), element)
            .unwrap();
    }
    guest
        .memory
        .write_obj(RING, GuestAddress(AVAIL + 2))
        .unwrap();
    RING
}

/// Serves large requests until `end` has returned; returns how many were published, and how many there were.
fn serve_large_until(end: impl FnOnce(&Engine, &Ring)) -> (u16, u16) {
    let mut guest = Guest::new();
    let all = submit_large(&mut guest);
    let (engine, rings, mut thread) = (guest.engine, [guest.ring], guest.thread);
    let served = Arc::clone(&engine);
    let ring = rings[0].clone();
    let server = std::thread::spawn(move || served.serve(&rings, &mut thread));
    let begun = GuestAddress(SUPERBLOCK + 1024);
    wait_until("nothing is served", || {
        guest.memory.read_obj::<u32>(begun).unwrap() != 0
    });
    end(&engine, &ring);
    engine.ended.store(true, Ordering::Relaxed);
    server.join().unwrap();
    let published: u16 = guest.memory.read_obj(GuestAddress(USED + 2)).unwrap();
    (published, all)
}

/// GET_VRING_BASE is answered while large requests are queued, one of which is being executed.
#[test]
fn a_stop_does_not_wait_for_large_requests() {
    let (published, all) = serve_large_until(|_, ring| {
        ring.set_queue_ready(false);
        assert!(!ring.is_halting());
    });
    assert!(published < all);
}

#[test]
fn a_thread_abandons_large_requests_when_the_frontend_disconnects() {
    let (published, all) = serve_large_until(|engine, _| {
        engine.ended.store(true, Ordering::Relaxed);
    });
    assert!(published < all);
}

/// After the pool has ended, as at the end of a connection, the thread executes everything itself.
#[test]
fn without_a_pool_the_thread_blocks() {
    let mut guest = Guest::new();
    guest.engine.pool.end();
    guest.read(&[PLANNED_SECTOR, 0]);
    assert_eq!(guest.heads(), [0, 3]);
}

/// Overlapping rings: the used index of each one is the available index of the next, so every completion makes a
/// request available in another ring, for ever. It takes three rings, because none may lag by more than its length.
fn perpetual(guest: &Guest) -> [Ring; 3] {
    const LEN: u16 = 32768;
    const PLACES: [u64; 3] = [0x10_0000, 0x20_0000, 0x30_0000];
    const INDEXES: [u16; 3] = [0, 0u16.wrapping_sub(21845), 0u16.wrapping_sub(43690)];
    for (place, index) in PLACES.into_iter().zip(INDEXES) {
        guest
            .memory
            .write_obj(index, GuestAddress(place + 2))
            .unwrap();
    }
    [0, 1, 2].map(|nth| {
        let ring = Ring::new(guest.engine.memory.clone(), LEN).unwrap();
        ring.set_queue_size(LEN);
        ring.set_queue_info(0, PLACES[nth], PLACES[(nth + 1) % 3])
            .unwrap();
        ring.set_queue_ready(true);
        ring.set_enabled(true);
        ring
    })
}

#[test]
fn rings_that_feed_each_other_end_when_the_frontend_disconnects() {
    let guest = Guest::new();
    let rings = perpetual(&guest);
    let index = GuestAddress(0x10_0002);
    let (memory, engine, mut thread) = (guest.memory, Arc::clone(&guest.engine), guest.thread);
    let server = std::thread::spawn(move || engine.serve(&rings, &mut thread));
    let deadline = Instant::now() + Duration::from_secs(10);
    // The index wraps around twice, although only the device changes it.
    for quarter in [0u16, 1, 2, 3, 0, 1, 2, 3, 0] {
        while memory.read_obj::<u16>(index).unwrap() / 0x4000 != quarter {
            assert!(
                Instant::now() < deadline && !server.is_finished(),
                "in {quarter}"
            );
            std::thread::yield_now();
        }
    }
    guest.engine.ended.store(true, Ordering::Relaxed);
    while !server.is_finished() {
        assert!(Instant::now() < deadline, "the thread did not come back");
        std::thread::yield_now();
    }
    server.join().unwrap();
}
