//! A hostile frontend: any messages with any payloads and descriptors over a real socket, to the code that serves a
//! connection from accept to its end. It must end by itself when the frontend disconnects, and leak nothing. Rings are
//! stopped, reset and renegotiated while requests are in flight. The last base equals the number of completed requests.

#[path = "disk.rs"]
mod disk;
#[path = "frontend/files.rs"]
mod files;
#[path = "frontend/leaks.rs"]
mod leaks;
#[path = "frontend/protocol.rs"]
mod protocol;
#[path = "frontend/wire.rs"]
mod wire;

use std::num::NonZeroUsize;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::Arc;
use std::time::Duration;

use lazystore::device::vhost_blk::{DeviceOptions, serve_connection};
use lazystore::image::Image;
use nix::sys::signal::{SigSet, Signal};

use super::input::Input;
use files::Files;
use leaks::Leaks;
use protocol::{request, table, words32, words64};
use wire::Wire;

/// Maximum number of messages: their replies must fit the socket's buffer, because they are not read meanwhile.
const MESSAGES_MAX: usize = 20;

/// Number of queues: enough for valid and invalid numbers. Each costs time in every execution.
const QUEUES_SERVED: u16 = 8;

/// The user address at which the frontend claims to have mapped its memory.
const USER: u64 = 0x7f00_0000_0000;

/// Protocol features: those offered, except for REPLY_ACK.
const PROTOCOL: u64 = 0x8203;

/// A length that cannot be mapped. Smaller lengths can be mapped, even at any offset after the file's end.
const MAPPABLE: u64 = 1 << 47;

const VERSION_1: u64 = 1 << 32;
const PROTOCOL_FEATURES: u64 = 1 << 30;
const LOG_ALL: u64 = 1 << 26;

/// Addresses of the rings: the first one is ordinary. Each of the others starts a little later, and they overlap.
const DESCRIPTORS: u64 = 0;
const AVAIL: u64 = 0x400;
const USED: u64 = 0x800;
const RING_STEP: u64 = 0x40;
const RING_SIZE: u16 = 16;

/// State that all executions share.
struct Stage {
    image: Arc<Image>,
    options: DeviceOptions,
    listener: UnixListener,
    address: SocketAddr,
    leaks: Leaks,
}

impl Stage {
    fn new() -> Self {
        // Rust's runtime ignores SIGPIPE, but a fuzzer's main function is not Rust's.
        SigSet::from(Signal::SIGPIPE).thread_block().unwrap();
        let name = format!("lazystore-fuzz-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(name).unwrap();
        Self {
            image: disk::disk(0),
            options: DeviceOptions {
                serial: "fuzz".to_owned(),
                threads: NonZeroUsize::MIN,
                queues: QUEUES_SERVED,
                poll: Duration::ZERO,
            },
            listener: UnixListener::bind_addr(&address).unwrap(),
            address,
            leaks: Leaks::new(),
        }
    }

    fn serve(&self, data: &[u8]) {
        let stream = UnixStream::connect_addr(&self.address).unwrap();
        let frontend = Frontend {
            input: Input(data),
            wire: Wire::new(&stream),
            files: Files::new(),
            messages: 0,
            bases: 0,
            orderly: true,
        };
        let (files, stopped) = frontend.speak();
        let listener = self.listener.try_clone().unwrap();
        // Any result is allowed.
        let _ = serve_connection(
            Arc::clone(&self.image),
            &self.options,
            self.options.meter().unwrap(),
            listener,
            |_, _| {},
        );
        if let Some(bases) = stopped {
            check_base(&stream, &files, bases);
        }
    }
}

/// Checks the last reply: the base of the first ring, unless the device disconnected before it had answered all `asked`
/// requests for a base.
fn check_base(stream: &UnixStream, files: &Files, asked: usize) {
    let mut bases = wire::answers(stream);
    bases.retain(|(number, _)| *number == request::GET_VRING_BASE);
    if bases.len() == asked
        && let Some((_, payload)) = bases.last()
    {
        let base = u16::from_le_bytes([payload[4], payload[5]]);
        assert_eq!(base, files.word(USED + 2), "base and used index");
    }
}

struct Frontend<'a> {
    input: Input<'a>,
    wire: Wire<'a>,
    files: Files,
    messages: usize,
    /// Number of requests for the base of a ring.
    bases: usize,
    /// Nothing has been done yet that could make rings overlap other data.
    orderly: bool,
}

impl Frontend<'_> {
    /// Sends everything and disconnects. The files stay open, like in a frontend that closes only its socket. Returns the
    /// number of requests for a base, if the last base can be predicted.
    fn speak(mut self) -> (Files, Option<usize>) {
        let last = self.input.byte();
        while !self.input.is_empty() && self.messages < MESSAGES_MAX {
            self.step();
        }
        // Only the first ring overlaps no other one.
        let known = last.is_multiple_of(2) && self.orderly;
        if known {
            self.stop(0);
        }
        self.wire.end();
        (self.files, known.then_some(self.bases))
    }

    fn step(&mut self) {
        let step = self.input.byte() % 20;
        self.orderly &= matches!(step, 0 | 1 | 4 | 8 | 12..=14 | 16..);
        match step {
            0 => self.greet(PROTOCOL),
            1 => self.share_memory(),
            2 => self.memory_table(),
            3 => self.one_region(),
            4 => self.ring(),
            5 => self.ring_state(),
            6 => self.ring_addresses(),
            7 => self.ring_descriptor(),
            8 => self.config(),
            9 => self.any_message(),
            10 => {
                let len = usize::from(self.input.byte() % 64);
                self.wire.raw(self.input.take(len));
                self.messages += 1;
            }
            11 => {
                let (at, len) = (self.input.word16(), usize::from(self.input.byte() % 32));
                self.files.poke(u64::from(at), self.input.take(len));
            }
            12..=13 => self.disk_request(),
            14 => self.files.kick(self.input.byte()),
            16 => {
                let index = self.input.byte() % 4;
                self.stop(index);
            }
            17..=19 => self.renegotiate(),
            _ => {
                let protocol = self.number();
                self.greet(protocol);
            }
        }
    }

    /// Valid numbers, or any.
    fn number(&mut self) -> u64 {
        let kind = self.input.byte();
        match kind % 8 {
            0 => u64::from(self.input.byte()),
            1 => USER + u64::from(self.input.word16()),
            2 => u64::from(kind / 8) << 12,
            3 => USER + (u64::from(kind / 8) << 12),
            4 => 1 << (self.input.byte() % 64),
            5 => u64::MAX << (self.input.byte() % 64),
            6 => files::MEMORY_BYTES,
            _ => self.input.word64(),
        }
    }

    fn message(&mut self, request: u32, payload: &[u8], fds: &[u8]) {
        let flags = 1 | u32::from(self.input.byte() & 1) << 3;
        let fds = fds
            .iter()
            .map(|kind| self.files.of_kind(*kind))
            .collect::<Vec<_>>();
        self.wire.message(request, flags, payload, &fds);
        self.messages += 1;
    }

    fn greet(&mut self, protocol: u64) {
        let choice = self.input.byte();
        let features = match choice % 4 {
            0 | 1 => VERSION_1 | PROTOCOL_FEATURES,
            2 => VERSION_1 | PROTOCOL_FEATURES | 1 << 29 | 1 << 28,
            _ => VERSION_1,
        };
        if choice & 4 != 0 {
            self.message(request::SET_OWNER, &[], &[]);
        }
        self.message(request::GET_FEATURES, &[], &[]);
        self.message(request::SET_PROTOCOL_FEATURES, &protocol.to_le_bytes(), &[]);
        self.message(request::SET_FEATURES, &features.to_le_bytes(), &[]);
    }

    fn share_memory(&mut self) {
        let regions = table(&[[0, files::MEMORY_BYTES, USER, 0]]);
        self.message(request::SET_MEM_TABLE, &regions, &[files::MEMORY]);
    }

    fn memory_table(&mut self) {
        let shape = self.input.byte();
        let (regions, fds) = (shape % 10, shape / 10 % 12);
        let regions: Vec<[u64; 4]> = (0..regions).map(|_| self.region()).collect();
        let fds: Vec<u8> = (0..fds).map(|_| self.input.byte()).collect();
        self.message(request::SET_MEM_TABLE, &table(&regions), &fds);
    }

    fn one_region(&mut self) {
        let add = self.input.byte();
        let request = if add.is_multiple_of(3) {
            request::REM_MEM_REG
        } else {
            request::ADD_MEM_REG
        };
        let [guest, len, user, offset] = self.region();
        let fd = self.input.byte();
        let fds = if add < 240 { &[fd][..] } else { &[] };
        let payload = words64(&[0, guest, len, user, offset]);
        self.message(request, &payload, fds);
    }

    /// Guest address, length, user address, and offset in the file. Memory after the file's end can also be mapped, but
    /// accessing it raises SIGBUS, which kills the process. tests/hostile.rs tests that with a worker.
    fn region(&mut self) -> [u64; 4] {
        let [guest, len, user, offset] = std::array::from_fn(|_| self.number());
        let end = u128::from(len) + u128::from(offset);
        if end > u128::from(files::MEMORY_BYTES) && len < MAPPABLE {
            [guest, files::MEMORY_BYTES, user, 0]
        } else {
            [guest, len, user, offset]
        }
    }

    /// A valid ring, except for its descriptors.
    fn ring(&mut self) {
        let index = self.input.byte() % 4;
        self.ring_of(index);
    }

    fn ring_of(&mut self, index: u8) {
        self.orderly &= index == 0;
        let (kick, call) = (self.input.byte(), self.input.byte());
        let base = USER + RING_STEP * u64::from(index);
        let number = u32::from(index);
        self.message(
            request::SET_VRING_NUM,
            &words32(&[number, u32::from(RING_SIZE)]),
            &[],
        );
        let mut payload = words32(&[number, 0]);
        payload.extend(words64(&[base + DESCRIPTORS, base + USED, base + AVAIL, 0]));
        self.message(request::SET_VRING_ADDR, &payload, &[]);
        self.message(
            request::SET_VRING_KICK,
            &u64::from(index).to_le_bytes(),
            &[kick],
        );
        self.message(
            request::SET_VRING_CALL,
            &u64::from(index).to_le_bytes(),
            &[call],
        );
        self.message(request::SET_VRING_ENABLE, &words32(&[number, 1]), &[]);
    }

    /// Messages of a frontend when a ring's driver stops.
    fn stop(&mut self, index: u8) {
        let state = words32(&[u32::from(index), 0]);
        if !self.input.byte().is_multiple_of(4) {
            self.message(request::SET_VRING_ENABLE, &state, &[]);
        }
        self.message(request::GET_VRING_BASE, &state, &[]);
        self.bases += 1;
    }

    /// Another driver starts a ring, with other features and any base. Requests of the previous driver may still be in it.
    fn renegotiate(&mut self) {
        let (index, shape) = (self.input.byte() % 4, self.input.byte());
        self.stop(index);
        let event_idx = u64::from(shape & 1) << 29;
        let log = if shape & 4 == 0 { 0 } else { LOG_ALL };
        if shape & 12 == 12 {
            // Not longer than the file, because memory after its end must not be accessed.
            let place = words64(&[u64::from(self.input.byte()), 0]);
            self.message(request::SET_LOG_BASE, &place, &[files::OTHER_MEMORY]);
        }
        let features = VERSION_1 | PROTOCOL_FEATURES | event_idx | log | 1 << 28;
        self.message(request::SET_FEATURES, &features.to_le_bytes(), &[]);
        if shape & 2 != 0 {
            // A driver that starts has empty rings.
            let base = RING_STEP * u64::from(index);
            self.files.poke(base + AVAIL + 2, &[0; 2]);
            self.files.poke(base + USED + 2, &[0; 2]);
        }
        let base = match shape >> 6 {
            0 => 0,
            1 => self.files.word(RING_STEP * u64::from(index) + AVAIL + 2),
            _ => self.input.word16(),
        };
        let state = words32(&[u32::from(index), u32::from(base)]);
        self.message(request::SET_VRING_BASE, &state, &[]);
        self.ring_of(index);
    }

    fn ring_state(&mut self) {
        let request = match self.input.byte() % 4 {
            0 => request::SET_VRING_NUM,
            1 => request::SET_VRING_BASE,
            2 => request::GET_VRING_BASE,
            _ => request::SET_VRING_ENABLE,
        };
        let (index, value) = (
            u32::from(self.input.byte() % 66),
            u32::from(self.input.word16()),
        );
        let value = if value >= 0x8000 { value } else { value % 2 };
        self.message(request, &words32(&[index, value]), &[]);
    }

    fn ring_addresses(&mut self) {
        let mut payload = words32(&[
            u32::from(self.input.byte() % 8),
            u32::from(self.input.byte() & 1),
        ]);
        let addresses: [u64; 4] = std::array::from_fn(|_| self.number());
        payload.extend(words64(&addresses));
        self.message(request::SET_VRING_ADDR, &payload, &[]);
    }

    fn ring_descriptor(&mut self) {
        let shape = self.input.byte();
        let request = match shape % 3 {
            0 => request::SET_VRING_KICK,
            1 => request::SET_VRING_CALL,
            _ => request::SET_VRING_ERR,
        };
        let fds: Vec<u8> = (0..[1, 1, 1, 0, 2, 40][usize::from(shape / 3 % 6)])
            .map(|_| self.input.byte())
            .collect();
        let none = u64::from(fds.is_empty()) << 8;
        let index = u64::from(self.input.byte()) | none;
        self.message(request, &index.to_le_bytes(), &fds);
    }

    fn config(&mut self) {
        let request = if self.input.byte().is_multiple_of(4) {
            request::SET_CONFIG
        } else {
            request::GET_CONFIG
        };
        let (offset, size) = (
            u32::from(self.input.word16()),
            u32::from(self.input.word16()) % 5000,
        );
        let mut payload = words32(&[offset, size, u32::from(self.input.byte() % 4)]);
        let len = if self.input.byte() < 240 {
            size as usize
        } else {
            0
        };
        payload.resize(12 + len, 0);
        self.message(request, &payload, &[]);
    }

    fn any_message(&mut self) {
        let (request, flags) = (self.input.byte(), self.input.byte());
        let len = usize::from(self.input.byte());
        let text = if flags < 200 {
            None
        } else {
            Some(self.input.word32())
        };
        let payload = self.input.take(len).to_vec();
        let memory = matches!(request % 48, 5 | 37);
        let kind = |kind: u8| {
            if memory {
                files::without_memory(kind)
            } else {
                kind
            }
        };
        let fds: Vec<u8> = (0..flags / 16 % 4)
            .map(|_| kind(self.input.byte()))
            .collect();
        let fds = fds
            .iter()
            .map(|kind| self.files.of_kind(*kind))
            .collect::<Vec<_>>();
        let size = text.unwrap_or(u32::try_from(payload.len()).unwrap());
        self.wire.any(
            u32::from(request % 48),
            u32::from(flags % 16),
            size,
            &payload,
            &fds,
        );
        self.messages += 1;
    }

    /// A read of the disk in one of the rings that [`ring`](Self::ring) sets up.
    fn disk_request(&mut self) {
        let (index, slot) = (
            u64::from(self.input.byte() % 4),
            u64::from(self.input.byte() % 5),
        );
        let (sector, sectors) = (
            u64::from(self.input.byte()),
            u32::from(self.input.byte() % 8),
        );
        let base = RING_STEP * index;
        let at = 0x1000 + 0x100 * slot;
        let data = match self.input.byte() {
            0..=199 => 0x4000 + 0x1000 * slot,
            byte => {
                self.orderly = false;
                u64::from(byte - 200) * 0x20
            }
        };
        self.orderly &= index == 0;
        self.files.poke(at, &words64(&[0, sector]));
        let first = 3 * slot;
        let next = |by: u64| (first + by) << 48;
        let parts = [
            (at, 16 | 1 << 32 | next(1)),
            (data, u64::from(512 * sectors) | 3 << 32 | next(2)),
            (at + 16, 1 | 2 << 32),
        ];
        for (place, (address, rest)) in (first..).zip(parts) {
            self.files
                .poke(base + DESCRIPTORS + 16 * place, &words64(&[address, rest]));
        }
        let head = u16::try_from(first).unwrap();
        self.files.offer(base + AVAIL, RING_SIZE, head);
    }
}

/// Serves one frontend.
pub fn run(data: &[u8]) {
    thread_local! { static STAGE: Stage = Stage::new(); }
    STAGE.with(|stage| {
        let before = stage.leaks.before();
        stage.serve(data);
        stage.leaks.check(before);
    });
}
