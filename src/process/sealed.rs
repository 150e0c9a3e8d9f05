//! Memory that one process writes to and others only read, however hard they try.

use std::io;
use std::os::fd::AsRawFd;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU64, Ordering, fence};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::process::{Resource, getrlimit};

use super::ProcessError;

const ACTION: &str = "share memory that others cannot write to";

/// Makes `len_bytes` of zeros: a mapping to write through, and one to read through.
///
/// After this nobody gets another mapping to write through, not even from the second one (memfd_create(2),
/// `F_SEAL_FUTURE_WRITE`); and no descriptor is left. So a process that drops the first one before it forks has children
/// that can only read. Pages that nobody has written to take no memory.
///
/// # Errors
/// When the kernel is older than Linux 5.1, or has no memory or addresses left.
pub fn sealed(len_bytes: usize) -> Result<(WriteMap, ReadMap), ProcessError> {
    let len = len_bytes as u64;
    // Beyond that the kernel would end this process with SIGXFSZ.
    if getrlimit(Resource::Fsize)
        .current
        .is_some_and(|max| max < len)
    {
        return Err(ProcessError::host(ACTION)(io::Error::from_raw_os_error(
            libc::EFBIG,
        )));
    }
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = memfd_create(c"lazystore-plans", flags).map_err(ProcessError::host(ACTION))?;
    ftruncate(&file, len).map_err(ProcessError::host(ACTION))?;
    let write = Map::new(&file, len_bytes, libc::PROT_READ | libc::PROT_WRITE)?;
    let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::FUTURE_WRITE | SealFlags::SEAL;
    fcntl_add_seals(&file, seals).map_err(ProcessError::host(ACTION))?;
    let read = Map::new(&file, len_bytes, libc::PROT_READ)?;
    Ok((WriteMap(write), ReadMap(read)))
}

/// A mapping to read through. What lies there may change at any time.
#[derive(Debug)]
pub struct ReadMap(Map);

/// The mapping to write through.
#[derive(Debug)]
pub struct WriteMap(Map);

#[derive(Debug)]
struct Map {
    start: NonNull<u8>,
    len_bytes: usize,
}

#[allow(unsafe_code)]
// SAFETY: it gives out copies, and atomics; the mapping belongs to no thread.
unsafe impl Send for Map {}
#[allow(unsafe_code)]
// SAFETY: as above.
unsafe impl Sync for Map {}

impl Map {
    #[allow(unsafe_code)]
    fn new(file: &impl AsRawFd, len_bytes: usize, access: i32) -> Result<Self, ProcessError> {
        let fault = ProcessError::host(ACTION);
        let (flags, fd) = (libc::MAP_SHARED | libc::MAP_NORESERVE, file.as_raw_fd());
        // SAFETY: the kernel chooses fresh addresses; no memory that is in use changes.
        let start = unsafe { libc::mmap(ptr::null_mut(), len_bytes, access, flags, fd, 0) };
        match NonNull::new(start.cast::<u8>()) {
            Some(start) if start.as_ptr() != libc::MAP_FAILED.cast() => {
                Ok(Self { start, len_bytes })
            }
            _ => Err(fault(io::Error::last_os_error())),
        }
    }

    /// Where `len` bytes from `at` on begin, if there are so many.
    #[allow(unsafe_code)]
    fn at(&self, at: usize, len: usize) -> Option<*mut u8> {
        at.checked_add(len).filter(|end| *end <= self.len_bytes)?;
        // SAFETY: it is inside the mapping.
        Some(unsafe { self.start.as_ptr().add(at) })
    }

    #[allow(unsafe_code)]
    fn word(&self, at: usize) -> Option<&AtomicU64> {
        let word = self.at(at, size_of::<AtomicU64>())?.cast::<AtomicU64>();
        // SAFETY: it is inside the mapping, which lives as long as `self`, and aligned. Such words are used as atomics only.
        word.is_aligned().then(|| unsafe { &*word })
    }
}

impl Drop for Map {
    #[allow(unsafe_code)]
    fn drop(&mut self) {
        // SAFETY: nobody has a reference to it any more. Other processes have mappings of their own.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len_bytes) };
    }
}

impl ReadMap {
    /// Length of the mapping.
    pub fn len_bytes(&self) -> usize {
        self.0.len_bytes
    }

    /// Copies what lies at `at`; none if that is outside.
    #[allow(unsafe_code)]
    pub fn read(&self, at: usize, to: &mut [u8]) -> Option<()> {
        let from = self.0.at(at, to.len())?;
        // SAFETY: both are so long, and `to` is memory of this process alone. Another process may write there meanwhile: any
        // bytes are bytes, and who reads what is still being written does not use it.
        unsafe { ptr::copy_nonoverlapping(from.cast_const(), to.as_mut_ptr(), to.len()) };
        Some(())
    }

    /// A word, and with it all that was written before [`WriteMap::store`] wrote it; none if it is outside or not aligned.
    pub fn load(&self, at: usize) -> Option<u64> {
        // Of memory that cannot be written to, only relaxed loads are known not to write.
        let value = self.0.word(at)?.load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        Some(value)
    }
}

impl WriteMap {
    /// Writes `bytes` at `at`; none if that is outside.
    #[allow(unsafe_code)]
    pub fn write(&self, at: usize, bytes: &[u8]) -> Option<()> {
        let to = self.0.at(at, bytes.len())?;
        // SAFETY: both are so long, and `bytes` is no part of the mapping, of which no references are given out. Those who read
        // meanwhile copy.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
        Some(())
    }

    /// Writes a word, after all that was written before.
    pub fn store(&self, at: usize, value: u64) -> Option<()> {
        self.0.word(at)?.store(value, Ordering::Release);
        Some(())
    }

    /// Length of the mapping.
    pub fn len_bytes(&self) -> usize {
        self.0.len_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_can_be_read_inside_the_mapping_only() {
        let (write, read) = sealed(8192).unwrap();
        write.write(4096, b"plan").unwrap();
        write.store(8, 7).unwrap();
        let mut bytes = [0; 4];
        read.read(4096, &mut bytes).unwrap();
        assert_eq!(
            (&bytes, read.load(8), read.load(0)),
            (b"plan", Some(7), Some(0))
        );
        for at in [8189, 8192, usize::MAX] {
            assert_eq!(read.read(at, &mut bytes), None);
            assert_eq!(write.write(at, &bytes), None);
            assert_eq!((read.load(at), write.store(at, 1)), (None, None));
        }
        assert_eq!(read.load(4), None, "not aligned");
    }

    /// What an intruder in a process with the second mapping may try.
    #[test]
    #[allow(unsafe_code)]
    fn the_mapping_to_read_through_can_never_be_written_through() {
        let (write, read) = sealed(4096).unwrap();
        drop(write);
        let start = read.0.start.as_ptr().cast();
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: it is refused, or changes what this test alone has mapped.
        let allowed = unsafe { libc::mprotect(start, 4096, access) };
        let errno = io::Error::last_os_error().raw_os_error();
        assert_eq!((allowed, errno), (-1, Some(libc::EACCES)));
    }
}
