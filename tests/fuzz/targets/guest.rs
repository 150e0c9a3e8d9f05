//! A hostile guest: any contents of its memory, addresses of its ring, and events in any order. The device's own event
//! handler serves it, and the result is compared with a model of what virtio allows. Between events and while the device
//! serves the ring, a frontend stops, resets and renegotiates it.

#[path = "guest/frontend.rs"]
mod frontend;
#[path = "guest/memory.rs"]
mod memory;
#[path = "guest/model.rs"]
mod model;
#[path = "guest/server.rs"]
mod server;

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lazystore::device::vhost_blk::blk::BlkDevice;
use lazystore::device::vhost_blk::guest::{Memory, SharedMemory};
use lazystore::device::vhost_blk::ring::{Collected, Ring, WhenEmpty};
use lazystore::device::vhost_blk::{DeviceOptions, QUEUES};
use lazystore::image::Image;
use nix::sys::eventfd::{EfdFlags, EventFd};
use vhost_user_backend::{VhostUserBackend, VringT};
use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::epoll::EventSet;

use super::disk;
use super::input::Input;
use memory::{DATA, Layout, layouts};
use model::{Addresses, Expected, Verdict};
use server::Server;

/// Maximum number of steps. More find nothing new.
const STEPS_MAX: usize = 40;

/// Addresses of a well-behaved guest's ring, valid in all layouts.
const ORDINARY: Addresses = Addresses {
    descriptors: 0x0,
    avail: 0x800,
    used: 0xa00,
};

/// Address of a well-behaved guest's headers, each followed by a status byte.
const REQUESTS: u64 = 0x1000;
const REQUEST_BYTES: u64 = 0x40;

/// State that all executions share.
struct Stage {
    device: Arc<BlkDevice>,
    /// The thread that serves a ring while the main thread does something else.
    server: Server,
    /// The call eventfd of all guests.
    call: EventFd,
    image: Arc<Image>,
    shared: SharedMemory,
    layouts: Vec<Layout>,
}

impl Stage {
    fn new() -> Self {
        let image = disk::disk(0);
        let options = DeviceOptions {
            serial: "nix-store-0123456789".to_owned(),
            threads: NonZeroUsize::MIN,
            queues: QUEUES,
            poll: Duration::ZERO,
        };
        let shared = SharedMemory::new(Memory::new());
        let device = BlkDevice::new(
            Arc::clone(&image),
            &options,
            options.meter().unwrap(),
            shared.clone(),
        )
        .unwrap();
        let device = Arc::new(device);
        Self {
            server: Server::new(Arc::clone(&device)),
            device,
            call: EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap(),
            image,
            shared,
            layouts: layouts(),
        }
    }
}

/// One guest with one ring.
struct Guest<'s> {
    stage: &'s Stage,
    layout: &'s Layout,
    ring: Ring,
    /// The length of the ring according to the guest.
    size: u16,
    addresses: Addresses,
    /// The device has stopped serving the ring because it is invalid.
    broken: bool,
    /// The frontend has set a valid size.
    size_is_good: bool,
    /// Number of completed requests, as an index of the used ring. Only for a ring that is not broken.
    answered: u16,
}

impl<'s> Guest<'s> {
    fn new(stage: &'s Stage, input: &mut Input<'_>) -> Self {
        let layout = &stage.layouts[usize::from(input.byte()) % stage.layouts.len()];
        layout.reset();
        stage.shared.lock().unwrap().replace(layout.memory.clone());
        let ring = Ring::new(stage.shared.clone(), 1024).unwrap();
        let shape = input.byte();
        let mut guest = Self {
            stage,
            layout,
            ring,
            size: 1 << (shape % 8),
            addresses: ORDINARY,
            broken: true,
            size_is_good: true,
            answered: 0,
        };
        let call = std::os::fd::AsFd::as_fd(&stage.call)
            .try_clone_to_owned()
            .unwrap();
        guest.ring.set_call(Some(call.into()));
        guest.ring.set_queue_size(guest.size);
        guest.ring.set_queue_event_idx(shape & 8 != 0);
        if shape & 16 != 0 {
            let start = input.word16();
            guest.put(ORDINARY.avail + 2, &start.to_le_bytes());
            guest.put(ORDINARY.used + 2, &start.to_le_bytes());
        }
        guest.place_ring(ORDINARY);
        guest.start();
        guest.ring.set_enabled(true);
        guest
    }

    fn memory(&self) -> &'s Memory {
        &self.layout.memory
    }

    /// Stores bytes, as far as they fit.
    fn put(&self, address: u64, bytes: &[u8]) {
        let _ = self.memory().write(bytes, GuestAddress(address));
    }

    fn used_index(&self) -> Option<u16> {
        let at = self.addresses.used.checked_add(2)?;
        self.memory().read_obj(GuestAddress(at)).ok()
    }

    fn place_ring(&mut self, addresses: Addresses) {
        let Addresses {
            descriptors,
            avail,
            used,
        } = addresses;
        let running = self.ring.get_ref().get_queue().ready();
        if self.ring.set_queue_info(descriptors, avail, used).is_ok() {
            self.addresses = addresses;
        } else {
            // The device may have accepted some of the addresses.
            self.addresses = Addresses::of(&self.ring);
        }
        if running {
            self.resumed();
        }
    }

    fn start(&mut self) {
        self.ring.set_queue_ready(true);
        self.resumed();
    }

    /// The device continues from the used index in memory, regardless of the frontend's base.
    fn resumed(&mut self) {
        let index = self.used_index();
        self.broken = index.is_none() || !self.size_is_good;
        if let Some(index) = index.filter(|_| self.size_is_good) {
            assert_eq!(self.ring.queue_next_avail(), index);
            self.answered = index;
        }
    }

    fn avail_index(&self) -> u16 {
        let at = self.addresses.avail.wrapping_add(2);
        self.memory().read_obj(GuestAddress(at)).unwrap_or(0)
    }

    /// An address in memory, at its edges, in the ring, or any.
    fn address(&self, input: &mut Input<'_>) -> u64 {
        let kind = input.byte();
        let regions = &self.layout.regions;
        let (start, len) = regions[usize::from(kind / 8) % regions.len()];
        match kind % 8 {
            0..=3 => start + u64::from(input.word16()) % len as u64,
            4 => start
                .wrapping_add(len as u64)
                .wrapping_sub(u64::from(input.byte() % 32)),
            5 => REQUESTS + u64::from(input.word16() % 0x2000),
            6 => {
                let Addresses {
                    descriptors,
                    avail,
                    used,
                } = self.addresses;
                let base = [descriptors, avail, used][usize::from(kind / 8) % 3];
                base.wrapping_add(u64::from(input.byte()))
            }
            _ => input.word64(),
        }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        match input.byte() % 16 {
            0..=3 => self.request(input),
            4 => self.descriptor(input),
            5 => {
                let (at, len) = (self.address(input), usize::from(input.byte() % 32));
                self.put(at, input.take(len));
            }
            6 => self.advance(i16::from(input.byte()).cast_unsigned()),
            7 => self.put(self.addresses.avail.wrapping_add(2), &input.bytes::<2>()),
            8 => {
                let at = self
                    .addresses
                    .avail
                    .wrapping_add(4 + 2 * u64::from(input.byte()));
                self.put(at, &input.bytes::<2>());
            }
            9 => self.set_up_again(input),
            10 => self.indirect(input),
            11 => self.long_chain(input),
            12 => self.race(input),
            _ => self.serve(),
        }
    }

    /// A well-formed request with sizes and sector from the input.
    fn request(&mut self, input: &mut Input<'_>) {
        let slot = u64::from(input.byte() % 16);
        let count = u64::from(input.byte() % 4);
        let at = REQUESTS + REQUEST_BYTES * slot;
        self.header(at, input);
        let first = (4 * slot) % u64::from(self.size.max(1));
        let table = self.addresses.descriptors.wrapping_add(16 * first);
        self.chain(table, first, at, count, input);
        self.offer(u16::try_from(first).unwrap());
    }

    fn header(&self, at: u64, input: &mut Input<'_>) {
        let kind = match input.byte() {
            byte @ 0..=31 => u32::from(byte),
            32..=63 => input.word32(),
            _ => 0,
        };
        let sector = match input.byte() {
            byte @ 0..=99 => u64::from(byte),
            byte @ 100..=199 => disk::DATA_SECTOR + u64::from(byte) - 100,
            byte @ 200..=239 => {
                (self.stage.image.len_bytes() / 512 + 219).wrapping_sub(u64::from(byte))
            }
            _ => input.word64(),
        };
        self.put(at, &kind.to_le_bytes());
        self.put(at + 8, &sector.to_le_bytes());
    }

    /// Writes header, `count` data buffers and status byte. The table's first descriptor has the number `first`.
    fn chain(&self, table: u64, first: u64, at: u64, count: u64, input: &mut Input<'_>) {
        self.put_descriptor(table, at, 16, 1, first + 1);
        for index in 1..=count {
            let data = match input.byte() {
                0..=199 => DATA + 0x200 * u64::from(input.byte() % 16),
                _ => self.address(input),
            };
            let len = match input.byte() {
                byte @ 0..=199 => 512 * u32::from(byte % 4),
                byte @ 200..=239 => u32::from(byte),
                _ => input.word32(),
            };
            let place = table.wrapping_add(16 * index);
            self.put_descriptor(place, data, len, 3, first + index + 1);
        }
        let place = table.wrapping_add(16 * (count + 1));
        self.put_descriptor(place, at + 16, 1, 2, 0);
    }

    fn put_descriptor(&self, place: u64, address: u64, len: u32, flags: u16, next: u64) {
        let next = u16::try_from(next & 0xffff).unwrap_or(0);
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&address.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        self.put(place, &bytes);
    }

    /// Writes any descriptor, in the ring's table or elsewhere.
    fn descriptor(&self, input: &mut Input<'_>) {
        let place = match input.byte() {
            byte @ 0..=239 => self
                .addresses
                .descriptors
                .wrapping_add(16 * u64::from(byte % 128)),
            _ => self.address(input),
        };
        let (address, len) = (self.address(input), input.word32());
        let (flags, next) = (input.byte(), u64::from(input.byte()));
        let flags = if flags < 240 {
            u16::from(flags % 8)
        } else {
            input.word16()
        };
        let len = if next < 200 { len % 4096 } else { len };
        self.put_descriptor(place, address, len, flags, next);
    }

    /// A request in an indirect table whose address and length are from the input.
    fn indirect(&mut self, input: &mut Input<'_>) {
        let (table, head) = (self.address(input), u64::from(input.byte()));
        let at = REQUESTS + REQUEST_BYTES * (head % 16);
        let count = u64::from(input.byte() % 4);
        self.header(at, input);
        self.chain(table, 0, at, count, input);
        let len = match input.byte() {
            0..=199 => 16 * u32::try_from(count + 2).unwrap(),
            byte @ 200..=239 => u32::from(byte) * 8,
            _ => input.word32(),
        };
        let flags = if input.byte() < 240 { 4 } else { 7 };
        let head = head % u64::from(self.size.max(1));
        let place = self.addresses.descriptors.wrapping_add(16 * head);
        self.put_descriptor(place, table, len, flags, 0);
        self.offer(u16::try_from(head).unwrap());
    }

    /// A chain of short buffers in an indirect table. It may be longer than the device accepts.
    fn long_chain(&mut self, input: &mut Input<'_>) {
        const TABLE: u64 = 0x2000;
        let (count, len) = (u64::from(input.byte()), input.byte() % 8);
        self.header(REQUESTS, input);
        self.put_descriptor(TABLE, REQUESTS, 16, 1, 1);
        for index in 1..=count {
            let data = DATA + u64::from(len) * index;
            self.put_descriptor(TABLE + 16 * index, data, u32::from(len), 3, index + 1);
        }
        self.put_descriptor(TABLE + 16 * (count + 1), REQUESTS + 16, 1, 2, 0);
        let table_len = 16 * u32::try_from(count + 2).unwrap();
        self.put_descriptor(self.addresses.descriptors, TABLE, table_len, 4, 0);
        self.offer(0);
    }

    /// Makes a head available.
    fn offer(&self, head: u16) {
        let index = self.avail_index();
        let slot = u64::from(index % self.size.max(1));
        let element = self.addresses.avail.wrapping_add(4 + 2 * slot);
        self.put(element, &head.to_le_bytes());
        self.advance(1);
    }

    fn advance(&self, by: u16) {
        let index = self.avail_index().wrapping_add(by);
        self.put(self.addresses.avail.wrapping_add(2), &index.to_le_bytes());
    }

    /// Has the device process the ring, and compares the result with the model.
    fn serve(&mut self) {
        let before = self.layout.bytes();
        let expected = Expected::new(&self.ring, self.broken, self.memory(), &self.stage.image);
        // Clears an earlier interrupt, which must not count for these requests.
        let _ = self.stage.call.read();
        self.look();
        match expected.verdict() {
            Verdict::Nothing => {
                assert!(before == self.layout.bytes(), "a ring at rest was touched")
            }
            Verdict::Anything => self.start_over(),
            Verdict::Exactly => self.check(&before, &expected),
        }
    }

    /// Has the device process the ring.
    fn look(&self) {
        let rings = std::slice::from_ref(&self.ring);
        let event = self.stage.device.handle_event(0, EventSet::IN, rings, 0);
        event.unwrap();
    }

    /// The guest made the device overwrite its ring, so any result is allowed.
    fn start_over(&mut self) {
        self.ring.set_queue_ready(false);
        self.start();
        self.layout.check_outside(&self.layout.bytes());
    }

    fn check(&mut self, before: &[u8], expected: &Expected) {
        self.wait(expected);
        self.broken = self.is_broken();
        let after = self.layout.bytes();
        self.layout.check_outside(&after);
        // Computed once for all bytes, because most executions spend most of their time here.
        let mut room = (0, 0);
        self.layout.for_changes(before, &after, |address| {
            if !model::holds(room, address) {
                let found = expected.may_change(address);
                room = found.unwrap_or_else(|| panic!("wrote to {address:#x}"));
            }
        });
        expected.check_answers(self.memory(), self.broken);
        if !self.broken {
            self.answered = expected.answered(self.memory());
            let wanted = expected.wants_interrupt(&self.ring, self.memory(), self.answered);
            assert!(!wanted || self.is_interrupted(), "an interrupt was lost");
        }
    }

    /// A thread of the pool sends the interrupt after it has published.
    fn is_interrupted(&self) -> bool {
        let deadline = Instant::now() + Duration::from_secs(5);
        while self.stage.call.read().is_err() {
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::yield_now();
        }
        true
    }

    /// Requests in the pool are published later.
    fn wait(&self, expected: &Expected) {
        let deadline = Instant::now() + Duration::from_secs(5);
        while !expected.are_published(self.memory()) {
            assert!(Instant::now() < deadline, "requests were not answered");
            std::thread::yield_now();
        }
    }

    /// Whether the device has stopped serving the ring. If not, it must have processed everything.
    fn is_broken(&self) -> bool {
        let mut locked = self.ring.lock();
        match locked.collect(self.memory(), WhenEmpty::LeaveQuiet, &mut Vec::new()) {
            Ok((Collected::Requests, _)) => panic!("the device has not processed all requests"),
            Ok((Collected::Nothing, _)) => false,
            Ok((Collected::Stopped, _)) | Err(_) => true,
        }
    }
}

/// After 256 spurious wake-ups the device sleeps at each further one. A single request resets that count, so that
/// executions do not wait for milliseconds because of earlier ones.
fn well_behaved(stage: &Stage) {
    let mut guest = Guest::new(stage, &mut Input(&[0, 3]));
    guest.request(&mut Input(&[]));
    guest.serve();
    assert_eq!(guest.answered, 1);
    guest.ring.set_queue_ready(false);
}

/// Runs the steps in the input, and processes the ring at the end.
pub fn run(data: &[u8]) {
    thread_local! { static STAGE: Stage = Stage::new(); }
    STAGE.with(|stage| {
        well_behaved(stage);
        let mut input = Input(data);
        let mut guest = Guest::new(stage, &mut input);
        for _ in 0..STEPS_MAX {
            if input.is_empty() {
                break;
            }
            guest.step(&mut input);
        }
        guest.serve();
        guest.ring.set_queue_ready(false);
    });
}
