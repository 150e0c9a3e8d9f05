//! A frontend that can send any bytes, and memory that it can truncate.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

#[path = "../fuzz/targets/frontend/protocol.rs"]
#[allow(dead_code)]
mod protocol;

pub use protocol::{request, table, words32, words64};

/// The user address at which the frontend claims to have mapped its memory.
pub const USER: u64 = 0x7f00_0000_0000;

/// Timeout of replies. A device that neither replies nor disconnects fails the test.
const PATIENCE: Duration = Duration::from_secs(60);

/// Default length of rings.
const RING: u16 = 16;

pub struct Raw(UnixStream);

impl Raw {
    pub fn connect(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self(stream)
    }

    /// Sends bytes and descriptors. Ignores that the device has disconnected, which the caller notices later.
    pub fn send(&self, bytes: &[u8], fds: &[RawFd]) {
        if !bytes.is_empty() {
            let _ = self.0.send_with_fds(&[bytes], fds);
        }
    }

    /// Sends all requests that precede the sharing of memory. The replies stay in the socket.
    pub fn greet(&self) {
        let features = super::ORDINARY;
        self.send(&message(request::SET_OWNER, &[]), &[]);
        self.send(
            &message(request::SET_PROTOCOL_FEATURES, &words64(&[0x8201])),
            &[],
        );
        self.send(&message(request::SET_FEATURES, &words64(&[features])), &[]);
    }

    pub fn share(&self, shared: &Shared) {
        let table = table(&[[0, Shared::BYTES, USER, 0]]);
        self.send(&message(request::SET_MEM_TABLE, &table), &[shared.fd()]);
    }

    /// Sets a ring up and enables it. `places` are the addresses of the descriptors, the used and the available ring.
    pub fn ring(&self, index: u32, places: [u64; 3], shared: &Shared) {
        self.set_up(index, RING, places, shared);
        self.enable(index);
    }

    pub fn set_up(&self, index: u32, len: u16, places: [u64; 3], shared: &Shared) {
        self.set_up_as(index, len, places, shared.kick.as_fd().as_raw_fd());
    }

    /// Sets up a ring with any descriptor for kicks.
    pub fn set_up_with(&self, index: u32, places: [u64; 3], kick: RawFd) {
        self.set_up_as(index, RING, places, kick);
    }

    fn set_up_as(&self, index: u32, len: u16, places: [u64; 3], kick: RawFd) {
        let length = words32(&[index, u32::from(len)]);
        self.send(&message(request::SET_VRING_NUM, &length), &[]);
        let mut addresses = words32(&[index, 0]);
        addresses.extend(words64(&places.map(|at| USER.wrapping_add(at))));
        addresses.extend(words64(&[0]));
        self.send(&message(request::SET_VRING_ADDR, &addresses), &[]);
        let number = words64(&[u64::from(index)]);
        self.send(&message(request::SET_VRING_KICK, &number), &[kick]);
    }

    pub fn enable(&self, index: u32) {
        let state = words32(&[index, 1]);
        self.send(&message(request::SET_VRING_ENABLE, &state), &[]);
    }

    pub fn call(&self, index: u64, fd: RawFd) {
        self.send(&message(request::SET_VRING_CALL, &words64(&[index])), &[fd]);
    }

    /// Waits until the device has processed all messages, if it is still connected.
    pub fn finish(&self) {
        self.send(&message(request::GET_FEATURES, &[]), &[]);
        let _ = (&self.0).read(&mut [0; 20]);
    }

    /// Whether the device sends something in time.
    pub fn receives_within(&self, patience_ms: u16) -> bool {
        let mut ready = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        poll(&mut ready, patience_ms).unwrap() > 0
    }

    /// Receives a reply's payload.
    pub fn receive(&self) -> Vec<u8> {
        let mut header = [0; 12];
        (&self.0).read_exact(&mut header).unwrap();
        let mut payload = vec![0; usize::from(header[8])];
        (&self.0).read_exact(&mut payload).unwrap();
        payload
    }

    /// Shuts down sending.
    pub fn hang_up(&self) {
        let _ = self.0.shutdown(Shutdown::Write);
    }

    /// Reads until the device disconnects.
    pub fn is_closed(&self) -> bool {
        let mut bytes = [0; 4096];
        loop {
            match (&self.0).read(&mut bytes) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) => return error.kind() != ErrorKind::WouldBlock,
            }
        }
    }
}

/// Memory that is accessed through its file, so that truncation does not cause SIGBUS in this process.
pub struct Shared {
    file: File,
    kick: EventFd,
}

impl Shared {
    pub const BYTES: u64 = 8 << 20;

    pub fn new() -> Self {
        let file = tempfile::tempfile().unwrap();
        file.set_len(Self::BYTES).unwrap();
        let shared = Self {
            file,
            kick: EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap(),
        };
        // The device writes zero here when it goes to sleep.
        shared.put(0x2000, &[0xff; 2]);
        shared
    }

    pub fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    pub fn put(&self, at: u64, bytes: &[u8]) {
        if at + bytes.len() as u64 <= Self::BYTES {
            self.file.write_all_at(bytes, at).unwrap();
        }
    }

    fn word(&self, at: u64) -> u16 {
        let mut bytes = [0; 2];
        self.file.read_exact_at(&mut bytes, at).unwrap();
        u16::from_le_bytes(bytes)
    }

    /// Flags of the used ring.
    pub fn flags(&self, used: u64) -> u16 {
        self.word(used)
    }

    /// Whether the word at `at` is not zero.
    pub fn holds(&self, at: u64) -> bool {
        self.word(at) != 0
    }

    pub fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.file.read_exact_at(&mut bytes, at).unwrap();
        bytes
    }

    /// Index of the used ring.
    pub fn used(&self, used: u64) -> u16 {
        self.word(used + 2)
    }

    /// Writes a read of sector 0 into `data` to the table at 0, in the three descriptors from `3 * slot` on.
    pub fn request(&mut self, slot: u16, data: u64, len: u32) {
        self.read_at(slot, 0, data, len);
    }

    pub fn read_at(&mut self, slot: u16, sector: u64, data: u64, len: u32) {
        const NEXT: u64 = 1 << 32;
        const WRITE: u64 = 1 << 33;
        let (at, first) = (Self::header(slot), 3 * u64::from(slot));
        self.put(at, &words64(&[0, sector]));
        self.put(at + 16, &[0xee]);
        let parts = [
            (at, 16 | NEXT | (first + 1) << 48),
            (data, u64::from(len) | NEXT | WRITE | (first + 2) << 48),
            (at + 16, 1 | WRITE),
        ];
        for (index, (address, rest)) in (first..).zip(parts) {
            self.put(16 * index, &words64(&[address, rest]));
        }
    }

    fn header(slot: u16) -> u64 {
        0x3000 + 0x20 * u64::from(slot)
    }

    pub fn status(&self, slot: u16) -> u8 {
        self.word(Self::header(slot) + 16).to_le_bytes()[0]
    }

    /// Makes the request in `slot` available.
    pub fn offer(&self, avail: u64, slot: u16) {
        if avail + 4 > Self::BYTES {
            return;
        }
        let index = self.word(avail + 2);
        self.put(
            avail + 4 + 2 * u64::from(index % RING),
            &(3 * slot).to_le_bytes(),
        );
        self.put(avail + 2, &index.wrapping_add(1).to_le_bytes());
    }

    pub fn kick(&self) {
        self.kick.write(1).unwrap();
    }

    /// Truncates the memory to `len`.
    pub fn cut(&self, len: u64) {
        self.file.set_len(len).unwrap();
    }
}

pub fn message(request: u32, payload: &[u8]) -> Vec<u8> {
    let mut message = words32(&[request, 1, u32::try_from(payload.len()).unwrap()]);
    message.extend(payload);
    message
}
