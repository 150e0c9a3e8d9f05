//! The measured reads: through a vhost-user-blk socket, or with `pread` in a loop.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use blkio::{Blkio, BlkioStartOutcome, MemoryRegion};
use hdrhistogram::{CreationError, Histogram};

use super::queue::{Queue, Waiting};
use super::ranges::Offsets;
use crate::cli::errors::BenchError;

/// Upper bound of the histogram, in nanoseconds: a minute.
const LONGEST_NS: u64 = 60_000_000_000;

/// Latencies in nanoseconds.
pub(super) type Latencies = Histogram<u64>;

/// A disk to read from.
pub(super) trait BenchTarget {
    /// Returns the length of the disk.
    fn len_bytes(&self) -> Result<u64, BenchError>;

    /// Reads for `time` and returns the latencies. `offsets` has an element for each queue.
    fn run(&mut self, offsets: &mut [Offsets], time: Duration) -> Result<Latencies, BenchError>;

    /// Reads the blocks at `offsets`, through one queue.
    fn read_all(&mut self, offsets: &mut dyn Iterator<Item = u64>) -> Result<(), BenchError>;
}

fn latencies() -> Result<Latencies, CreationError> {
    Histogram::new_with_bounds(1, LONGEST_NS, 3)
}

fn record(latencies: &mut Latencies, begin: Instant, end: Instant) {
    let nanos = (end - begin).as_nanos();
    latencies.saturating_record(u64::try_from(nanos).unwrap_or(u64::MAX));
}

/// A vhost-user-blk driver with a thread for each queue.
pub(super) struct Client {
    // Field order matters: the queues must be dropped before their device.
    queues: Vec<Queue>,
    device: Blkio,
    path: String,
    /// Pause before each measured read.
    pub(super) pause: Duration,
}

impl Client {
    /// Connects to the server, with `queues` queues that have `depth` reads in flight each.
    pub(super) fn start(
        socket: &Path,
        block_bytes: usize,
        queues: u16,
        depth: u16,
        waiting: Waiting,
    ) -> Result<Self, BenchError> {
        let path = socket.display().to_string();
        let part_bytes = usize::from(depth) * block_bytes;
        let region_bytes = usize::from(queues) * part_bytes;
        let busy = waiting == Waiting::Busy;
        let started = start_device(&path, region_bytes, queues, busy);
        let (device, region, outcome) =
            started.map_err(|source| BenchError::device(&path, source))?;
        let BlkioStartOutcome {
            queues,
            poll_queues,
        } = outcome;
        let with_buffers = |(index, queue)| {
            let buffers = region.addr + index * part_bytes;
            Queue::new(queue, &path, buffers, block_bytes, depth, waiting)
        };
        let all = queues.into_iter().chain(poll_queues);
        Ok(Self {
            queues: all.enumerate().map(with_buffers).collect(),
            device,
            path,
            pause: Duration::ZERO,
        })
    }
}

/// Starts a device whose memory region stays mapped until the device is dropped.
fn start_device(
    path: &str,
    region_bytes: usize,
    queues: u16,
    busy: bool,
) -> blkio::Result<(Blkio, MemoryRegion, BlkioStartOutcome)> {
    let mut device = Blkio::new("virtio-blk-vhost-user")?;
    device.set_str("path", path)?;
    device.set_bool("read-only", true)?;
    device.connect()?;
    let queues = i32::from(queues);
    device.set_i32("num-queues", if busy { 0 } else { queues })?;
    device.set_i32("num-poll-queues", if busy { queues } else { 0 })?;
    let region = device.alloc_mem_region(region_bytes)?;
    let outcome = device.start()?;
    device.map_mem_region(&region)?;
    Ok((device, region, outcome))
}

/// Reads through one queue for `time`.
fn run_queue(
    queue: &mut Queue,
    offsets: &mut Offsets,
    time: Duration,
    pause: Duration,
) -> Result<Latencies, BenchError> {
    let mut latencies = latencies()?;
    let begin = Instant::now();
    let next = || {
        thread::sleep(pause);
        (begin.elapsed() < time).then(|| offsets.draw())
    };
    queue.pump(next, |begin, end| record(&mut latencies, begin, end))?;
    Ok(latencies)
}

impl BenchTarget for Client {
    fn len_bytes(&self) -> Result<u64, BenchError> {
        self.device
            .get_u64("capacity")
            .map_err(|source| BenchError::device(&self.path, source))
    }

    fn run(&mut self, offsets: &mut [Offsets], time: Duration) -> Result<Latencies, BenchError> {
        let pause = self.pause;
        let mut merged = latencies()?;
        thread::scope(|scope| {
            let pairs = self.queues.iter_mut().zip(offsets);
            let threads: Vec<_> = pairs
                .map(|(queue, offsets)| scope.spawn(move || run_queue(queue, offsets, time, pause)))
                .collect();
            for thread in threads {
                // A panic of a thread is passed on. All histograms have the same bounds, so adding one cannot fail.
                merged += thread
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            }
            Ok(merged)
        })
    }

    fn read_all(&mut self, offsets: &mut dyn Iterator<Item = u64>) -> Result<(), BenchError> {
        let path = &self.path;
        let queue = self.queues.first_mut();
        let queue = queue.ok_or_else(|| BenchError::NoQueue { path: path.clone() })?;
        queue.pump(|| offsets.next(), |_, _| {})
    }
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
        let file = File::open(path).map_err(|source| BenchError::file(&name, source))?;
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
        read.map_err(|source| BenchError::file(&self.path, source))
    }
}

impl BenchTarget for PreadLoop {
    fn len_bytes(&self) -> Result<u64, BenchError> {
        let meta = self.file.metadata();
        Ok(meta
            .map_err(|source| BenchError::file(&self.path, source))?
            .len())
    }

    fn run(&mut self, offsets: &mut [Offsets], time: Duration) -> Result<Latencies, BenchError> {
        let mut latencies = latencies()?;
        let start = Instant::now();
        if let Some(offsets) = offsets.first_mut() {
            let mut begin = start;
            while begin - start < time {
                self.read(offsets.draw())?;
                let end = Instant::now();
                record(&mut latencies, begin, end);
                begin = end;
            }
        }
        Ok(latencies)
    }

    fn read_all(&mut self, offsets: &mut dyn Iterator<Item = u64>) -> Result<(), BenchError> {
        for offset in offsets {
            self.read(offset)?;
        }
        Ok(())
    }
}
