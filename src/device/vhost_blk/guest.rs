//! Guest memory as scatter-gather buffers.

use std::iter::FusedIterator;

use smallvec::SmallVec;
use vm_memory::guest_memory::{GuestMemoryBackendSliceIterator, GuestMemorySliceIterator};
use vm_memory::{
    Bytes, GuestAddress, GuestMemory, GuestMemoryAtomic, GuestMemoryBackend, GuestMemoryError,
    GuestMemoryMmap, Permissions, VolatileSlice,
};

use super::dirty::{DirtyLog, RegionLog};
use crate::source::Destination;

/// Guest memory as mapped in this process. Code that writes to it must mark the pages in the device's dirty log itself.
pub type Memory = GuestMemoryMmap<RegionLog>;

/// Guest memory that the frontend may replace while queues are running.
pub type SharedMemory = GuestMemoryAtomic<Memory>;

/// Guest memory with a fast path for ranges within one region, as almost all are.
///
/// A request translates about ten addresses. The library's own code iterates over all regions that a range may touch,
/// which takes two to three times as long.
#[derive(Debug, Clone, Copy)]
pub struct View<'m>(&'m Memory);

impl<'m> View<'m> {
    /// Wraps `memory`.
    pub fn new(memory: &'m Memory) -> Self {
        Self(memory)
    }
}

impl GuestMemory for View<'_> {
    type PhysicalMemory = Memory;
    type Bitmap = ();

    fn check_range(&self, address: GuestAddress, len_bytes: usize, access: Permissions) -> bool {
        GuestMemory::check_range(self.0, address, len_bytes, access)
    }

    fn get_slices<'a>(
        &'a self,
        address: GuestAddress,
        len_bytes: usize,
        _access: Permissions,
    ) -> Result<impl GuestMemorySliceIterator<'a, ()>, GuestMemoryError> {
        let one = self.0.get_slice(address, len_bytes);
        Ok(one.map_or_else(
            |_| Slices::Several(GuestMemoryBackend::get_slices(self.0, address, len_bytes)),
            |slice| Slices::One(Some(slice)),
        ))
    }
}

/// The slices of a range of guest memory.
enum Slices<'m> {
    One(Option<VolatileSlice<'m>>),
    Several(GuestMemoryBackendSliceIterator<'m, Memory>),
}

impl<'m> Iterator for Slices<'m> {
    type Item = Result<VolatileSlice<'m>, GuestMemoryError>;

    fn next(&mut self) -> Option<Self::Item> {
        match self {
            Self::One(slice) => slice.take().map(Ok),
            Self::Several(slices) => slices.next(),
        }
    }
}

impl FusedIterator for Slices<'_> {}

impl<'m> GuestMemorySliceIterator<'m, ()> for Slices<'m> {}

/// A fault in accessing guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum GuestFault {
    /// A buffer is not completely in memory that the frontend shared.
    #[error("the guest's buffer at {address:#x} ({len_bytes} bytes) is outside its memory")]
    Outside {
        /// Guest physical address of the buffer.
        address: u64,
        /// Its length.
        len_bytes: u64,
    },
    /// The buffers are too short.
    #[error("the guest's buffers are too short")]
    Full,
}

/// Inline capacity is enough for a read of up to 16 KiB with its status byte; more elements are stored on the heap.
type Few<T> = SmallVec<[T; 4]>;

/// A contiguous range of guest physical memory: the range of one descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Segment {
    address: GuestAddress,
    len_bytes: u32,
}

/// The readable or the writable part of a descriptor chain. Its addresses are not checked yet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GuestBuffer {
    segments: Few<Segment>,
    len_bytes: u64,
}

impl GuestBuffer {
    /// Appends a range, unless it is empty.
    pub fn push(&mut self, address: GuestAddress, len_bytes: u32) {
        if len_bytes > 0 {
            self.segments.push(Segment { address, len_bytes });
            self.len_bytes += u64::from(len_bytes);
        }
    }

    /// Total length of all ranges.
    pub fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// Whether the buffer has length 0.
    pub fn is_empty(&self) -> bool {
        self.len_bytes == 0
    }

    /// Marks all of it in `log`.
    pub fn mark_in(&self, log: &DirtyLog) {
        for segment in &self.segments {
            log.mark(segment.address, segment.len_bytes.into());
        }
    }

    /// Removes the last byte and returns its address. `None` if the buffer is empty, or the address is beyond 2^64.
    pub fn pop_byte(&mut self) -> Option<GuestAddress> {
        let last = self.segments.last_mut()?;
        let offset = u64::from(last.len_bytes - 1);
        let address = last.address.0.checked_add(offset).map(GuestAddress);
        last.len_bytes -= 1;
        self.len_bytes -= 1;
        if last.len_bytes == 0 {
            self.segments.pop();
        }
        address
    }

    /// Fills `bytes` from the start of the buffer.
    ///
    /// # Errors
    /// [`GuestFault::Full`] if the buffer is too short, [`GuestFault::Outside`] if it is not in memory.
    pub fn read_front(
        &self,
        memory: &impl GuestMemory,
        bytes: &mut [u8],
    ) -> Result<(), GuestFault> {
        let mut rest = bytes;
        for segment in &self.segments {
            let count = rest.len().min(segment.len_bytes as usize);
            let (now, later) = rest.split_at_mut(count);
            memory
                .read_slice(now, segment.address)
                .map_err(|_| segment.outside())?;
            rest = later;
        }
        if rest.is_empty() {
            Ok(())
        } else {
            Err(GuestFault::Full)
        }
    }

    /// Translates the buffer to host memory, to be filled from its start.
    ///
    /// # Errors
    /// [`GuestFault::Outside`] if any part of it is not in memory. Nothing has been written then.
    pub fn writer<'m>(
        &self,
        memory: &'m impl GuestMemory<Bitmap = ()>,
    ) -> Result<Destination<'m>, GuestFault> {
        Self::writer_of(std::iter::once(self), memory)
    }

    /// Translates several buffers to host memory, to be filled one after the other.
    ///
    /// # Errors
    /// As for [`writer`](Self::writer).
    pub fn writer_of<'b, 'm>(
        buffers: impl Iterator<Item = &'b Self>,
        memory: &'m impl GuestMemory<Bitmap = ()>,
    ) -> Result<Destination<'m>, GuestFault> {
        let mut slices: Few<VolatileSlice<'m>> = Few::new();
        for segment in buffers.flat_map(|buffer| &buffer.segments) {
            let found = memory
                .get_slices(
                    segment.address,
                    segment.len_bytes as usize,
                    Permissions::Write,
                )
                .map_err(|_| segment.outside())?;
            for slice in found {
                slices.push(slice.map_err(|_| segment.outside())?);
            }
        }
        Ok(slices.into_iter().collect())
    }
}

impl Segment {
    fn outside(&self) -> GuestFault {
        GuestFault::Outside {
            address: self.address.0,
            len_bytes: u64::from(self.len_bytes),
        }
    }
}

#[cfg(test)]
mod tests;
