//! Memory that a process shares with the children it forks later.

use std::io;
use std::ops::Deref;
use std::ptr::NonNull;
use std::slice;

use zerocopy::FromZeros;

use super::ProcessError;

/// Some `T`, all zeros at first. A child that is forked later sees what its parent writes, and the other way round; what
/// a child wrote outlives it. Pages that nobody has touched take no memory.
///
/// What another process writes there is to be taken for any value that a `T` may have.
#[derive(Debug)]
pub struct Shared<T: FromZeros + Sync> {
    start: NonNull<T>,
    count: usize,
}

#[allow(unsafe_code)]
// SAFETY: it gives out shared references only, and `T` is `Sync`; the mapping belongs to no thread.
unsafe impl<T: FromZeros + Sync> Send for Shared<T> {}
#[allow(unsafe_code)]
// SAFETY: as above.
unsafe impl<T: FromZeros + Sync> Sync for Shared<T> {}

impl<T: FromZeros + Sync> Shared<T> {
    /// Room for `count` of them.
    ///
    /// # Errors
    /// When the kernel has no memory left, or no addresses.
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

/// Length of a mapping, which must not be empty. A page is enough for the alignment of any `T` here.
fn len_bytes<T>(count: usize) -> Option<usize> {
    const { assert!(align_of::<T>() <= 4096) };
    let len_bytes = size_of::<T>().max(1).checked_mul(count.max(1))?;
    isize::try_from(len_bytes).is_ok().then_some(len_bytes)
}

impl<T: FromZeros + Sync> Deref for Shared<T> {
    type Target = [T];

    #[allow(unsafe_code)]
    fn deref(&self) -> &[T] {
        // SAFETY: the mapping is as long as that, lives as long as `self`, and is aligned to a page. Zeros are a `T`; it is
        // written to only through shared references to `T`, here or in another process.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.count) }
    }
}

impl<T: FromZeros + Sync> Drop for Shared<T> {
    #[allow(unsafe_code)]
    fn drop(&mut self) {
        if let Some(len_bytes) = len_bytes::<T>(self.count) {
            // SAFETY: nobody has a reference to it any more. Other processes have mappings of their own.
            unsafe { libc::munmap(self.start.as_ptr().cast(), len_bytes) };
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[test]
    fn it_begins_with_zeros_and_may_be_empty_or_far_too_long() {
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
