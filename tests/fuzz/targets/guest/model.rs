//! A model of what a device may do with a ring (virtio 1.2, sections 2.7 and 5.2.6). Independent of the code under test.

use lazystore::device::vhost_blk::guest::Memory;
use lazystore::device::vhost_blk::ring::Ring;
use lazystore::image::Image;
use vhost_user_backend::VringT;
use virtio_queue::QueueT;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress, GuestMemory, Permissions};

/// Maximum length of a chain that the device accepts.
const DESCRIPTORS_MAX: usize = 128;

/// Addresses of a ring.
#[derive(Debug, Clone, Copy)]
pub struct Addresses {
    pub descriptors: u64,
    pub avail: u64,
    pub used: u64,
}

impl Addresses {
    /// The addresses that the device was given last.
    pub fn of(ring: &Ring) -> Self {
        let state = ring.get_ref();
        let queue = state.get_queue();
        Self {
            descriptors: queue.desc_table(),
            avail: queue.avail_ring(),
            used: queue.used_ring(),
        }
    }
}

/// What the model can predict about processing the ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// There is nothing to process.
    Nothing,
    /// The device overwrites what it reads itself, so nothing can be predicted.
    Anything,
    /// The results are known.
    Exactly,
}

/// First address and length.
pub type Range = (u64, u64);

/// Whether an address is in a range.
pub fn holds((start, len): Range, address: u64) -> bool {
    address.wrapping_sub(start) < len
}

/// Addresses and the bytes there.
type Filled = Vec<(u64, Vec<u8>)>;

/// A chain as the model reads it.
#[derive(Debug, Default)]
struct Chain {
    head: u16,
    readable: Vec<Range>,
    writable: Vec<Range>,
    /// Indirect tables.
    tables: Vec<Range>,
    descriptors: usize,
    ended: bool,
    disordered: bool,
}

/// The expected result of a request.
#[derive(Debug)]
struct Answer {
    head: u16,
    /// Address and value of the status byte. `None` if there is no space for it.
    status: Option<(u64, u8)>,
    /// Expected data.
    data: Filled,
    used_len: u32,
}

/// The expected result of processing the ring.
#[derive(Debug)]
pub struct Expected {
    verdict: Verdict,
    used: Addresses,
    size: u16,
    first_used: u16,
    /// The used index in memory, which the guest may have overwritten.
    index_before: Option<u16>,
    /// The ring is invalid, so the device may stop serving it.
    flawed: bool,
    /// Chains have overlapping buffers, so only the last one's data can be checked.
    overlapping: bool,
    /// Ranges that the device may write: sorted, without overlaps.
    writable: Vec<Range>,
    answers: Vec<Answer>,
}

impl Expected {
    pub fn new(ring: &Ring, broken: bool, memory: &Memory, image: &Image) -> Self {
        let addresses = Addresses::of(ring);
        let (size, first) = {
            let state = ring.get_ref();
            (state.get_queue().size(), state.get_queue().next_avail())
        };
        let mut expected = Self {
            verdict: Verdict::Exactly,
            used: addresses,
            size,
            first_used: first,
            index_before: None,
            flawed: false,
            overlapping: false,
            writable: Vec::new(),
            answers: Vec::new(),
        };
        if broken || !ring.is_running() {
            expected.verdict = Verdict::Nothing;
        } else {
            expected.look(memory, image);
        }
        expected
    }

    pub fn verdict(&self) -> Verdict {
        self.verdict
    }

    fn look(&mut self, memory: &Memory, image: &Image) {
        self.index_before = self.used_index(memory);
        let heads = self.heads(memory);
        let chains: Vec<Chain> = heads
            .iter()
            .map(|head| Chain::read(*head, self.used.descriptors, self.size, memory))
            .collect();
        self.flawed |= !self
            .ring_ranges()
            .iter()
            .all(|range| is_inside(*range, memory));
        let read = merged(self.what_is_read(&chains).into_iter());
        let written: Vec<Range> = chains
            .iter()
            .flat_map(|chain| chain.writable.clone())
            .collect();
        let used = self.used_range();
        let clash = |range: &Range| {
            let after = read.partition_point(|(start, _)| *start <= range.0);
            let near = &read[after.saturating_sub(1)..read.len().min(after + 1)];
            near.iter().any(|other| overlap(*range, *other))
        };
        if written
            .iter()
            .any(|range| clash(range) || overlap(*range, used))
            || clash(&used)
        {
            self.verdict = Verdict::Anything;
            return;
        }
        self.overlapping = do_overlap(&written);
        self.writable = merged(written.into_iter().chain([used]));
        self.answers = chains
            .iter()
            .map(|chain| chain.answer(memory, image))
            .collect();
    }

    /// Available heads that can be read.
    fn heads(&mut self, memory: &Memory) -> Vec<u16> {
        let read = |at: Option<u64>| memory.read_obj::<u16>(GuestAddress(at?)).ok();
        let index = read(self.used.avail.checked_add(2));
        let count = index.map_or(0, |index| index.wrapping_sub(self.first_used));
        // virtio-queue treats an available ring at address 0 as missing.
        if index.is_none() || count > self.size || self.used.avail == 0 {
            self.flawed = true;
            return Vec::new();
        }
        let slot = |nth: u16| u64::from(self.first_used.wrapping_add(nth) % self.size);
        let heads: Vec<u16> = (0..count)
            .map_while(|nth| read(self.used.avail.checked_add(4 + 2 * slot(nth))))
            .collect();
        self.flawed |=
            heads.len() < usize::from(count) || heads.iter().any(|head| *head >= self.size);
        heads
    }

    fn used_range(&self) -> Range {
        (self.used.used, 6 + 8 * u64::from(self.size))
    }

    fn ring_ranges(&self) -> [Range; 2] {
        [
            (self.used.avail, 6 + 2 * u64::from(self.size)),
            self.used_range(),
        ]
    }

    fn what_is_read(&self, chains: &[Chain]) -> Vec<Range> {
        let [avail, _] = self.ring_ranges();
        let mut read = vec![avail, (self.used.descriptors, 16 * u64::from(self.size))];
        for chain in chains {
            read.extend(&chain.tables);
            read.extend(&chain.readable);
        }
        read
    }

    /// Range around `address` that may change, if it may.
    pub fn may_change(&self, address: u64) -> Option<Range> {
        let after = self
            .writable
            .partition_point(|(start, _)| *start <= address);
        let last = self.writable[..after].last();
        last.copied().filter(|range| holds(*range, address))
    }

    /// Whether all requests have been completed.
    pub fn are_published(&self, memory: &Memory) -> bool {
        self.flawed || self.published(memory) == Some(self.answers.len())
    }

    /// Number of completed requests. An unchanged index says nothing: only after the last completion it is the device's.
    fn published(&self, memory: &Memory) -> Option<usize> {
        let index = self.used_index(memory)?;
        let count = usize::from(index.wrapping_sub(self.first_used));
        let unchanged = self.index_before == Some(index) && count != self.answers.len();
        Some(if unchanged { 0 } else { count })
    }

    fn used_index(&self, memory: &Memory) -> Option<u16> {
        let at = self.used.used.checked_add(2)?;
        memory.read_obj(GuestAddress(at)).ok()
    }

    /// Whether the number of completions is unknown: the device may stop serving the ring at any time, or the guest has
    /// overwritten the used index.
    pub fn is_flawed(&self) -> bool {
        self.flawed || self.index_before != Some(self.first_used)
    }

    /// The device's used index after processing the ring, even if the guest has overwritten it.
    pub fn answered(&self, memory: &Memory) -> u16 {
        let published = self.published(memory).unwrap_or(0);
        let published = u16::try_from(published).unwrap();
        self.first_used.wrapping_add(published)
    }

    /// Whether the driver wants an interrupt for the completions up to `after` (virtio 1.2, section 2.7.7).
    pub fn wants_interrupt(&self, ring: &Ring, memory: &Memory, after: u16) -> bool {
        let event_idx = ring.get_ref().get_queue().event_idx_enabled();
        let count = after.wrapping_sub(self.first_used);
        let word = |offset: u64| memory.read_obj::<u16>(GuestAddress(self.used.avail + offset));
        if count == 0 {
            false
        } else if event_idx {
            let event = word(4 + 2 * u64::from(self.size)).unwrap();
            event.wrapping_sub(self.first_used) < count
        } else {
            word(0).unwrap() & 1 == 0
        }
    }

    /// Checks that the published completions are those of the first requests, in order.
    pub fn check_prefix(&self, memory: &Memory) {
        let index = self.used_index(memory).unwrap();
        let published = usize::from(index.wrapping_sub(self.first_used));
        assert!(
            published <= self.answers.len(),
            "more answers than requests"
        );
        self.check_published(published, memory);
    }

    /// Checks that every head is completed once and in order, unless the device stopped serving an invalid ring.
    pub fn check_answers(&self, memory: &Memory, stopped: bool) {
        let Some(published) = self.published(memory) else {
            assert!(stopped, "the used ring is not in memory");
            return;
        };
        assert!(
            published <= self.answers.len(),
            "more answers than requests"
        );
        if !self.flawed {
            assert!(!stopped, "a good ring was given up: {self:?}");
            assert_eq!(published, self.answers.len());
        }
        self.check_published(published, memory);
    }

    fn check_published(&self, published: usize, memory: &Memory) {
        // A shorter used ring contains only the last of them.
        let hidden = published.saturating_sub(usize::from(self.size));
        for (nth, answer) in self.answers.iter().enumerate().take(published).skip(hidden) {
            self.check_element(nth, answer, memory);
            if !self.overlapping {
                answer.check(memory);
            }
        }
    }

    fn check_element(&self, nth: usize, answer: &Answer, memory: &Memory) {
        let slot = u64::from(self.first_used.wrapping_add(u16::try_from(nth).unwrap()) % self.size);
        let at = self.used.used + 4 + 8 * slot;
        let found: [u32; 2] = memory.read_obj(GuestAddress(at)).unwrap();
        assert_eq!(found, [u32::from(answer.head), answer.used_len]);
    }
}

impl Answer {
    fn check(&self, memory: &Memory) {
        if let Some((at, byte)) = self.status {
            let found: u8 = memory.read_obj(GuestAddress(at)).unwrap();
            assert_eq!(found, byte, "status of {self:?}");
        }
        for (at, bytes) in &self.data {
            let mut found = vec![0; bytes.len()];
            memory.read_slice(&mut found, GuestAddress(*at)).unwrap();
            assert!(found == *bytes, "data of head {}", self.head);
        }
    }
}

impl Chain {
    fn read(head: u16, table: u64, size: u16, memory: &Memory) -> Self {
        let mut chain = Self {
            head,
            ..Self::default()
        };
        let (mut table, mut entries, mut index) = (table, u32::from(size), u32::from(head));
        let (mut steps, mut total) = (0, 0u64);
        while index < entries && steps < entries {
            let at = table.checked_add(16 * u64::from(index)).map(GuestAddress);
            let Some(Ok(found)) = at.map(|at| memory.read_obj::<Descriptor>(at)) else {
                return chain;
            };
            let (len, flags) = (u64::from(found.len()), found.flags());
            if flags & 4 != 0 {
                if !chain.tables.is_empty() || len % 16 != 0 || len / 16 > 0xffff {
                    return chain;
                }
                chain.tables.push((found.addr().0, len));
                (table, entries, index, steps) = (found.addr().0, found.len() / 16, 0, 0);
                continue;
            }
            total += len;
            if total > u64::from(u32::MAX) {
                return chain;
            }
            chain.add((found.addr().0, len), flags & 2 != 0);
            chain.ended = flags & 1 == 0;
            if chain.ended {
                return chain;
            }
            index = u32::from(found.next());
            steps += 1;
        }
        chain
    }

    fn add(&mut self, range: Range, writable: bool) {
        self.descriptors += 1;
        if writable {
            self.writable.extend((range.1 > 0).then_some(range));
        } else {
            self.disordered |= !self.writable.is_empty();
            self.readable.extend((range.1 > 0).then_some(range));
        }
    }

    fn answer(&self, memory: &Memory, image: &Image) -> Answer {
        let mut data = self.writable.clone();
        let place = self.take_status(&mut data);
        let filled = place.and_then(|_| self.data(&data, memory, image));
        let status = place.filter(|at| is_inside((*at, 1), memory));
        let (byte, data) = match filled {
            Some(Ok(data)) => (0, data),
            Some(Err(byte)) => (byte, Vec::new()),
            None => (1, Vec::new()),
        };
        let len: usize = data.iter().map(|(_, bytes)| bytes.len()).sum();
        Answer {
            head: self.head,
            status: status.map(|at| (at, byte)),
            data,
            used_len: u32::try_from(len).unwrap() + u32::from(status.is_some()),
        }
    }

    fn take_status(&self, data: &mut Vec<Range>) -> Option<u64> {
        let last = data.last_mut().filter(|_| self.ended)?;
        last.1 -= 1;
        let at = last.0.checked_add(last.1);
        if last.1 == 0 {
            data.pop();
        }
        at
    }

    /// The expected data or error status. `None` for a chain that is not a request.
    fn data(&self, data: &[Range], memory: &Memory, image: &Image) -> Option<Result<Filled, u8>> {
        if self.disordered || self.descriptors > DESCRIPTORS_MAX {
            return None;
        }
        let (kind, sector) = self.header(memory)?;
        let len: u64 = data.iter().map(|(_, len)| len).sum();
        let start = match kind {
            4 => return Some(Ok(Vec::new())),
            0 | 8 => Some(sector),
            1 | 11 | 13 | 14 => None,
            _ => return Some(Err(2)),
        }?;
        if !data.iter().all(|range| is_inside(*range, memory)) {
            return None;
        }
        let len = usize::try_from(len).ok()?;
        let bytes = if kind == 8 {
            let mut serial = b"nix-store-0123456789".to_vec();
            serial.resize(len, 0);
            serial
        } else {
            sectors(image, start, len)?
        };
        Some(Ok(spread(data, &bytes)))
    }

    /// Type and sector.
    fn header(&self, memory: &Memory) -> Option<(u32, u64)> {
        let mut bytes = Vec::new();
        for (at, len) in &self.readable {
            let mut part = vec![0; usize::try_from(*len).ok()?.min(16 - bytes.len())];
            memory.read_slice(&mut part, GuestAddress(*at)).ok()?;
            bytes.extend(part);
        }
        let kind = bytes.first_chunk()?;
        Some((
            u32::from_le_bytes(*kind),
            u64::from_le_bytes(*bytes.get(8..)?.first_chunk()?),
        ))
    }
}

/// `None` if the read is not of whole sectors on the disk.
fn sectors(image: &Image, sector: u64, len: usize) -> Option<Vec<u8>> {
    let start = sector.checked_mul(512)?;
    let end = start.checked_add(len as u64)?;
    if !len.is_multiple_of(512) || end > image.len_bytes() {
        return None;
    }
    let mut bytes = vec![0; len];
    if len > 0 {
        image.read_exact_at(&mut bytes, start).unwrap();
    }
    Some(bytes)
}

fn spread(ranges: &[Range], bytes: &[u8]) -> Filled {
    let mut rest = bytes;
    let part = |(at, len): &Range| {
        let (now, later) = rest.split_at(usize::try_from(*len).unwrap());
        rest = later;
        (*at, now.to_vec())
    };
    ranges.iter().map(part).collect()
}

fn is_inside((start, len): Range, memory: &Memory) -> bool {
    memory.check_range(
        GuestAddress(start),
        usize::try_from(len).unwrap(),
        Permissions::ReadWrite,
    )
}

fn overlap(a: Range, b: Range) -> bool {
    let end = |(start, len): Range| u128::from(start) + u128::from(len);
    u128::from(a.0) < end(b) && u128::from(b.0) < end(a) && a.1 > 0 && b.1 > 0
}

/// Merges ranges. A chain may have very many, and every changed byte is looked up in them.
fn merged(ranges: impl Iterator<Item = Range>) -> Vec<Range> {
    let mut sorted: Vec<Range> = ranges.filter(|(_, len)| *len > 0).collect();
    sorted.sort_unstable();
    let mut merged: Vec<Range> = Vec::new();
    for (start, len) in sorted {
        match merged.last_mut() {
            Some(last) if start - last.0 <= last.1 => last.1 = last.1.max(start - last.0 + len),
            _ => merged.push((start, len)),
        }
    }
    merged
}

fn do_overlap(ranges: &[Range]) -> bool {
    let mut sorted = ranges.to_vec();
    sorted.sort_unstable();
    sorted.windows(2).any(|pair| overlap(pair[0], pair[1]))
}
