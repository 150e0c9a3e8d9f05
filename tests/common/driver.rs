//! A guest's driver with many requests in flight, which checks every byte that it reads.
//!
//! It works like Linux's virtio-blk: descriptor chains from a free list, indirect tables, interrupts by event index. It
//! reads the used ring only after an interrupt or before it sleeps. Its memory outlives connections.

use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use lazystore::image::Image;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};

use super::frontend::{Frontend, Layout};
use super::process::wait_for;
use super::random::Random;

const QUEUE: u16 = 256;
const AVAIL: u64 = 0x1000;
const USED: u64 = 0x2000;
const SLOTS: u16 = 96;
const SLOT_BYTES: u64 = 0x1_2000;
const SLOTS_START: u64 = 0x1_0000;
const STATUS: u64 = 16;
const TABLE: u64 = 0x100;
const DATA: u64 = 0x2000;
/// Maximum length of a read.
const DATA_BYTES: u64 = 0x1_0000;
const MEMORY_BYTES: u64 = SLOTS_START + SLOT_BYTES * SLOTS as u64;

/// The parts of the disk that are not empty.
pub fn places(image: &Image) -> Vec<Range<u64>> {
    let regions = image.space().regions();
    let parts = regions
        .iter()
        .flat_map(|region| [&region.meta, &region.data]);
    let bytes = parts.map(|blocks| 4096 * u64::from(blocks.start)..4096 * u64::from(blocks.end));
    bytes
        .chain(std::iter::once(0..8192))
        .filter(|range| !range.is_empty())
        .collect()
}

/// Start value of both indexes, so that they wrap around soon.
const FIRST_INDEX: u16 = u16::MAX - 500;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

const FILL: u8 = 0xee;

/// `VIRTIO_F_INDIRECT_DESC`, `VIRTIO_F_EVENT_IDX` (virtio 1.2), and the features that every frontend accepts.
const FEATURES: u64 = 1 << 28 | 1 << 29 | super::frontend::F_VERSION_1 | 1 << 30;

const LAYOUT: Layout = Layout {
    memory_bytes: MEMORY_BYTES,
    queue_size: QUEUE,
    descriptors: 0,
    avail: AVAIL,
    used: USED,
};

/// Why a driver woke up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Woken {
    Interrupt,
    /// The device hung up.
    Closed,
}

/// Which paths of the store are intact. Each has a counter, which is odd while the path is broken.
pub struct Health {
    regions: Vec<[Range<u64>; 2]>,
    states: Vec<AtomicU64>,
}

impl Health {
    pub fn new(image: &Image) -> Self {
        let bytes =
            |blocks: &Range<u32>| 4096 * u64::from(blocks.start)..4096 * u64::from(blocks.end);
        let regions = image.space().regions().iter();
        let regions: Vec<_> = regions
            .map(|region| [bytes(&region.meta), bytes(&region.data)])
            .collect();
        Self {
            states: regions.iter().map(|_| AtomicU64::new(0)).collect(),
            regions,
        }
    }

    /// Marks a path as broken or repaired.
    pub fn toggle(&self, region: usize) {
        self.states[region].fetch_add(1, Ordering::SeqCst);
    }

    /// The counter of the path whose range contains byte `at`. Zero if there is none.
    fn state(&self, at: u64) -> u64 {
        let holds = |ranges: &[Range<u64>; 2]| ranges.iter().any(|range| range.contains(&at));
        let found = self.regions.iter().position(holds);
        found.map_or(0, |region| self.states[region].load(Ordering::SeqCst))
    }
}

/// Counts of results.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counts {
    pub answered: u64,
    pub bytes: u64,
    /// I/O errors while the path was broken.
    pub expected_errors: u64,
    /// Other errors.
    pub unexpected_errors: u64,
    pub mismatches: u64,
    pub indirect: u64,
    pub most_in_flight: usize,
}

struct Under {
    slot: u16,
    start: u64,
    len: usize,
    descriptors: Vec<u16>,
    /// State of the path when the read was made available.
    state: u64,
}

pub struct Driver {
    memory: GuestMemoryMmap,
    backing: File,
    random: Random,
    free_descriptors: Vec<u16>,
    free_slots: Vec<u16>,
    in_flight: HashMap<u16, Under>,
    avail: u16,
    seen: u16,
    pub counts: Counts,
    /// `None` if nothing is broken during the test.
    pub health: Option<Arc<Health>>,
}

impl Driver {
    pub fn new(seed: u64) -> Self {
        let backing = tempfile::tempfile().unwrap();
        backing.set_len(MEMORY_BYTES).unwrap();
        let offset = FileOffset::new(backing.try_clone().unwrap(), 0);
        let len = usize::try_from(MEMORY_BYTES).unwrap();
        let range = (GuestAddress(0), len, Some(offset));
        let driver = Self {
            memory: GuestMemoryMmap::from_ranges_with_files([range]).unwrap(),
            backing,
            random: Random::new(seed),
            free_descriptors: (0..QUEUE).collect(),
            free_slots: (0..SLOTS).collect(),
            in_flight: HashMap::new(),
            avail: FIRST_INDEX,
            seen: FIRST_INDEX,
            counts: Counts::default(),
            health: None,
        };
        driver.put16(AVAIL + 2, FIRST_INDEX);
        driver.put16(USED + 2, FIRST_INDEX);
        driver
    }

    fn put16(&self, at: u64, value: u16) {
        self.memory.write_obj(value, GuestAddress(at)).unwrap();
    }

    pub fn used_index(&self) -> u16 {
        self.memory.read_obj(GuestAddress(USED + 2)).unwrap()
    }

    /// Whether the device has published completions that the driver has not processed.
    pub fn has_unseen(&self) -> bool {
        self.used_index() != self.seen
    }

    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Makes up to `count` random reads available, as far as there are free descriptors.
    pub fn submit(&mut self, count: usize, places: &[Range<u64>]) {
        for _ in 0..count {
            if self.free_slots.is_empty() || self.free_descriptors.len() < 12 {
                break;
            }
            let place = &places[self.random.index(places.len())];
            let sectors = (place.end - place.start) / 512;
            let first = self.random.below(sectors);
            let most = (sectors - first).min(DATA_BYTES / 512);
            // Guests mostly make small reads.
            let wanted = match self.random.below(4) {
                0 => most,
                1 => most.min(1 + self.random.below(32)),
                _ => most.min(8),
            };
            let len = 512 * (1 + self.random.below(wanted));
            self.submit_one(place.start + 512 * first, len);
        }
        self.put16(AVAIL + 2, self.avail);
        self.counts.most_in_flight = self.counts.most_in_flight.max(self.in_flight.len());
    }

    fn submit_one(&mut self, start: u64, len: u64) {
        let slot = self
            .free_slots
            .remove(self.random.index(self.free_slots.len()));
        let base = SLOTS_START + SLOT_BYTES * u64::from(slot);
        let header = [0u64, start / 512];
        self.memory.write_obj(header, GuestAddress(base)).unwrap();
        self.memory
            .write_obj(FILL, GuestAddress(base + STATUS))
            .unwrap();
        let len = usize::try_from(len).unwrap();
        self.memory
            .write_slice(&vec![FILL; len], GuestAddress(base + DATA))
            .unwrap();
        let parts = self.parts(base, len as u64);
        let descriptors = if self.random.below(2) == 0 {
            self.chain(&parts)
        } else {
            self.counts.indirect += 1;
            self.indirect(base + TABLE, &parts)
        };
        let head = descriptors[0];
        self.put16(AVAIL + 4 + 2 * u64::from(self.avail % QUEUE), head);
        self.avail = self.avail.wrapping_add(1);
        let under = Under {
            slot,
            start,
            len,
            descriptors,
            state: self.state(start),
        };
        assert!(self.in_flight.insert(head, under).is_none());
    }

    /// Header, data in up to eight segments, status.
    fn parts(&mut self, base: u64, len: u64) -> Vec<(u64, u64, u16)> {
        let mut parts = vec![(base, 16, 0)];
        let (mut at, end) = (base + DATA, base + DATA + len);
        while at < end {
            let rest = end - at;
            let now = match parts.len() {
                8 => rest,
                _ => rest.min(1 + self.random.below(rest)),
            };
            parts.push((at, now, WRITE));
            at += now;
        }
        parts.push((base + STATUS, 1, WRITE));
        parts
    }

    fn chain(&mut self, parts: &[(u64, u64, u16)]) -> Vec<u16> {
        let take = |_| {
            let at = self.random.index(self.free_descriptors.len());
            self.free_descriptors.swap_remove(at)
        };
        let descriptors: Vec<u16> = parts.iter().map(take).collect();
        for (index, (address, len, flags)) in parts.iter().enumerate() {
            let next = descriptors.get(index + 1);
            let flags = flags | next.map_or(0, |_| NEXT);
            let at = 16 * u64::from(descriptors[index]);
            self.descriptor(at, *address, *len, flags, next.copied().unwrap_or(0));
        }
        descriptors
    }

    fn indirect(&mut self, table: u64, parts: &[(u64, u64, u16)]) -> Vec<u16> {
        for (index, (address, len, flags)) in (0u16..).zip(parts) {
            let last = usize::from(index) + 1 == parts.len();
            let flags = flags | if last { 0 } else { NEXT };
            let at = table + 16 * u64::from(index);
            self.descriptor(at, *address, *len, flags, if last { 0 } else { index + 1 });
        }
        let head = self.free_descriptors.pop().unwrap();
        let len = 16 * parts.len() as u64;
        self.descriptor(16 * u64::from(head), table, len, INDIRECT, 0);
        vec![head]
    }

    fn descriptor(&self, at: u64, address: u64, len: u64, flags: u16, next: u16) {
        let rest = len | u64::from(flags) << 32 | u64::from(next) << 48;
        self.memory
            .write_obj([address, rest], GuestAddress(at))
            .unwrap();
    }

    /// Connects, with retries.
    pub fn connect(&self, socket: &Path) -> Frontend {
        wait_for("a connection", || {
            Frontend::try_start(socket, &self.backing, LAYOUT, FEATURES).ok()
        })
    }

    /// Processes completions, and compares the data with `image`.
    pub fn process_completions(&mut self, image: &Image) {
        while self.has_unseen() {
            let at = USED + 4 + 8 * u64::from(self.seen % QUEUE);
            let [head, used_len]: [u32; 2] = self.memory.read_obj(GuestAddress(at)).unwrap();
            self.seen = self.seen.wrapping_add(1);
            let head = u16::try_from(head).unwrap();
            // Linux logs "id %u is not a head!" here and stops using the disk.
            let under = self.in_flight.remove(&head);
            let under = under.unwrap_or_else(|| panic!("id {head} is not a head"));
            self.check(&under, used_len, image);
            self.free_slots.push(under.slot);
            self.free_descriptors.extend(under.descriptors);
        }
    }

    fn state(&self, at: u64) -> u64 {
        self.health.as_ref().map_or(0, |health| health.state(at))
    }

    fn check(&mut self, under: &Under, used_len: u32, image: &Image) {
        let base = SLOTS_START + SLOT_BYTES * u64::from(under.slot);
        let status: u8 = self.memory.read_obj(GuestAddress(base + STATUS)).unwrap();
        self.counts.answered += 1;
        let place = format!("{} bytes at {}", under.len, under.start);
        match status {
            0 => {
                assert_eq!(used_len as usize, under.len + 1, "{place}");
                let right = self.is_right(under, base + DATA, image);
                self.counts.mismatches += u64::from(!right);
                self.counts.bytes += under.len as u64;
                if !right {
                    eprintln!("wrong: {place}");
                }
            }
            1 if under.state % 2 == 1 || under.state != self.state(under.start) => {
                self.counts.expected_errors += 1;
            }
            other => {
                self.counts.unexpected_errors += 1;
                eprintln!("status {other}: {place}");
            }
        }
    }

    fn is_right(&self, under: &Under, at: u64, image: &Image) -> bool {
        let (mut found, mut expected) = (vec![0; under.len], vec![0; under.len]);
        self.memory
            .read_slice(&mut found, GuestAddress(at))
            .unwrap();
        image.read_exact_at(&mut expected, under.start).unwrap();
        found == expected
    }

    /// Asserts that there were neither errors nor wrong bytes.
    pub fn assert_clean(&self) {
        let bad = self.counts.mismatches + self.counts.unexpected_errors;
        assert_eq!(bad, 0, "{:?}", self.counts);
    }

    /// Requests an interrupt for the next completion. Completions that are already published do not cause one.
    pub fn ask_for_interrupt(&self) {
        self.put16(AVAIL + 4 + 2 * u64::from(QUEUE), self.seen);
    }

    /// Sleeps until the device interrupts or disconnects, unless there are completions.
    pub fn wait(&self, frontend: &Frontend) -> Woken {
        self.ask_for_interrupt();
        if self.has_unseen() {
            return Woken::Interrupt;
        }
        self.sleep(frontend)
    }

    /// Sleeps without checking the ring.
    pub fn sleep(&self, frontend: &Frontend) -> Woken {
        let mut fds = [frontend.call.as_fd(), frontend.connection()]
            .map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        let minute = PollTimeout::from(60_000u16);
        let count = poll(&mut fds, minute).unwrap();
        assert!(
            count > 0,
            "{} requests wait, and no interrupt comes",
            self.in_flight()
        );
        let interrupted = fds[0].revents().is_some_and(|events| !events.is_empty());
        if interrupted && frontend.call.read().is_ok() {
            Woken::Interrupt
        } else {
            Woken::Closed
        }
    }
}
