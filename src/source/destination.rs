//! A memory area that is filled sequentially: guest memory, or a buffer of this process.
//!
//! A guest may write to its memory at any time, so no Rust reference to it may exist: copies use `VolatileSlice`, and
//! `preadv` gets raw addresses.

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;
use smallvec::SmallVec;
use vm_memory::volatile_memory::PtrGuardMut;
use vm_memory::{VolatileMemoryError, VolatileSlice};

use super::IoMode;

/// Maximum number of segments in one system call: `UIO_MAXIOV` in Linux's `include/uapi/linux/uio.h`.
const IOV_MAX: usize = 1024;

/// Source of zeros, long enough that filling a readahead window takes only a few copies.
static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];

/// Inline capacity is enough for a read of up to 16 KiB with its status byte; more elements are stored on the heap.
type Few<T> = SmallVec<[T; 4]>;

/// Why the destination could not be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DestinationError {
    /// The kernel returned EFAULT: the frontend truncated the memory's file.
    #[error("the guest's memory vanished while it was written to")]
    Vanished,
    /// There is not enough room.
    #[error("the guest's buffers are too short")]
    Full,
}

/// A memory area that is filled sequentially.
///
/// It borrows the memory, so the mapping outlives all addresses taken from it.
#[derive(Debug)]
pub struct Destination<'m> {
    segments: Few<VolatileSlice<'m>>,
    /// Index of the first segment that is not full. The segment starts at the first free byte.
    first: usize,
}

impl<'m> FromIterator<VolatileSlice<'m>> for Destination<'m> {
    fn from_iter<I: IntoIterator<Item = VolatileSlice<'m>>>(segments: I) -> Self {
        let segments = segments.into_iter().collect();
        Self { segments, first: 0 }
    }
}

impl<'m> From<&'m mut [u8]> for Destination<'m> {
    fn from(buffer: &'m mut [u8]) -> Self {
        std::iter::once(VolatileSlice::from(buffer)).collect()
    }
}

impl Destination<'_> {
    /// Copies `bytes` to the next free bytes.
    ///
    /// # Errors
    /// [`DestinationError::Full`] if there is less room. The bytes that fit have been written.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), DestinationError> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let segment = self.segments.get(self.first);
            let segment = segment.ok_or(DestinationError::Full)?;
            let (now, later) = rest.split_at(rest.len().min(segment.len()));
            segment.copy_from(now);
            self.advance(now.len())?;
            rest = later;
        }
        Ok(())
    }

    /// Writes `len_bytes` zeros.
    ///
    /// # Errors
    /// As for [`write`](Self::write).
    pub fn zero(&mut self, len_bytes: u64) -> Result<(), DestinationError> {
        let mut rest = len_bytes;
        while rest > 0 {
            let zeros =
                usize::try_from(rest).map_or(&ZEROS[..], |count| &ZEROS[..count.min(ZEROS.len())]);
            self.write(zeros)?;
            rest -= zeros.len() as u64;
        }
        Ok(())
    }

    /// Calls `preadv(2)` once, for at most `len_bytes` bytes; returns the number of bytes read.
    ///
    /// # Errors
    /// Outer: [`DestinationError::Full`] if there is no room. Inner: the kernel's error.
    pub(super) fn read(
        &mut self,
        file: BorrowedFd<'_>,
        offset: u64,
        len_bytes: u64,
        mode: IoMode,
    ) -> Result<Result<usize, Errno>, DestinationError> {
        let read = preadv(file, &self.front(len_bytes)?, offset, mode);
        match read {
            Ok(count) => {
                self.advance(count)?;
                Ok(Ok(count))
            }
            Err(Errno::FAULT) => Err(DestinationError::Vanished),
            Err(errno) => Ok(Err(errno)),
        }
    }

    /// Returns the next `len_bytes` free bytes, limited to what one system call can fill.
    fn front(&self, len_bytes: u64) -> Result<Few<VolatileSlice<'_>>, DestinationError> {
        let mut front = Few::new();
        let mut rest = len_bytes;
        for segment in self.segments.iter().skip(self.first).take(IOV_MAX) {
            let rest_len = usize::try_from(rest).unwrap_or(usize::MAX);
            let count = rest_len.min(segment.len());
            front.push(segment.subslice(0, count).map_err(beyond)?);
            rest -= count as u64;
            if rest == 0 {
                break;
            }
        }
        if front.is_empty() {
            Err(DestinationError::Full)
        } else {
            Ok(front)
        }
    }

    /// Marks the next `count` bytes as full.
    fn advance(&mut self, count: usize) -> Result<(), DestinationError> {
        let mut rest = count;
        while rest > 0 {
            let segment = self.segments.get_mut(self.first);
            let segment = segment.ok_or(DestinationError::Full)?;
            if rest < segment.len() {
                *segment = segment.offset(rest).map_err(beyond)?;
                return Ok(());
            }
            rest -= segment.len();
            self.first += 1;
        }
        Ok(())
    }
}

fn beyond(_: VolatileMemoryError) -> DestinationError {
    DestinationError::Full
}

/// We cannot use rustix: its `preadv` takes `&mut [u8]`, which would be unsound for memory that a guest writes to.
#[allow(unsafe_code)]
fn preadv(
    file: BorrowedFd<'_>,
    segments: &[VolatileSlice<'_>],
    offset: u64,
    mode: IoMode,
) -> Result<usize, Errno> {
    let offset = libc::off_t::try_from(offset).map_err(|_| Errno::OVERFLOW)?;
    let guards: Few<PtrGuardMut> = segments.iter().map(VolatileSlice::ptr_guard_mut).collect();
    let iovecs: Few<libc::iovec> = guards
        .iter()
        .map(|guard| libc::iovec {
            iov_base: guard.as_ptr().cast(),
            iov_len: guard.len(),
        })
        .collect();
    let count = libc::c_int::try_from(iovecs.len()).map_err(|_| Errno::INVAL)?;
    // SAFETY: `iovecs` has `count` entries. Each describes memory that `segments` borrows (a mapping, or a buffer of
    // this process) and that `guards` keep accessible; both live until after the call. The kernel writes at most
    // `iov_len` bytes to each; a page that has vanished causes EFAULT, not a signal. No Rust reference to this memory
    // exists: all other code accesses it with volatile or atomic operations.
    let read = unsafe {
        match mode {
            // The older call, which all sandboxes allow.
            IoMode::Local | IoMode::Blocking => {
                libc::preadv(file.as_raw_fd(), iovecs.as_ptr(), count, offset)
            }
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
