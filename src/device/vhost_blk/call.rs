//! Interrupts the guest through the call descriptor of a ring.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::fs::{FileType, fstat};

use super::sync::{Arc, Mutex, lock};

/// The frontend's call descriptor. The mutex is held only to copy or to replace it.
#[derive(Default)]
pub(super) struct Call(Mutex<Descriptor>);

#[derive(Default, Clone)]
enum Descriptor {
    /// The frontend wants no interrupts, or has not sent a descriptor yet.
    #[default]
    None,
    Eventfd(Arc<File>),
    /// Not an eventfd. For a pipe, a socket or a file, poll(2) does not guarantee that a write does not block, and a
    /// thread could block for ever.
    Refused,
}

impl Call {
    /// Replaces the descriptor.
    pub(super) fn set(&self, file: Option<File>) {
        *lock(&self.0) = match file {
            None => Descriptor::None,
            Some(file) if may_be_eventfd(&file) => Descriptor::Eventfd(Arc::new(file)),
            Some(_) => Descriptor::Refused,
        };
    }

    /// Signals the descriptor. If an eventfd's counter is full, it is already signalled, and a write would block.
    ///
    /// We cannot set O_NONBLOCK, because the frontend shares the file's flags and may rely on blocking reads, and
    /// eventfds do not support `RWF_NOWAIT` for writes. So a frontend that fills the counter between poll(2) and
    /// write(2) blocks this thread until it reads. That harms only its own VM, and a worker ends with its frontend even
    /// if threads are blocked (see [`serve_connection`](super::connection::serve_connection)).
    ///
    /// # Errors
    /// The descriptor is not an eventfd, or writing to it fails.
    pub(super) fn signal(&self) -> io::Result<()> {
        let descriptor = lock(&self.0).clone();
        let call = match descriptor {
            Descriptor::None => return Ok(()),
            Descriptor::Refused => {
                return Err(io::Error::other("its descriptor is not an eventfd"));
            }
            Descriptor::Eventfd(call) => call,
        };
        let mut ready = [PollFd::new(call.as_fd(), PollFlags::POLLOUT)];
        match poll(&mut ready, PollTimeout::ZERO) {
            Ok(0) => Ok(()),
            _ => (&*call).write_all(&1u64.to_ne_bytes()),
        }
    }
}

/// Whether the file may be an eventfd: an anonymous inode without file type. Writes to other anonymous inodes fail at
/// once.
fn may_be_eventfd(file: &File) -> bool {
    fstat(file).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Unknown)
}
