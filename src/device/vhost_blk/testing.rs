//! Test guests: memory, descriptor chains, and a driver that checks everything a driver can check.

use std::collections::{BTreeSet, VecDeque};

use virtio_bindings::bindings::virtio_ring::{
    VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE,
};
use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::{Descriptor, VirtqUsedElem};
use virtio_queue::mock::MockSplitQueue;
use vm_memory::{Bytes, GuestAddress};

use super::guest::Memory;
use super::request::{Parsed, parse};

/// One contiguous region of `len` bytes at address 0.
pub fn memory(len: usize) -> Memory {
    Memory::from_ranges(&[(GuestAddress(0), len)]).unwrap()
}

/// A descriptor: address, length, and whether the device may write.
pub type Part = (u64, u32, bool);

/// Parses one chain made of `parts`, for a disk of `disk_len` bytes. The queue is at address 0 and ends below 0x4000.
pub fn parse_parts(memory: &Memory, parts: &[Part], disk_len: u64) -> Parsed {
    let descriptors: Vec<RawDescriptor> = parts
        .iter()
        .map(|&(address, len, writable)| {
            let flags = if writable { VRING_DESC_F_WRITE } else { 0 };
            Descriptor::new(address, len, u16::try_from(flags).unwrap(), 0).into()
        })
        .collect();
    let queue = MockSplitQueue::new(memory, 512);
    parse(queue.build_desc_chain(&descriptors).unwrap(), disk_len)
}

/// Writes a request's header.
pub fn put_header(memory: &Memory, address: u64, kind: u32, sector: u64) {
    memory.write_obj(kind, GuestAddress(address)).unwrap();
    memory.write_obj(0u32, GuestAddress(address + 4)).unwrap();
    memory.write_obj(sector, GuestAddress(address + 8)).unwrap();
}

/// A violation that a guest notices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModelFault {
    /// The device returned a request that is not outstanding; Linux prints "id %u is not a head!".
    NotOutstanding(u16),
    /// A request was returned without its data and status.
    NotWritten(u16),
    /// Requests that were never returned.
    Lost(usize),
    /// The used ring is not a prefix of the available ring.
    NotThePrefix(u16),
}

const DESCRIPTORS: u64 = 0;
const AVAIL: u64 = 0x1000;
const USED: u64 = 0x2000;
const BUFFERS: u64 = 0x4000;
const BUFFER_BYTES: u32 = 16;
/// Tables of two indirect descriptors for each head.
const TABLES: u64 = 0x6000;

/// Contents of a buffer that the device has filled.
pub const ANSWER: [u8; 16] = [0; 16];

/// A driver whose requests have one writable buffer each. Every second request uses an indirect table with two parts.
pub struct Driver {
    memory: Memory,
    size: u16,
    next_avail: u16,
    seen_used: u16,
    free: VecDeque<u16>,
    outstanding: BTreeSet<u16>,
    /// Outstanding heads in the order in which they were made available.
    order: VecDeque<u16>,
}

impl Driver {
    /// A ring of `size` (at most 256) with both indexes starting at `start`.
    pub fn new(size: u16, start: u16) -> Self {
        Self::in_memory(memory(0x10000), size, start)
    }

    /// Another driver in the same memory, as after a reset.
    pub fn in_memory(memory: Memory, size: u16, start: u16) -> Self {
        memory.write_obj(start, GuestAddress(AVAIL + 2)).unwrap();
        memory.write_obj(start, GuestAddress(USED + 2)).unwrap();
        Self {
            memory,
            size,
            next_avail: start,
            seen_used: start,
            free: (0..size).collect(),
            outstanding: BTreeSet::new(),
            order: VecDeque::new(),
        }
    }

    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Addresses of descriptor table, available ring and used ring.
    pub fn addresses(&self) -> (u64, u64, u64) {
        (DESCRIPTORS, AVAIL, USED)
    }

    pub fn used_index(&self) -> u16 {
        self.memory.read_obj(GuestAddress(USED + 2)).unwrap()
    }

    pub fn avail_index(&self) -> u16 {
        self.next_avail
    }

    /// Whether the device wants a kick for requests made available since the index was `before` (virtio 1.2, section
    /// 2.7.10).
    pub fn wants_kick(&self, event_idx: bool, before: u16) -> bool {
        let word = |at: u64| -> u16 { self.memory.read_obj(GuestAddress(at)).unwrap() };
        if event_idx {
            let event = word(USED + 4 + 8 * u64::from(self.size));
            event.wrapping_sub(before) < self.next_avail.wrapping_sub(before)
        } else {
            word(USED) & 1 == 0
        }
    }

    /// Requests an interrupt for the next completion, as a driver with EVENT_IDX (virtio 1.2, section 2.7.7).
    pub fn want_interrupt(&self) {
        let event = AVAIL + 4 + 2 * u64::from(self.size);
        self.memory
            .write_obj(self.seen_used, GuestAddress(event))
            .unwrap();
    }

    /// Sets the flags of the available ring, for a driver without EVENT_IDX; 1 disables interrupts.
    pub fn set_flags(&self, flags: u16) {
        self.memory.write_obj(flags, GuestAddress(AVAIL)).unwrap();
    }

    /// Makes up to `count` requests available; fewer if the ring is full.
    pub fn submit(&mut self, count: usize) {
        for _ in 0..count {
            let Some(head) = self.free.pop_front() else {
                return;
            };
            let buffer = buffer_of(head);
            self.memory
                .write_slice(&[0xee; BUFFER_BYTES as usize], buffer)
                .unwrap();
            let descriptor = match self.next_avail % 2 {
                0 => Descriptor::new(buffer.0, BUFFER_BYTES, flags(false, true), 0),
                _ => self.indirect(head),
            };
            let at = DESCRIPTORS + 16 * u64::from(head);
            self.memory.write_obj(descriptor, GuestAddress(at)).unwrap();
            let slot = AVAIL + 4 + 2 * u64::from(self.next_avail % self.size);
            self.memory.write_obj(head, GuestAddress(slot)).unwrap();
            self.next_avail = self.next_avail.wrapping_add(1);
            self.memory
                .write_obj(self.next_avail, GuestAddress(AVAIL + 2))
                .unwrap();
            self.outstanding.insert(head);
            self.order.push_back(head);
        }
    }

    /// A descriptor that refers to a table with the head's buffer in two parts.
    fn indirect(&self, head: u16) -> Descriptor {
        const FIRST: u32 = 5;
        let (table, buffer) = (TABLES + 32 * u64::from(head), buffer_of(head).0);
        let parts = [
            Descriptor::new(buffer, FIRST, flags(true, true), 1),
            Descriptor::new(
                buffer + u64::from(FIRST),
                BUFFER_BYTES - FIRST,
                flags(false, true),
                0,
            ),
        ];
        self.memory
            .write_obj(parts[0], GuestAddress(table))
            .unwrap();
        self.memory
            .write_obj(parts[1], GuestAddress(table + 16))
            .unwrap();
        let flags = u16::try_from(VRING_DESC_F_INDIRECT).unwrap();
        Descriptor::new(table, 32, flags, 0)
    }

    /// Stores a used element without the index, like a process that is killed while publishing.
    pub fn scribble_element(&self, index: u16, head: u16) {
        let slot = USED + 4 + 8 * u64::from(index % self.size);
        let element = [u32::from(head), 1];
        self.memory.write_obj(element, GuestAddress(slot)).unwrap();
    }

    /// Takes returned requests from the used ring, with the checks of a guest.
    pub fn take_back(&mut self) -> Result<(), ModelFault> {
        while self.seen_used != self.used_index() {
            let slot = USED + 4 + 8 * u64::from(self.seen_used % self.size);
            let element: VirtqUsedElem = self.memory.read_obj(GuestAddress(slot)).unwrap();
            self.take_back_one(u16::try_from(element.id()).unwrap())?;
            self.seen_used = self.seen_used.wrapping_add(1);
        }
        Ok(())
    }

    fn take_back_one(&mut self, head: u16) -> Result<(), ModelFault> {
        if !self.outstanding.remove(&head) {
            return Err(ModelFault::NotOutstanding(head));
        }
        let mut found = [0; BUFFER_BYTES as usize];
        self.memory.read_slice(&mut found, buffer_of(head)).unwrap();
        if found != ANSWER {
            return Err(ModelFault::NotWritten(head));
        }
        self.order.retain(|other| *other != head);
        // Reuse heads in a different order, like a driver with a free list.
        if head.is_multiple_of(3) {
            self.free.push_front(head);
        } else {
            self.free.push_back(head);
        }
        Ok(())
    }

    /// Checks rule 1, which is stricter than what a guest can check.
    pub fn check_prefix(&self) -> Result<(), ModelFault> {
        let mut index = self.seen_used;
        for expected in &self.order {
            if index == self.used_index() {
                break;
            }
            let slot = USED + 4 + 8 * u64::from(index % self.size);
            let element: VirtqUsedElem = self.memory.read_obj(GuestAddress(slot)).unwrap();
            if element.id() != u32::from(*expected) {
                return Err(ModelFault::NotThePrefix(*expected));
            }
            index = index.wrapping_add(1);
        }
        Ok(())
    }

    /// Checks that all requests have been returned.
    pub fn check_nothing_lost(&self) -> Result<(), ModelFault> {
        match self.outstanding.len() {
            0 => Ok(()),
            lost => Err(ModelFault::Lost(lost)),
        }
    }
}

/// Address of a head's buffer.
pub fn buffer_of(head: u16) -> GuestAddress {
    GuestAddress(BUFFERS + u64::from(BUFFER_BYTES) * u64::from(head))
}

/// Flags of a descriptor.
pub fn flags(next: bool, writable: bool) -> u16 {
    let next = if next { VRING_DESC_F_NEXT } else { 0 };
    let writable = if writable { VRING_DESC_F_WRITE } else { 0 };
    u16::try_from(next | writable).unwrap()
}
