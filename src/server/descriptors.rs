//! How many queues there are file descriptors for.
//!
//! This is settled before anybody connects. A frontend is told when it wants more queues than there are; but if one of
//! its descriptors could not be received, `vhost` 0.18 would forget the message and leave it waiting for the answer.

use std::fs;
use std::io;
use std::num::NonZeroUsize;

use rustix::process::{Resource, getrlimit};

use super::error::ServeError;
use crate::device::vhost_blk::DeviceOptions;
use crate::image::LISTERS_MAX;

/// A queue's: kick and call.
const PER_QUEUE: usize = 2;

/// A thread's: what it waits on, its two ends of the event that ends it, and the directory and the file that it opens.
const PER_THREAD: usize = 5;

/// The connection, the report to the parent, the recording, a message's memory regions while the ones before are still
/// mapped, and directories that are listed at once. More than eight regions come one at a time.
const PER_VM: usize = 4 + 8 + 8 + LISTERS_MAX;

/// `device` with as many of its queues and threads as this process has descriptors for, if its store files take `files`
/// of them.
///
/// # Errors
/// [`ServeError::FewDescriptors`], or the host cannot tell what is open.
pub(super) fn afford(device: &DeviceOptions, files: usize) -> Result<DeviceOptions, ServeError> {
    let free = free_descriptors().map_err(ServeError::host("count open files"))?;
    let threads = (1..=device.threads.get())
        .rev()
        .filter_map(NonZeroUsize::new);
    // A thread without a queue is no use.
    let enough = threads
        .map(|threads| (threads, queues(free, threads, files)))
        .find(|(threads, queues)| *queues >= threads.get().min(device.queues.into()));
    let (threads, queues) = enough.ok_or(ServeError::FewDescriptors {
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
    // The directory itself is among them.
    let open = fs::read_dir("/proc/self/fd")?.count().saturating_sub(1);
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
