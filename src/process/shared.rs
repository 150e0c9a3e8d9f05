//! Memory shared between a process and the children that it forks later.

use std::io;
use std::ops::Deref;
use std::ptr::NonNull;
use std::slice;

use zerocopy::FromZeros;

use super::ProcessError;

/// A zeroed slice of `T` in a shared mapping. Parent and children that are forked later see each other's writes, and
/// the contents outlive the child that wrote them. Untouched pages take no memory.
///
/// Another process may write any valid value of `T` at any time, so do not trust the contents.
#[derive(Debug)]
pub struct Shared<T: FromZeros + Sync> {
    start: NonNull<T>,
    count: usize,
}

#[allow(unsafe_code)]
// SAFETY: only shared references are handed out, `T` is `Sync`, and a mapping is not tied to a thread.
unsafe impl<T: FromZeros + Sync> Send for Shared<T> {}
#[allow(unsafe_code)]
// SAFETY: as above.
unsafe impl<T: FromZeros + Sync> Sync for Shared<T> {}

impl<T: FromZeros + Sync> Shared<T> {
    /// Maps `count` elements.
    ///
    /// # Errors
    /// The kernel has no memory or address space left.
    #[allow(unsafe_code)]
    pub fn new(count: usize) -> Result<Self, ProcessError> {
        let fault = ProcessError::host("share memory with a process");
        let Some(len_bytes) = len_bytes::<T>(count) else {
            return Err(fault(io::Error::from_raw_os_error(libc::ENOMEM)));
        };
        let (access, flags) = (
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
        );
        // SAFETY: the kernel chooses fresh addresses; no memory that is in use changes.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), len_bytes, access, flags, -1, 0) };
        match NonNull::new(start.cast::<T>()) {
            Some(start) if start.as_ptr() != libc::MAP_FAILED.cast() => Ok(Self { start, count }),
            _ => Err(fault(io::Error::last_os_error())),
        }
    }
}

/// Returns the length of the mapping; at least 1, because mmap(2) rejects 0. Page alignment is enough for every `T` used here.
fn len_bytes<T>(count: usize) -> Option<usize> {
    const { assert!(align_of::<T>() <= 4096) };
    let len_bytes = size_of::<T>().max(1).checked_mul(count.max(1))?;
    isize::try_from(len_bytes).is_ok().then_some(len_bytes)
}

impl<T: FromZeros + Sync> Deref for Shared<T> {
    type Target = [T];

    #[allow(unsafe_code)]
    fn deref(&self) -> &[T] {
        // SAFETY: the mapping has this length, lives as long as `self`, and is page-aligned. All zeros are a valid `T`,
        // and all processes write to it only through shared references to `T`.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.count) }
    }
}

impl<T: FromZeros + Sync> Drop for Shared<T> {
    #[allow(unsafe_code)]
    fn drop(&mut self) {
        if let Some(len_bytes) = len_bytes::<T>(self.count) {
            // SAFETY: all references borrow from `self`, so none is left. Other processes have their own mappings.
            unsafe { libc::munmap(self.start.as_ptr().cast(), len_bytes) };
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[test]
    fn memory_is_zeroed_and_lengths_are_checked() {
        let shared = Shared::<AtomicU64>::new(10_000).unwrap();
        assert_eq!(shared.len(), 10_000);
        assert!(shared.iter().all(|one| one.load(Ordering::Relaxed) == 0));
        shared[9_999].store(1, Ordering::Relaxed);
        assert_eq!(shared[9_999].load(Ordering::Relaxed), 1);
        assert!(Shared::<AtomicU64>::new(0).unwrap().is_empty());
        for count in [usize::MAX, usize::MAX / 16] {
            assert!(Shared::<AtomicU64>::new(count).is_err());
        }
    }
}
