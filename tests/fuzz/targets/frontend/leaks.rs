//! Compares descriptors and threads of this process before and after. No other thread may run meanwhile.

use std::fs;
use std::os::fd::RawFd;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

/// `vhost-user-backend` 0.24 leaks one eventfd per queue thread. A worker process ends with its connection anyway.
const KNOWN: usize = 1;

/// Number of descriptors to check: more than the process and one connection have open.
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
        // A joined thread may remain visible for a moment.
        while threads() > before.threads {
            assert!(Instant::now() < deadline, "threads were left running");
            std::thread::yield_now();
        }
    }
}

/// Uses one system call for all descriptors. One call for each took a quarter of the time of an execution.
#[allow(unsafe_code)]
fn open() -> u128 {
    let mut fds: [libc::pollfd; WINDOW as usize] = std::array::from_fn(|fd| libc::pollfd {
        fd: RawFd::try_from(fd).unwrap(),
        events: 0,
        revents: 0,
    });
    let count = libc::nfds_t::try_from(fds.len()).unwrap();
    // SAFETY: the call writes to `count` elements of the array. It marks numbers that are not open.
    let looked = unsafe { libc::poll(fds.as_mut_ptr(), count, 0) };
    assert!(looked >= 0);
    let is_open = |fd: &libc::pollfd| fd.revents & libc::POLLNVAL == 0;
    let bits = fds.iter().map(|fd| u128::from(is_open(fd)) << fd.fd);
    bits.fold(0, |open, bit| open | bit)
}

fn threads() -> u64 {
    fs::metadata("/proc/self/task").unwrap().nlink()
}

fn close(fd: RawFd) {
    nix::unistd::close(fd).unwrap();
}
