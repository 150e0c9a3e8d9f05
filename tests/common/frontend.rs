//! A small vhost-user frontend and virtio-blk driver, which can violate the protocol.
//!
//! The message numbers are from QEMU's `docs/interop/vhost-user.rst`.

pub mod vmm;

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use nix::sys::eventfd::{EfdFlags, EventFd};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::process::wait_for;

pub const F_VERSION_1: u64 = 1 << 32;
pub const F_PROTOCOL_FEATURES: u64 = 1 << 30;
pub const F_LOG_ALL: u64 = 1 << 26;

const GET_FEATURES: u32 = 1;
const SET_FEATURES: u32 = 2;
const SET_OWNER: u32 = 3;
const SET_MEM_TABLE: u32 = 5;
const SET_LOG_BASE: u32 = 6;
const SET_VRING_NUM: u32 = 8;
const SET_VRING_ADDR: u32 = 9;
const SET_VRING_BASE: u32 = 10;
const GET_VRING_BASE: u32 = 11;
const SET_VRING_KICK: u32 = 12;
const SET_VRING_CALL: u32 = 13;
const GET_PROTOCOL_FEATURES: u32 = 15;
const SET_PROTOCOL_FEATURES: u32 = 16;
const SET_VRING_ENABLE: u32 = 18;
const GET_CONFIG: u32 = 24;

/// The user address at which the frontend claims to have mapped the guest's memory.
const USER_ADDRESS: u64 = 0x7f00_0000_0000;

const MEMORY_BYTES: u64 = 1 << 20;
const QUEUE: u16 = 64;
const DESCRIPTORS: u64 = 0;
const AVAIL: u64 = 0x1000;
const USED: u64 = 0x2000;
const SLOT_BYTES: u64 = 0x4000;
const DATA_IN_SLOT: u64 = 0x1000;

/// Maximum number of requests in flight.
pub const SLOTS: u16 = 16;

/// Addresses of the queue in the guest's memory.
#[derive(Debug, Clone, Copy)]
pub struct Layout {
    pub memory_bytes: u64,
    pub queue_size: u16,
    pub descriptors: u64,
    pub avail: u64,
    pub used: u64,
}

const LAYOUT: Layout = Layout {
    memory_bytes: MEMORY_BYTES,
    queue_size: QUEUE,
    descriptors: DESCRIPTORS,
    avail: AVAIL,
    used: USED,
};

/// A guest: memory with one queue. Outlives connections.
pub struct Guest {
    memory: GuestMemoryMmap,
    backing: File,
    avail: u16,
}

impl Guest {
    pub fn new() -> Self {
        let backing = tempfile::tempfile().unwrap();
        backing.set_len(MEMORY_BYTES).unwrap();
        let offset = FileOffset::new(backing.try_clone().unwrap(), 0);
        let len = usize::try_from(MEMORY_BYTES).unwrap();
        let range = (GuestAddress(0), len, Some(offset));
        let memory = GuestMemoryMmap::from_ranges_with_files([range]).unwrap();
        Self {
            memory,
            backing,
            avail: 0,
        }
    }

    /// Empties the queue, like a driver that resets the device.
    pub fn reset_queue(&mut self) {
        let rings = vec![0; usize::try_from(USED + 0x1000).unwrap()];
        self.memory
            .write_slice(&rings, GuestAddress(DESCRIPTORS))
            .unwrap();
        self.avail = 0;
    }

    /// Truncates the file that backs the memory. Any process that then accesses it gets SIGBUS, including this one.
    pub fn cut_memory(&self) {
        self.backing.set_len(0).unwrap();
    }

    /// Contents of the whole memory.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(MEMORY_BYTES).unwrap()];
        self.memory.read_slice(&mut bytes, GuestAddress(0)).unwrap();
        bytes
    }

    /// Pages that the device may write for `slot`: those of the status byte and of `data_len` bytes of data.
    pub fn pages(slot: u16, data_len: u64) -> std::ops::Range<usize> {
        let base = Self::slot(slot);
        let end = (base + DATA_IN_SLOT + data_len).div_ceil(4096);
        usize::try_from(base / 4096).unwrap()..usize::try_from(end).unwrap()
    }

    fn slot(slot: u16) -> u64 {
        0x10000 + SLOT_BYTES * u64::from(slot)
    }

    /// Makes a request available: header, `data_len` bytes of data, status.
    pub fn submit(&mut self, slot: u16, kind: u32, sector: u64, data_len: u32) {
        const NEXT: u64 = 1 << 32;
        const WRITE: u64 = 1 << 33;
        let base = Self::slot(slot);
        let first = 3 * slot;
        self.put(base, u64::from(kind));
        self.put(base + 8, sector);
        self.memory
            .write_slice(&[0xee; 0x3000], GuestAddress(base + DATA_IN_SLOT))
            .unwrap();
        self.memory
            .write_obj(0xeeu8, GuestAddress(base + 16))
            .unwrap();
        let direction = if kind == 1 { 0 } else { WRITE };
        let next = |index: u16| u64::from(index) << 48;
        let parts = [
            (base, 16 | NEXT | next(first + 1)),
            (
                base + DATA_IN_SLOT,
                u64::from(data_len) | NEXT | direction | next(first + 2),
            ),
            (base + 16, 1 | WRITE),
        ];
        for (index, (address, rest)) in (u64::from(first)..).zip(parts) {
            self.put(DESCRIPTORS + 16 * index, address);
            self.put(DESCRIPTORS + 16 * index + 8, rest);
        }
        let element = AVAIL + 4 + 2 * u64::from(self.avail % QUEUE);
        self.memory.write_obj(first, GuestAddress(element)).unwrap();
        self.avail = self.avail.wrapping_add(1);
        self.memory
            .write_obj(self.avail, GuestAddress(AVAIL + 2))
            .unwrap();
    }

    fn put(&self, address: u64, value: u64) {
        self.memory.write_obj(value, GuestAddress(address)).unwrap();
    }

    pub fn used_index(&self) -> u16 {
        self.memory.read_obj(GuestAddress(USED + 2)).unwrap()
    }

    /// Waits until all requests are answered.
    pub fn wait(&self) {
        wait_for("answers", || {
            (self.used_index() == self.avail).then_some(())
        });
    }

    pub fn status(&self, slot: u16) -> u8 {
        self.memory
            .read_obj(GuestAddress(Self::slot(slot) + 16))
            .unwrap()
    }

    pub fn data(&self, slot: u16, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.memory
            .read_slice(&mut data, GuestAddress(Self::slot(slot) + DATA_IN_SLOT))
            .unwrap();
        data
    }

    /// Used length of the last completion.
    pub fn last_used_len(&self) -> u32 {
        let index = u64::from(self.used_index().wrapping_sub(1) % QUEUE);
        self.memory
            .read_obj(GuestAddress(USED + 4 + 8 * index + 4))
            .unwrap()
    }
}

/// A connection.
pub struct Frontend {
    stream: UnixStream,
    kick: EventFd,
    pub call: EventFd,
    layout: Layout,
}

impl Frontend {
    pub fn connect(socket: &Path) -> Self {
        Self::try_connect(socket, LAYOUT).unwrap()
    }

    fn try_connect(socket: &Path, layout: Layout) -> io::Result<Self> {
        let event = || EventFd::from_flags(EfdFlags::EFD_NONBLOCK);
        Ok(Self {
            stream: UnixStream::connect(socket)?,
            kick: event()?,
            call: event()?,
            layout,
        })
    }

    /// Negotiates `features`, sets everything up and enables the queue.
    pub fn start(socket: &Path, guest: &Guest, features: u64) -> Self {
        Self::try_start(socket, &guest.backing, LAYOUT, features).unwrap()
    }

    /// The same with any memory. Tolerates that the device disconnects.
    pub fn try_start(
        socket: &Path,
        memory: &File,
        layout: Layout,
        features: u64,
    ) -> io::Result<Self> {
        let frontend = Self::try_connect(socket, layout)?;
        frontend.try_negotiate(features)?;
        frontend.share_memory(memory)?;
        frontend.try_start_queue()?;
        if features & F_PROTOCOL_FEATURES != 0 {
            frontend.send(SET_VRING_ENABLE, &words32(&[0, 1]), &[])?;
        }
        Ok(frontend)
    }

    pub fn negotiate(&self, features: u64) {
        self.try_negotiate(features).unwrap();
    }

    fn try_negotiate(&self, features: u64) -> io::Result<()> {
        self.send(SET_OWNER, &[], &[])?;
        let offered = self.ask_u64(GET_FEATURES)?;
        assert_eq!(offered & features, features);
        if features & F_PROTOCOL_FEATURES != 0 {
            let protocol = self.ask_u64(GET_PROTOCOL_FEATURES)?;
            // CONFIG and LOG_SHMFD, but not REPLY_ACK, because this frontend does not wait for replies.
            let wanted = (protocol & (1 << 9 | 1 << 1)).to_le_bytes();
            self.send(SET_PROTOCOL_FEATURES, &wanted, &[])?;
        }
        self.send(SET_FEATURES, &features.to_le_bytes(), &[])
    }

    fn share_memory(&self, memory: &File) -> io::Result<()> {
        self.send(SET_MEM_TABLE, &self.mem_table(), &[memory.as_raw_fd()])
    }

    fn mem_table(&self) -> Vec<u8> {
        let mut table = words32(&[1, 0]);
        table.extend(words64(&[0, self.layout.memory_bytes, USER_ADDRESS, 0]));
        table
    }

    /// Shares the guest's memory again, in two regions.
    pub fn share_in_parts(&self, guest: &Guest) {
        let half = self.layout.memory_bytes / 2;
        let mut table = words32(&[2, 0]);
        for start in [0, half] {
            table.extend(words64(&[start, half, USER_ADDRESS + start, start]));
        }
        let fd = guest.backing.as_raw_fd();
        self.send(SET_MEM_TABLE, &table, &[fd, fd]).unwrap();
        self.await_device();
    }

    pub fn set_features(&self, features: u64) {
        self.try_set_features(features).unwrap();
    }

    /// The same with a device that may go away meanwhile.
    pub fn try_set_features(&self, features: u64) -> io::Result<()> {
        self.send(SET_FEATURES, &features.to_le_bytes(), &[])?;
        self.ask_u64(GET_FEATURES).map(drop)
    }

    /// Waits until the device has done what it was told: a kick must not overtake that.
    fn await_device(&self) {
        self.ask_u64(GET_FEATURES).unwrap();
    }

    /// Gives `len_bytes` of a file from `offset` for the dirty log; says whether the device took it.
    pub fn set_log(&self, log: &impl AsRawFd, len_bytes: u64, offset: u64) -> bool {
        let place = words64(&[len_bytes, offset]);
        let sent = self.send(SET_LOG_BASE, &place, &[log.as_raw_fd()]);
        sent.is_ok() && self.receive().is_ok()
    }

    pub fn enable_queue(&self) {
        self.send(SET_VRING_ENABLE, &words32(&[0, 1]), &[]).unwrap();
    }

    pub fn start_queue(&self) {
        self.try_start_queue().unwrap();
    }

    fn try_start_queue(&self) -> io::Result<()> {
        let queue_size = u32::from(self.layout.queue_size);
        self.send(SET_VRING_NUM, &words32(&[0, queue_size]), &[])?;
        // A base that is wrong on purpose.
        self.send(SET_VRING_BASE, &words32(&[0, 4711]), &[])?;
        self.send(SET_VRING_ADDR, &self.addresses(), &[])?;
        let queue = 0u64.to_le_bytes();
        self.send(SET_VRING_KICK, &queue, &[self.kick.as_raw_fd()])?;
        self.send(SET_VRING_CALL, &queue, &[self.call.as_raw_fd()])
    }

    fn addresses(&self) -> Vec<u8> {
        let Layout {
            descriptors,
            avail,
            used,
            ..
        } = self.layout;
        let mut addresses = words32(&[0, 0]);
        addresses.extend(words64(
            &[descriptors, used, avail, 0].map(|at| USER_ADDRESS + at),
        ));
        addresses
    }

    /// Stops the queue; returns the base that the device would go on from.
    pub fn stop_queue(&self) -> u32 {
        self.send(GET_VRING_BASE, &words32(&[0, 0]), &[]).unwrap();
        let answer = self.receive().unwrap();
        u32::from_le_bytes(answer[4..8].try_into().unwrap())
    }

    pub fn config(&self, offset: u32, size: u32) -> Vec<u8> {
        let request = config_request(offset, size);
        self.send(GET_CONFIG, &request, &[]).unwrap();
        self.receive().unwrap()[12..].to_vec()
    }

    pub fn kick(&self) {
        self.kick.write(1).unwrap();
    }

    /// Whether the device closed the connection.
    pub fn is_closed(&self) -> bool {
        matches!((&self.stream).read(&mut [0; 1]), Ok(0) | Err(_))
    }

    /// Readable when the device says something or hangs up.
    pub fn connection(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    fn ask_u64(&self, request: u32) -> io::Result<u64> {
        self.send(request, &[], &[])?;
        let answer = self.receive()?.try_into();
        Ok(u64::from_le_bytes(answer.unwrap()))
    }

    fn send(&self, request: u32, payload: &[u8], fds: &[RawFd]) -> io::Result<()> {
        self.send_flagged(0, request, payload, fds)
    }

    fn send_flagged(
        &self,
        flags: u32,
        request: u32,
        payload: &[u8],
        fds: &[RawFd],
    ) -> io::Result<()> {
        const VERSION: u32 = 1;
        let len = u32::try_from(payload.len()).unwrap();
        let mut message = words32(&[request, VERSION | flags, len]);
        message.extend(payload);
        let sent = self.stream.send_with_fds(&[message.as_slice()], fds);
        // A device that has hung up is noticed when an answer is missing.
        if sent.is_ok_and(|count| count == message.len()) || self.is_closed() {
            return Ok(());
        }
        Err(ErrorKind::WriteZero.into())
    }

    fn receive(&self) -> io::Result<Vec<u8>> {
        let mut header = [0; 12];
        (&self.stream).read_exact(&mut header)?;
        let len = u32::from_le_bytes(header[8..].try_into().unwrap());
        let mut payload = vec![0; len as usize];
        (&self.stream).read_exact(&mut payload)?;
        Ok(payload)
    }
}

fn config_request(offset: u32, size: u32) -> Vec<u8> {
    let mut request = words32(&[offset, size, 0]);
    request.resize(12 + size as usize, 0);
    request
}

fn words32(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn words64(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}
