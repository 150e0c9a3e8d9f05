//! A client based on blkio, an independent implementation.

use std::fs::File;
use std::mem::MaybeUninit;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use blkio::{Blkio, Blkioq, Completion, MemoryRegion, ReqFlags};

use super::process::Deadline;

/// Maximum length of a read.
pub const READ_MAX: usize = 128 * 1024;

/// Reads in flight in each queue.
pub const DEPTH: usize = 8;

/// Timeout of each operation, long enough for a busy machine.
const ANSWER: Duration = Duration::from_secs(60);

/// A connected client with `queues` queues and a buffer for each read.
pub struct Client {
    // Must be dropped before their device.
    pub queues: Vec<Blkioq>,
    pub device: Blkio,
    region: MemoryRegion,
    /// The region's memory as a file, to read it without pointers.
    memory: File,
}

/// Connects without starting the device.
pub fn connect(socket: &Path, read_only: bool) -> Blkio {
    let mut device = Blkio::new("virtio-blk-vhost-user").unwrap();
    device.set_str("path", socket.to_str().unwrap()).unwrap();
    device.set_bool("read-only", read_only).unwrap();
    device.connect().unwrap();
    device
}

impl Client {
    pub fn start(socket: &Path, queues: usize) -> Self {
        Self::try_start(socket, queues).unwrap()
    }

    /// Like `start`, but fails if the server lacks resources for that many queues.
    pub fn try_start(socket: &Path, queues: usize) -> Option<Self> {
        let _deadline = Deadline::new("the server to answer a new frontend", ANSWER);
        let mut device = Blkio::new("virtio-blk-vhost-user").unwrap();
        device.set_str("path", socket.to_str().unwrap()).unwrap();
        device.set_bool("read-only", true).unwrap();
        device.connect().ok()?;
        let queues_wanted = i32::try_from(queues).unwrap();
        device.set_i32("num-queues", queues_wanted).unwrap();
        let region = device.alloc_mem_region(queues * DEPTH * READ_MAX).unwrap();
        let started = device.start().ok()?;
        device.map_mem_region(&region).ok()?;
        let memory = File::open(format!("/proc/self/fd/{}", region.fd)).unwrap();
        Some(Self {
            queues: started.queues,
            device,
            region,
            memory,
        })
    }

    /// Executes up to [`DEPTH`] concurrent reads of up to [`READ_MAX`] bytes in one queue, or a single read of up to `DEPTH`
    /// times that length. Returns the data or the errno of each read.
    pub fn read(&mut self, queue: usize, reads: &[(u64, usize)]) -> Vec<Result<Vec<u8>, i32>> {
        let place = |index: usize| (queue * DEPTH + index) * READ_MAX;
        let room_bytes = match reads.len() {
            1 => DEPTH * READ_MAX,
            _ => READ_MAX,
        };
        for (index, (start, len)) in reads.iter().enumerate() {
            assert!(
                *len <= room_bytes,
                "a read of {len} bytes would reach into the next buffer"
            );
            let buffer = (self.region.addr + place(index)) as *mut u8;
            self.queues[queue].read(*start, buffer, *len, index, ReqFlags::empty());
        }
        let mut results = vec![i32::MIN; reads.len()];
        let mut completions = [const { MaybeUninit::<Completion>::uninit() }; DEPTH];
        let count = self.queues[queue]
            .do_io(
                &mut completions[..reads.len()],
                reads.len(),
                Some(&mut ANSWER.clone()),
                None,
            )
            .unwrap();
        for completion in &completions[..count] {
            let (index, result) = outcome(completion);
            results[index] = result;
        }
        let data = |(index, (_, len)): (usize, &(u64, usize))| {
            let mut data = vec![0; *len];
            let at = self.region.fd_offset.cast_unsigned() + place(index) as u64;
            self.memory.read_exact_at(&mut data, at).unwrap();
            match results[index] {
                0 => Ok(data),
                error => Err(error),
            }
        };
        reads.iter().enumerate().map(data).collect()
    }

    /// Tries to write, and returns the client's error.
    pub fn write(&mut self, start: u64, len: usize) -> i32 {
        let queue = &mut self.queues[0];
        queue.write(
            start,
            self.region.addr as *const u8,
            len,
            0,
            ReqFlags::empty(),
        );
        let mut completions = [const { MaybeUninit::<Completion>::uninit() }; 1];
        let done = queue.do_io(&mut completions, 1, Some(&mut ANSWER.clone()), None);
        assert_eq!(done.unwrap(), 1);
        outcome(&completions[0]).1
    }
}

/// The index of a request, and its result: 0 or a negative errno.
#[allow(unsafe_code)]
fn outcome(completion: &MaybeUninit<Completion>) -> (usize, i32) {
    // SAFETY: `do_io` has filled as many entries as it returned, and callers read no others.
    let completion = unsafe { completion.assume_init_ref() };
    (completion.user_data, completion.ret)
}
