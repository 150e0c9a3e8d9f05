use std::time::{Duration, Instant};

use vhost_user_backend::VringT;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::device::vhost_blk::testing::{flags, memory, put_header};
use crate::image::testing::{tree_image, with_planning_held};

const AVAIL: u64 = 0x1000;
const USED: u64 = 0x2000;
const RING: u16 = 16;

/// Where the first file's data lie (design, address space): reading there needs a plan.
const PLANNED_SECTOR: u64 = (128 << 30) / 512;

/// A guest with one queue, and the engine that serves it.
struct Guest {
    _tree: tempfile::TempDir,
    engine: Arc<Engine>,
    ring: Ring,
    memory: Memory,
    habit: Habit,
    submitted: u16,
}

impl Guest {
    fn new() -> Self {
        let tree = tempfile::tempdir().unwrap();
        std::fs::write(tree.path().join("file"), vec![7; 10_000]).unwrap();
        let disk = Disk {
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
            engine: Arc::new(Engine::new(disk, shared, 1)),
            ring,
            memory,
            habit: Habit {
                thread: 0,
                poller: Poller::new(Duration::ZERO),
            },
            submitted: 0,
        }
    }

    /// Asks for 4 KiB at each sector and has the queue's thread look.
    fn read(&mut self, sectors: &[u64]) {
        for sector in sectors {
            self.submit(*sector);
        }
        self.engine
            .serve(std::slice::from_ref(&self.ring), &mut self.habit);
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
fn what_has_to_wait_stalls_nothing_and_order_is_kept() {
    let mut guest = Guest::new();
    let image = Arc::clone(&guest.engine.disk.image);
    with_planning_held(&image, 0, || {
        guest.read(&[0, PLANNED_SECTOR, 0, PLANNED_SECTOR + 8]);
        guest.read(&[0]);
        // The thread came back: the superblock was read each time, but only the first read may be published.
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

#[test]
fn stopping_the_ring_waits_for_the_pool() {
    let mut guest = Guest::new();
    let image = Arc::clone(&guest.engine.disk.image);
    let stop = with_planning_held(&image, 0, || {
        guest.read(&[PLANNED_SECTOR]);
        let ring = guest.ring.clone();
        let stop = std::thread::spawn(move || ring.set_queue_ready(false));
        std::thread::sleep(Duration::from_millis(50));
        assert!(!stop.is_finished());
        stop
    });
    stop.join().unwrap();
    assert_eq!((guest.published(), guest.status(0)), (1, 0));
}

/// Once the pool has ended, as at the end of a connection, the thread does everything itself.
#[test]
fn without_a_pool_the_thread_waits() {
    let mut guest = Guest::new();
    guest.engine.pool.end();
    guest.read(&[PLANNED_SECTOR, 0]);
    assert_eq!(guest.heads(), [0, 3]);
}

/// Rings that lie so that the used index of each is the available index of the next: every answer in one makes a
/// request available in another, for ever. It takes three: none may be more than its length behind.
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
fn rings_that_feed_each_other_end_when_the_frontend_leaves() {
    let guest = Guest::new();
    let rings = perpetual(&guest);
    let index = GuestAddress(0x10_0002);
    let (memory, engine, mut habit) = (guest.memory, Arc::clone(&guest.engine), guest.habit);
    let server = std::thread::spawn(move || engine.serve(&rings, &mut habit));
    let deadline = Instant::now() + Duration::from_secs(10);
    // The index goes around twice: nobody but the device moves it.
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
