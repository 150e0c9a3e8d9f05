//! Descriptors of all kinds, valid in a message or not.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;

use nix::sys::eventfd::{EfdFlags, EventFd};
use rustix::fs::{MemfdFlags, OFlags, fcntl_setfl, memfd_create};

/// The kind of a descriptor of guest memory of [`MEMORY_BYTES`].
pub const MEMORY: u8 = 0;
pub const MEMORY_BYTES: u64 = 0x10000;

/// The kind of another memory of that length.
pub const OTHER_MEMORY: u8 = 8;

/// Replaces a kind that can be mapped by one that cannot.
pub fn without_memory(kind: u8) -> u8 {
    if matches!(kind % 16, MEMORY | OTHER_MEMORY | 9) {
        1
    } else {
        kind
    }
}

/// Open files of one frontend.
pub struct Files {
    memory: File,
    event: File,
    /// Other descriptors, created on demand.
    others: Vec<OwnedFd>,
}

impl Files {
    pub fn new() -> Self {
        Self {
            memory: memory(MEMORY_BYTES),
            event: event(EfdFlags::EFD_NONBLOCK, 0).into(),
            others: Vec::new(),
        }
    }

    /// A descriptor of some kind, which this struct keeps open.
    pub fn of_kind(&mut self, kind: u8) -> RawFd {
        let other: OwnedFd = match kind % 16 {
            MEMORY => return self.memory.as_raw_fd(),
            1..=7 => return self.event.as_raw_fd(),
            OTHER_MEMORY => memory(MEMORY_BYTES).into(),
            9 => memory(MEMORY_BYTES + 1).into(),
            10 => event(EfdFlags::empty(), 0),
            11 => event(EfdFlags::empty(), u64::MAX - 1),
            12 => self.full_pipe(),
            13 => std::io::pipe().unwrap().0.into(),
            14 => UnixStream::pair().unwrap().0.into(),
            _ => File::open("/dev/null").unwrap().into(),
        };
        let number = other.as_raw_fd();
        self.others.push(other);
        number
    }

    /// The write end of a full pipe.
    fn full_pipe(&mut self) -> OwnedFd {
        let (reader, mut writer) = std::io::pipe().unwrap();
        fcntl_setfl(&writer, OFlags::NONBLOCK).unwrap();
        while writer.write(&[0; 4096]).is_ok() {}
        fcntl_setfl(&writer, OFlags::empty()).unwrap();
        self.others.push(reader.into());
        writer.into()
    }

    /// Writes to guest memory, as far as it fits.
    pub fn poke(&self, at: u64, bytes: &[u8]) {
        if at + bytes.len() as u64 <= MEMORY_BYTES {
            self.memory.write_all_at(bytes, at).unwrap();
        }
    }

    /// Reads a number in guest memory.
    pub fn word(&self, at: u64) -> u16 {
        let mut word = [0; 2];
        self.memory.read_exact_at(&mut word, at).unwrap();
        u16::from_le_bytes(word)
    }

    /// Makes a head available in the ring whose available part is at `avail`.
    pub fn offer(&self, avail: u64, size: u16, head: u16) {
        let index = self.word(avail + 2);
        self.poke(avail + 4 + 2 * u64::from(index % size), &head.to_le_bytes());
        self.poke(avail + 2, &index.wrapping_add(1).to_le_bytes());
    }

    pub fn kick(&mut self, times: u8) {
        let _ = self.event.write(&u64::from(times).to_le_bytes());
        if times >= 250 {
            let _ = self.event.read(&mut [0; 8]);
        }
    }
}

fn memory(len: u64) -> File {
    let file = File::from(memfd_create("fuzz", MemfdFlags::CLOEXEC).unwrap());
    file.set_len(len).unwrap();
    file
}

fn event(flags: EfdFlags, value: u64) -> OwnedFd {
    let event = EventFd::from_flags(flags).unwrap();
    if value > 0 {
        event.write(value).unwrap();
    }
    event.into()
}
