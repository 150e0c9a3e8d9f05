//! Fits the number of queues and threads to the limit of file descriptors.
//!
//! This must be done before a frontend connects. A frontend that wants more queues than there are gets an error. But if
//! one of its descriptors could not be received, `vhost` 0.18 would drop the message, and the frontend would wait for
//! the reply.

use std::fs;
use std::io;
use std::num::NonZeroUsize;

use rustix::process::{Resource, getrlimit};

use super::error::ServeError;
use crate::device::vhost_blk::DeviceOptions;
use crate::image::LISTERS_MAX;

/// Descriptors of a queue: kick and call.
const PER_QUEUE: usize = 2;

/// Descriptors of a thread: its epoll instance, two ends of its exit event, and the directory and the file that it opens.
const PER_THREAD: usize = 5;

/// Other descriptors of a worker: the connection, the pipe to the parent, the recording, the memory regions of a message
/// while the previous ones are still mapped (above eight, regions are added one at a time), and the directories that are
/// listed concurrently.
const PER_VM: usize = 4 + 8 + 8 + LISTERS_MAX;

/// Returns `device` with at most as many queues and threads as this process has descriptors for, given that its store
/// files take `files` of them.
///
/// # Errors
/// [`ServeError::TooFewDescriptors`], or the open files cannot be counted.
pub(super) fn fit_to_limit(
    device: &DeviceOptions,
    files: usize,
) -> Result<DeviceOptions, ServeError> {
    let free = free_descriptors().map_err(ServeError::host("count open files"))?;
    let threads = (1..=device.threads.get())
        .rev()
        .filter_map(NonZeroUsize::new);
    // A thread without a queue is useless.
    let enough = threads
        .map(|threads| (threads, queues(free, threads, files)))
        .find(|(threads, queues)| *queues >= threads.get().min(device.queues.into()));
    let (threads, queues) = enough.ok_or(ServeError::TooFewDescriptors {
        free,
        needed: besides_queues(NonZeroUsize::MIN, files) + PER_QUEUE,
    })?;
    Ok(DeviceOptions {
        queues: u16::try_from(queues).unwrap_or(u16::MAX).min(device.queues),
        threads,
        ..device.clone()
    })
}

fn free_descriptors() -> io::Result<usize> {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    // Since Linux 6.2 the directory's size is the count (proc_pid_fd(5)); listing hundreds of descriptors takes 0.5 ms.
    let open = match usize::try_from(fs::metadata("/proc/self/fd")?.len()) {
        Ok(0) | Err(_) => fs::read_dir("/proc/self/fd")?.count().saturating_sub(1),
        Ok(count) => count,
    };
    Ok(usize::try_from(limit)
        .unwrap_or(usize::MAX)
        .saturating_sub(open))
}

fn queues(free: usize, threads: NonZeroUsize, files: usize) -> usize {
    free.saturating_sub(besides_queues(threads, files)) / PER_QUEUE
}

fn besides_queues(threads: NonZeroUsize, files: usize) -> usize {
    PER_VM + PER_THREAD * threads.get() + files
}
