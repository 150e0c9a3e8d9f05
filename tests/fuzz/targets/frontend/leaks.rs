//! Descriptors and threads of this process, before and after. Nothing else may run in it meanwhile.

use std::fs;
use std::os::fd::RawFd;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

/// `vhost-user-backend` 0.24 forgets one eventfd for each queue thread; a worker process ends with its connection.
const KNOWN: usize = 1;

/// Descriptors that are looked at: more than the process and one connection have open.
const WINDOW: RawFd = 128;

pub struct Leaks;

/// The state before a connection.
#[derive(Clone, Copy)]
pub struct Before {
    /// A bit for each descriptor.
    open: u128,
    threads: u64,
}

impl Leaks {
    pub fn new() -> Self {
        Self
    }

    pub fn before(&self) -> Before {
        Before {
            open: open(),
            threads: threads(),
        }
    }

    pub fn check(&self, before: Before) {
        let left = open() & !before.open;
        let left: Vec<RawFd> = (0..WINDOW).filter(|fd| left & 1 << fd != 0).collect();
        assert!(left.len() <= KNOWN, "descriptors {left:?} were left open");
        left.into_iter().for_each(close);
        let deadline = Instant::now() + Duration::from_secs(5);
        // A thread that was joined can be seen for a moment longer.
        while threads() > before.threads {
            assert!(Instant::now() < deadline, "threads were left running");
            std::thread::yield_now();
        }
    }
}

fn open() -> u128 {
    (0..WINDOW).fold(0, |open, fd| open | u128::from(is_open(fd)) << fd)
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
