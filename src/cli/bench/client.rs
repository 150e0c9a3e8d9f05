//! The measured reads: through a vhost-user-blk socket, or with `pread` in a loop.

use std::fs::File;
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use blkio::{Blkio, BlkioStartOutcome, Blkioq, Completion, MemoryRegion, ReqFlags};
use hdrhistogram::{CreationError, Histogram};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::ranges::Offsets;
use crate::cli::errors::BenchError;

/// Upper bound of the histogram, in nanoseconds: a minute.
const LONGEST_NS: u64 = 60_000_000_000;

/// Latencies in nanoseconds.
pub(super) type Latencies = Histogram<u64>;

/// A disk to read from.
pub(super) trait Target {
    /// Returns the length of the disk.
    fn len_bytes(&self) -> Result<u64, BenchError>;

    /// Reads for `time` and returns the latencies.
    fn run(&mut self, offsets: &mut Offsets, time: Duration) -> Result<Latencies, BenchError>;

    /// Reads each block once.
    fn touch(&mut self, offsets: &Offsets) -> Result<(), BenchError>;
}

fn latencies() -> Result<Latencies, CreationError> {
    Histogram::new_with_bounds(1, LONGEST_NS, 3)
}

fn record(latencies: &mut Latencies, begin: Instant, end: Instant) {
    let nanos = (end - begin).as_nanos();
    latencies.saturating_record(u64::try_from(nanos).unwrap_or(u64::MAX));
}

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

/// A vhost-user-blk driver with one queue.
pub(super) struct Client {
    // Field order matters: the queue must be dropped before its device.
    queue: Blkioq,
    device: Blkio,
    region: MemoryRegion,
    path: String,
    block_bytes: usize,
    wake_delay: Duration,
    /// Pause before each measured read.
    pub(super) pause: Duration,
    slots: Vec<Slot>,
    completions: Vec<MaybeUninit<Completion>>,
}

/// A read in flight. Slot i uses part i of the memory region.
#[derive(Debug, Clone, Copy)]
struct Slot {
    offset: u64,
    begin: Instant,
}

impl Client {
    /// Connects to the server.
    pub(super) fn start(
        socket: &Path,
        block_bytes: usize,
        depth: u16,
        waiting: Waiting,
    ) -> Result<Self, BenchError> {
        let busy = waiting == Waiting::Busy;
        let path = socket.display().to_string();
        let start = || -> blkio::Result<_> {
            let mut device = Blkio::new("virtio-blk-vhost-user")?;
            device.set_str("path", &path)?;
            device.set_bool("read-only", true)?;
            device.connect()?;
            device.set_i32("num-queues", i32::from(!busy))?;
            device.set_i32("num-poll-queues", i32::from(busy))?;
            let region = device.alloc_mem_region(usize::from(depth) * block_bytes)?;
            let BlkioStartOutcome {
                queues,
                poll_queues,
            } = device.start()?;
            device.map_mem_region(&region)?;
            Ok((device, region, queues.into_iter().chain(poll_queues).next()))
        };
        let (device, region, queue) = start().map_err(|source| device_error(&path, source))?;
        let slot = Slot {
            offset: 0,
            begin: Instant::now(),
        };
        let mut queue = queue.ok_or_else(|| BenchError::NoQueue { path: path.clone() })?;
        let wake_delay = match waiting {
            Waiting::Busy | Waiting::Asleep => Duration::ZERO,
            Waiting::AsleepAndSlow(delay) => {
                queue.set_completion_fd_enabled(true);
                delay
            }
        };
        Ok(Self {
            queue,
            device,
            region,
            path,
            block_bytes,
            wake_delay,
            pause: Duration::ZERO,
            slots: vec![slot; usize::from(depth)],
            completions: (0..depth).map(|_| MaybeUninit::uninit()).collect(),
        })
    }

    fn submit(&mut self, slot: usize, offset: u64) {
        self.slots[slot] = Slot {
            offset,
            begin: Instant::now(),
        };
        let buffer = (self.region.addr + slot * self.block_bytes) as *mut u8;
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
            .map_err(|source| device_error(&self.path, source))
    }

    /// Behaves like a guest's driver: kicks, sleeps until the interrupt, and only then looks at the ring.
    fn wait_slowly(&mut self) -> Result<usize, BenchError> {
        self.queue
            .do_io(&mut [], 0, None, None)
            .map_err(|source| device_error(&self.path, source))?;
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
            .map_err(|errno| file_error(&self.path, errno.into()))?;
        let woken = Instant::now();
        while woken.elapsed() < self.wake_delay {
            std::hint::spin_loop();
        }
        Ok(())
    }

    /// Keeps all slots busy while `next` returns offsets. Calls `on_done` with the begin and end of each read.
    fn pump(
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

impl Target for Client {
    fn len_bytes(&self) -> Result<u64, BenchError> {
        self.device
            .get_u64("capacity")
            .map_err(|source| device_error(&self.path, source))
    }

    fn run(&mut self, offsets: &mut Offsets, time: Duration) -> Result<Latencies, BenchError> {
        let mut latencies = latencies()?;
        let (begin, pause) = (Instant::now(), self.pause);
        let next = || {
            std::thread::sleep(pause);
            (begin.elapsed() < time).then(|| offsets.draw())
        };
        self.pump(next, |begin, end| record(&mut latencies, begin, end))?;
        Ok(latencies)
    }

    fn touch(&mut self, offsets: &Offsets) -> Result<(), BenchError> {
        let mut each = offsets.each();
        self.pump(|| each.next(), |_, _| {})
    }
}

fn device_error(path: &str, source: blkio::Error) -> BenchError {
    BenchError::Device {
        path: path.to_owned(),
        source,
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

/// Reads a file with `pread`: the limit set by the host's page cache.
pub(super) struct PreadLoop {
    file: File,
    path: String,
    /// Used in turn, like the buffers of the same number of reads in flight.
    buffers: Vec<Vec<u8>>,
    next: usize,
}

impl PreadLoop {
    pub(super) fn open(
        path: &Path,
        block_bytes: usize,
        buffers: usize,
    ) -> Result<Self, BenchError> {
        let name = path.display().to_string();
        let file = File::open(path).map_err(|source| file_error(&name, source))?;
        Ok(Self {
            file,
            path: name,
            buffers: vec![vec![0; block_bytes]; buffers],
            next: 0,
        })
    }

    fn read(&mut self, offset: u64) -> Result<(), BenchError> {
        self.next = (self.next + 1) % self.buffers.len();
        let read = self
            .file
            .read_exact_at(&mut self.buffers[self.next], offset);
        read.map_err(|source| file_error(&self.path, source))
    }
}

impl Target for PreadLoop {
    fn len_bytes(&self) -> Result<u64, BenchError> {
        let meta = self.file.metadata();
        Ok(meta.map_err(|source| file_error(&self.path, source))?.len())
    }

    fn run(&mut self, offsets: &mut Offsets, time: Duration) -> Result<Latencies, BenchError> {
        let mut latencies = latencies()?;
        let start = Instant::now();
        let mut begin = start;
        while begin - start < time {
            self.read(offsets.draw())?;
            let end = Instant::now();
            record(&mut latencies, begin, end);
            begin = end;
        }
        Ok(latencies)
    }

    fn touch(&mut self, offsets: &Offsets) -> Result<(), BenchError> {
        offsets.each().try_for_each(|offset| self.read(offset))
    }
}

fn file_error(path: &str, source: std::io::Error) -> BenchError {
    BenchError::File {
        path: path.to_owned(),
        source,
    }
}
