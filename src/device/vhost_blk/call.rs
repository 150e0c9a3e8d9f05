//! How the guest is interrupted: the call descriptor of a ring.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::fs::{FileType, fstat};

use super::sync::{Arc, Mutex, lock};

/// The descriptor that the frontend gave. Held for a look or an exchange only.
#[derive(Default)]
pub(super) struct Call(Mutex<Descriptor>);

#[derive(Default, Clone)]
enum Descriptor {
    /// The frontend wants no interrupts, or has not said so yet.
    #[default]
    None,
    Eventfd(Arc<File>),
    /// `poll` promises nothing about a write to a pipe, a socket or a file of some file system: a thread could wait there
    /// for good.
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

    /// Signals the descriptor. An eventfd whose counter is full has been signalled already, and a write would wait.
    ///
    /// O_NONBLOCK is not set: the frontend shares the file's flags and may rely on reads that wait. `RWF_NOWAIT` is refused
    /// for writes to an eventfd. So a frontend that fills the counter between the look and the write makes this thread wait
    /// until it reads. That harms its own VM only, and a worker does not outlive its frontend, whatever its threads wait
    /// for (see [`serve_connection`](super::connection::serve_connection)).
    ///
    /// # Errors
    /// When the descriptor is no eventfd, or cannot be written to.
    pub(super) fn signal(&self) -> io::Result<()> {
        let descriptor = lock(&self.0).clone();
        let call = match descriptor {
            Descriptor::None => return Ok(()),
            Descriptor::Refused => return Err(io::Error::other("its descriptor is no eventfd")),
            Descriptor::Eventfd(call) => call,
        };
        let mut ready = [PollFd::new(call.as_fd(), PollFlags::POLLOUT)];
        match poll(&mut ready, PollTimeout::ZERO) {
            Ok(0) => Ok(()),
            _ => (&*call).write_all(&1u64.to_ne_bytes()),
        }
    }
}

/// An eventfd has no file type: it is an anonymous inode. Writes to the other kinds of those fail at once.
fn may_be_eventfd(file: &File) -> bool {
    fstat(file).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Unknown)
}
