//! One queue of a vhost-user-blk driver: keeps a fixed number of reads in flight.

use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, RawFd};
use std::time::{Duration, Instant};

use blkio::{Blkioq, Completion, ReqFlags};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::cli::errors::BenchError;

/// How a client waits for answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Waiting {
    /// In a busy loop.
    Busy,
    /// Sleeps until the server interrupts.
    Asleep,
    /// Sleeps until the server interrupts, then waits this long before it looks at the ring.
    AsleepAndSlow(Duration),
}

/// A queue and its buffers.
pub(super) struct Queue {
    queue: Blkioq,
    path: String,
    /// Address of the buffers, which the caller keeps mapped.
    buffers: usize,
    block_bytes: usize,
    wake_delay: Duration,
    slots: Vec<Slot>,
    completions: Vec<MaybeUninit<Completion>>,
}

/// A read in flight. Slot i uses part i of the buffers.
#[derive(Debug, Clone, Copy)]
struct Slot {
    offset: u64,
    begin: Instant,
}

impl Queue {
    /// Wraps `queue` of the device at `path`. There must be `depth` mapped blocks at the address `buffers`.
    pub(super) fn new(
        mut queue: Blkioq,
        path: &str,
        buffers: usize,
        block_bytes: usize,
        depth: u16,
        waiting: Waiting,
    ) -> Self {
        let slot = Slot {
            offset: 0,
            begin: Instant::now(),
        };
        let wake_delay = match waiting {
            Waiting::Busy | Waiting::Asleep => Duration::ZERO,
            Waiting::AsleepAndSlow(delay) => {
                queue.set_completion_fd_enabled(true);
                delay
            }
        };
        Self {
            queue,
            path: path.to_owned(),
            buffers,
            block_bytes,
            wake_delay,
            slots: vec![slot; usize::from(depth)],
            completions: (0..depth).map(|_| MaybeUninit::uninit()).collect(),
        }
    }

    fn submit(&mut self, slot: usize, offset: u64) {
        self.slots[slot] = Slot {
            offset,
            begin: Instant::now(),
        };
        let buffer = (self.buffers + slot * self.block_bytes) as *mut u8;
        self.queue
            .read(offset, buffer, self.block_bytes, slot, ReqFlags::empty());
    }

    /// Sends submitted reads and waits for at least one completion. `done` returns the slots that are free again.
    fn wait(&mut self, done: &mut Vec<usize>) -> Result<(), BenchError> {
        done.clear();
        let count = if self.wake_delay.is_zero() {
            self.do_io(1)?
        } else {
            self.wait_slowly()?
        };
        for completion in &self.completions[..count] {
            let (slot, result) = outcome(completion);
            if result != 0 {
                return Err(BenchError::Read {
                    offset: self.slots[slot].offset,
                    len_bytes: self.block_bytes,
                    errno: -result,
                });
            }
            done.push(slot);
        }
        Ok(())
    }

    fn do_io(&mut self, least: usize) -> Result<usize, BenchError> {
        self.queue
            .do_io(&mut self.completions, least, None, None)
            .map_err(|source| BenchError::device(&self.path, source))
    }

    /// Behaves like a guest's driver: kicks, sleeps until the interrupt, and only then looks at the ring.
    fn wait_slowly(&mut self) -> Result<usize, BenchError> {
        self.queue
            .do_io(&mut [], 0, None, None)
            .map_err(|source| BenchError::device(&self.path, source))?;
        loop {
            self.sleep()?;
            let count = self.do_io(0)?;
            if count > 0 {
                return Ok(count);
            }
        }
    }

    /// Waits for an interrupt and then for the delay. The delay is a busy loop, because a timer would add its own
    /// latency.
    fn sleep(&self) -> Result<(), BenchError> {
        let Some(interrupt) = self.queue.get_completion_fd() else {
            return Ok(());
        };
        let interrupt = borrow(interrupt);
        let mut ready = [PollFd::new(interrupt, PollFlags::POLLIN)];
        poll(&mut ready, PollTimeout::NONE)
            .and_then(|_| nix::unistd::read(interrupt, &mut [0; 8]))
            .map_err(|errno| BenchError::file(&self.path, errno.into()))?;
        let woken = Instant::now();
        while woken.elapsed() < self.wake_delay {
            std::hint::spin_loop();
        }
        Ok(())
    }

    /// Keeps all slots busy while `next` returns offsets. Calls `on_done` with the begin and end of each read.
    pub(super) fn pump(
        &mut self,
        mut next: impl FnMut() -> Option<u64>,
        mut on_done: impl FnMut(Instant, Instant),
    ) -> Result<(), BenchError> {
        let mut free: Vec<usize> = (0..self.slots.len()).collect();
        let mut in_flight = 0;
        loop {
            for slot in free.drain(..) {
                if let Some(offset) = next() {
                    self.submit(slot, offset);
                    in_flight += 1;
                }
            }
            if in_flight == 0 {
                return Ok(());
            }
            self.wait(&mut free)?;
            in_flight -= free.len();
            let end = Instant::now();
            for slot in &free {
                on_done(self.slots[*slot].begin, end);
            }
        }
    }
}

#[allow(unsafe_code)]
fn borrow<'q>(fd: RawFd) -> BorrowedFd<'q> {
    // SAFETY: the queue owns the descriptor and outlives the calls in `sleep`.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

/// Returns the slot and the result (0 or a negative errno) of a completion.
#[allow(unsafe_code)]
fn outcome(completion: &MaybeUninit<Completion>) -> (usize, i32) {
    // SAFETY: `do_io` has initialised as many entries as it returned, and `wait` accesses only those.
    let completion = unsafe { completion.assume_init_ref() };
    (completion.user_data, completion.ret)
}
