//! Descriptors and threads of this process, before and after. Nothing else may run in it meanwhile.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

/// `vhost-user-backend` 0.24 forgets one eventfd for each queue thread; a worker process ends with its connection.
const KNOWN: usize = 1;

/// More than one connection opens.
const WINDOW: RawFd = 64;

pub struct Leaks;

/// The state before a connection.
#[derive(Clone, Copy)]
pub struct Before {
    /// Lowest free descriptor.
    free: RawFd,
    threads: u64,
}

impl Leaks {
    pub fn new() -> Self {
        Self
    }

    pub fn before(&self) -> Before {
        Before {
            free: lowest_free(),
            threads: threads(),
        }
    }

    pub fn check(&self, before: Before) {
        let open: Vec<RawFd> = (before.free..before.free + WINDOW)
            .filter(|fd| is_open(*fd))
            .collect();
        assert!(open.len() <= KNOWN, "descriptors {open:?} were left open");
        open.into_iter().for_each(close);
        let deadline = Instant::now() + Duration::from_secs(5);
        // A thread that was joined can be seen for a moment longer.
        while threads() > before.threads {
            assert!(Instant::now() < deadline, "threads were left running");
            std::thread::yield_now();
        }
    }
}

fn lowest_free() -> RawFd {
    let copy = std::io::stderr().as_fd().try_clone_to_owned();
    copy.unwrap().as_raw_fd()
}

fn threads() -> u64 {
    fs::metadata("/proc/self/task").unwrap().nlink()
}

/// Not nix: it asks for a descriptor that is known to be open.
#[allow(unsafe_code)]
fn is_open(fd: RawFd) -> bool {
    // SAFETY: the call touches no memory, and a number that is no descriptor is an error.
    unsafe { libc::fcntl(fd, libc::F_GETFD) >= 0 }
}

fn close(fd: RawFd) {
    nix::unistd::close(fd).unwrap();
}
