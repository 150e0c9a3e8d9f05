//! Guest memory as buffers: copy in, zero, and `preadv` straight from a host file.
//!
//! The guest may write to its memory at any moment, so no Rust reference to it exists here: copies go
//! through `VolatileSlice`, and `preadv` is given raw addresses.

use std::iter::FusedIterator;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;
use smallvec::SmallVec;
use vm_memory::bitmap::BitmapSlice;
use vm_memory::guest_memory::{GuestMemoryBackendSliceIterator, GuestMemorySliceIterator};
use vm_memory::volatile_memory::PtrGuardMut;
use vm_memory::{
    Bytes, GuestAddress, GuestMemory, GuestMemoryAtomic, GuestMemoryBackend, GuestMemoryError,
    GuestMemoryMmap, Permissions, VolatileMemoryError, VolatileSlice,
};

use crate::source::{IoMode, would_block};

/// Guest memory as this process has mapped it; no dirty log, because nothing here can migrate.
pub type Memory = GuestMemoryMmap<()>;

/// Guest memory that the frontend may replace while queues run.
pub type SharedMemory = GuestMemoryAtomic<Memory>;

/// Guest memory where one look finds the region in which a whole range lies, as almost every range does.
///
/// A request looks guest memory up some ten times. The library's own way steps through all regions that a range may
/// touch, which costs two to three times as much.
#[derive(Debug, Clone, Copy)]
pub struct View<'m>(&'m Memory);

impl<'m> View<'m> {
    /// The same memory.
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

/// What a range of guest memory consists of.
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

/// Most segments in one system call: `UIO_MAXIOV` in Linux's `include/uapi/linux/uio.h`.
const IOV_MAX: usize = 1024;

/// Source of zeros, long enough that a readahead window takes a few copies.
static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];

/// Why guest memory could not be used as the guest asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum GuestFault {
    /// A buffer is not, or not wholly, in memory that the frontend shared.
    #[error("the guest's buffer at {address:#x} ({len_bytes} bytes) is outside its memory")]
    Outside {
        /// Guest physical address of the buffer.
        address: u64,
        /// Its length.
        len_bytes: u64,
    },
    /// The kernel could not write there: the frontend cut the memory's file.
    #[error("the guest's memory vanished while it was written to")]
    Vanished,
    /// More bytes were to be stored than the buffers hold.
    #[error("the guest's buffers are too short")]
    Full,
}

/// Why bytes of a host file did not arrive in guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FileFault {
    /// The memory is at fault.
    #[error(transparent)]
    Guest(#[from] GuestFault),
    /// The bytes are not in memory, and the caller does not want to wait.
    #[error("a disk has to be waited for")]
    WouldBlock,
    /// The host refused to read.
    #[error("the host refused to read: {0}")]
    Host(Errno),
    /// The file ended early.
    #[error("the file ended early")]
    Ended,
}

/// As many pieces as a read of up to 16 KiB has at most, status byte included; more of them go to the heap.
type Few<T> = SmallVec<[T; 4]>;

/// A contiguous range of guest physical memory, as one descriptor names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Segment {
    address: GuestAddress,
    len_bytes: u32,
}

/// The readable or the writable part of a descriptor chain. Nothing in it has been checked yet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GuestBuffer {
    segments: Few<Segment>,
    len_bytes: u64,
}

impl GuestBuffer {
    /// Appends a range; an empty one is left out.
    pub fn push(&mut self, address: GuestAddress, len_bytes: u32) {
        if len_bytes > 0 {
            self.segments.push(Segment { address, len_bytes });
            self.len_bytes += u64::from(len_bytes);
        }
    }

    /// Sum of all ranges.
    pub fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// Whether the buffer holds no byte.
    pub fn is_empty(&self) -> bool {
        self.len_bytes == 0
    }

    /// Cuts the last byte off and returns its address; none when there is none, or when it lies beyond 2^64.
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
    /// [`GuestFault::Full`] when the buffer is shorter, [`GuestFault::Outside`] when it is not in memory.
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

    /// Finds the buffer in memory, to be filled from its start.
    ///
    /// # Errors
    /// [`GuestFault::Outside`] when any part of it is not in memory; nothing has been written then.
    pub fn writer<'m>(
        &self,
        memory: &'m impl GuestMemory<Bitmap = ()>,
    ) -> Result<GuestWriter<'m>, GuestFault> {
        Self::writer_of(std::iter::once(self), memory)
    }

    /// Finds several buffers in memory, to be filled one after the other.
    ///
    /// # Errors
    /// As [`writer`](Self::writer).
    pub fn writer_of<'b, 'm>(
        buffers: impl Iterator<Item = &'b Self>,
        memory: &'m impl GuestMemory<Bitmap = ()>,
    ) -> Result<GuestWriter<'m>, GuestFault> {
        let mut slices = Few::new();
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
        Ok(GuestWriter { slices, first: 0 })
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

/// A buffer in guest memory that is filled from its start to its end.
///
/// It borrows the memory, so the mapping outlives every address taken from it.
#[derive(Debug)]
pub struct GuestWriter<'m, B: BitmapSlice = ()> {
    slices: Few<VolatileSlice<'m, B>>,
    /// Slices before this one are full; this one starts at the first free byte.
    first: usize,
}

impl GuestWriter<'_> {
    /// Copies `bytes` into guest memory.
    ///
    /// # Errors
    /// [`GuestFault::Full`] when the rest of the buffer is shorter; what fits has been written.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), GuestFault> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let slice = self.slices.get(self.first).ok_or(GuestFault::Full)?;
            let count = rest.len().min(slice.len());
            let (now, later) = rest.split_at(count);
            slice.copy_from(now);
            self.advance(count)?;
            rest = later;
        }
        Ok(())
    }

    /// Writes `len_bytes` zeros.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn zero(&mut self, len_bytes: u64) -> Result<(), GuestFault> {
        let mut rest = len_bytes;
        while rest > 0 {
            let count = rest.min(ZEROS.len() as u64);
            let zeros = usize::try_from(count).ok().and_then(|n| ZEROS.get(..n));
            self.write(zeros.ok_or(GuestFault::Full)?)?;
            rest -= count;
        }
        Ok(())
    }

    /// Reads `offset..offset + len_bytes` of a file, wholly, with as few system calls as the kernel allows; with
    /// [`IoMode::NoWait`] only from memory.
    ///
    /// # Errors
    /// [`FileFault`]; any part of the buffer may have been written then.
    pub fn read_file(
        &mut self,
        file: BorrowedFd<'_>,
        offset: u64,
        len_bytes: u64,
        mode: IoMode,
    ) -> Result<(), FileFault> {
        let mut at = offset;
        let mut rest = len_bytes;
        while rest > 0 {
            let count = match preadv(file, &self.front(rest)?, at, mode) {
                Ok(0) => return Err(FileFault::Ended),
                Ok(count) => count,
                Err(Errno::INTR) => continue,
                Err(Errno::FAULT) => return Err(GuestFault::Vanished.into()),
                Err(errno) if mode == IoMode::NoWait && would_block(errno) => {
                    return Err(FileFault::WouldBlock);
                }
                Err(errno) => return Err(FileFault::Host(errno)),
            };
            self.advance(count)?;
            at += count as u64;
            rest -= count as u64;
        }
        Ok(())
    }

    /// The next `len_bytes` bytes of the buffer, or as much of them as one system call takes.
    fn front(&self, len_bytes: u64) -> Result<Few<VolatileSlice<'_>>, GuestFault> {
        let mut front = Few::new();
        let mut rest = len_bytes;
        for slice in self.slices.iter().skip(self.first).take(IOV_MAX) {
            let count = usize::try_from(rest).unwrap_or(usize::MAX).min(slice.len());
            front.push(slice.subslice(0, count).map_err(beyond)?);
            rest -= count as u64;
            if rest == 0 {
                break;
            }
        }
        if front.is_empty() {
            Err(GuestFault::Full)
        } else {
            Ok(front)
        }
    }

    /// Takes note that the next `count` bytes are full.
    fn advance(&mut self, count: usize) -> Result<(), GuestFault> {
        let mut rest = count;
        while rest > 0 {
            let slice = self.slices.get_mut(self.first).ok_or(GuestFault::Full)?;
            if rest < slice.len() {
                *slice = slice.offset(rest).map_err(beyond)?;
                return Ok(());
            }
            rest -= slice.len();
            self.first += 1;
        }
        Ok(())
    }
}

fn beyond(_: VolatileMemoryError) -> GuestFault {
    GuestFault::Full
}

/// One `preadv(2)` into guest memory; returns how many bytes arrived.
///
/// Not rustix: its `preadv` wants `&mut [u8]`, and such a reference to memory that a guest writes to is unsound.
#[allow(unsafe_code)]
fn preadv(
    file: BorrowedFd<'_>,
    slices: &[VolatileSlice<'_>],
    offset: u64,
    mode: IoMode,
) -> Result<usize, Errno> {
    let offset = libc::off_t::try_from(offset).map_err(|_| Errno::OVERFLOW)?;
    let guards: Few<PtrGuardMut> = slices.iter().map(VolatileSlice::ptr_guard_mut).collect();
    let iovecs: Few<libc::iovec> = guards
        .iter()
        .map(|guard| libc::iovec {
            iov_base: guard.as_ptr().cast(),
            iov_len: guard.len(),
        })
        .collect();
    let count = libc::c_int::try_from(iovecs.len()).map_err(|_| Errno::INVAL)?;
    // SAFETY: `iovecs` holds `count` entries. Each names memory inside a mapping that `slices` borrows from its
    // `Memory` and that `guards` keep accessible, both alive until after the call. The kernel writes at most
    // `iov_len` bytes to each; a page that has vanished gives EFAULT, not a signal. No Rust reference to this
    // memory exists: whatever else touches it does so through volatile or atomic accesses.
    let read = unsafe {
        match mode {
            // The older call, which every sandbox allows.
            IoMode::Blocking => libc::preadv(file.as_raw_fd(), iovecs.as_ptr(), count, offset),
            IoMode::NoWait => {
                let flags = libc::RWF_NOWAIT;
                libc::preadv2(file.as_raw_fd(), iovecs.as_ptr(), count, offset, flags)
            }
        }
    };
    usize::try_from(read).map_err(|_| last_errno())
}

fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

#[cfg(test)]
mod tests;
