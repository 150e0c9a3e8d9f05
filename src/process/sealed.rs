//! Memory that one process writes and that other processes cannot make writable.

use std::io;
use std::os::fd::AsRawFd;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU64, Ordering, fence};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::process::{Resource, getrlimit};

use super::ProcessError;

const ACTION: &str = "share memory that others can only read";

/// Creates zeroed shared memory of `len_bytes`: a writable and a read-only mapping.
///
/// Afterwards nobody can create another writable mapping, not even from the read-only one (memfd_create(2),
/// `F_SEAL_FUTURE_WRITE`), and no descriptor is left. So if a process drops the writable mapping before it forks, its children
/// can only read. Untouched pages take no memory.
///
/// # Errors
/// The kernel is older than Linux 5.1, or has no memory or address space left.
pub fn sealed(len_bytes: usize) -> Result<(WriteMap, ReadMap), ProcessError> {
    let len = len_bytes as u64;
    // Exceeding this limit would kill the process with SIGXFSZ.
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

/// The read-only mapping. The contents may change at any time.
#[derive(Debug)]
pub struct ReadMap(Map);

/// The writable mapping.
#[derive(Debug)]
pub struct WriteMap(Map);

#[derive(Debug)]
struct Map {
    start: NonNull<u8>,
    len_bytes: usize,
}

#[allow(unsafe_code)]
// SAFETY: only copies and atomics are handed out, and a mapping is not tied to a thread.
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

    /// Returns a pointer to `len` bytes at offset `at`, or `None` if they are not inside the mapping.
    #[allow(unsafe_code)]
    #[inline]
    fn at(&self, at: usize, len: usize) -> Option<*mut u8> {
        at.checked_add(len).filter(|end| *end <= self.len_bytes)?;
        // SAFETY: the offset is inside the mapping.
        Some(unsafe { self.start.as_ptr().add(at) })
    }

    #[allow(unsafe_code)]
    fn word(&self, at: usize) -> Option<&AtomicU64> {
        let word = self.at(at, size_of::<AtomicU64>())?.cast::<AtomicU64>();
        // SAFETY: the word is inside the mapping, which lives as long as `self`, and aligned. Such words are only accessed as
        // atomics.
        word.is_aligned().then(|| unsafe { &*word })
    }
}

impl Drop for Map {
    #[allow(unsafe_code)]
    fn drop(&mut self) {
        // SAFETY: all references borrow from `self`, so none is left. Other processes have their own mappings.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len_bytes) };
    }
}

impl ReadMap {
    /// Returns the length of the mapping.
    pub fn len_bytes(&self) -> usize {
        self.0.len_bytes
    }

    /// Copies the bytes at offset `at`. Returns `None` if they are not inside the mapping.
    #[allow(unsafe_code)]
    #[inline]
    pub fn read(&self, at: usize, to: &mut [u8]) -> Option<()> {
        let from = self.0.at(at, to.len())?;
        // SAFETY: both have this length, and `to` is private memory. Another process may write to the source meanwhile; any
        // bytes are valid, and readers discard bytes that are still being written.
        unsafe { ptr::copy_nonoverlapping(from.cast_const(), to.as_mut_ptr(), to.len()) };
        Some(())
    }

    /// Loads a word with acquire ordering, paired with [`WriteMap::store`]. Returns `None` if it is outside or not aligned.
    pub fn load(&self, at: usize) -> Option<u64> {
        // For read-only memory, only relaxed loads are guaranteed not to write.
        let value = self.0.word(at)?.load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        Some(value)
    }
}

impl WriteMap {
    /// Writes `bytes` at offset `at`. Returns `None` if they do not fit there.
    #[allow(unsafe_code)]
    pub fn write(&self, at: usize, bytes: &[u8]) -> Option<()> {
        let to = self.0.at(at, bytes.len())?;
        // SAFETY: both have this length, and `bytes` is not part of the mapping, to which no references are handed out.
        // Concurrent readers only copy.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
        Some(())
    }

    /// Stores a word with release ordering, after all earlier writes.
    pub fn store(&self, at: usize, value: u64) -> Option<()> {
        self.0.word(at)?.store(value, Ordering::Release);
        Some(())
    }

    /// Returns the length of the mapping.
    pub fn len_bytes(&self) -> usize {
        self.0.len_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_writes_stay_inside_the_mapping() {
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

    /// Tries what an attacker could try in a process with the read-only mapping.
    #[test]
    #[allow(unsafe_code)]
    fn the_read_only_mapping_can_never_be_made_writable() {
        let (write, read) = sealed(4096).unwrap();
        drop(write);
        let start = read.0.start.as_ptr().cast();
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: the call fails, or changes only what this test has mapped.
        let allowed = unsafe { libc::mprotect(start, 4096, access) };
        let errno = io::Error::last_os_error().raw_os_error();
        assert_eq!((allowed, errno), (-1, Some(libc::EACCES)));
    }
}
