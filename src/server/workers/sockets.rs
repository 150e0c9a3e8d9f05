//! All the sockets of a server.

use std::os::fd::AsFd;
use std::path::PathBuf;

use nix::poll::{PollFd, PollFlags};

use super::super::activation::InheritedSocket;
use super::super::socket::{ServedSocket, SocketAccess};
use crate::device::TransportError;

/// Listening sockets that take turns.
pub(super) struct Sockets {
    all: Vec<ServedSocket>,
    /// The one that is first asked whether somebody waits.
    next: usize,
}

impl Sockets {
    /// Makes those that are paths, and adds those that are there already.
    pub(super) fn bind(
        paths: &[PathBuf],
        access: SocketAccess,
        inherited: Vec<InheritedSocket>,
    ) -> Result<Self, TransportError> {
        let mut all: Vec<ServedSocket> = inherited.into_iter().map(Into::into).collect();
        for (index, path) in paths.iter().enumerate() {
            if paths[..index].contains(path) {
                return Err(TransportError::GivenTwice { path: path.clone() });
            }
            all.push(ServedSocket::bind(path, access)?);
        }
        Ok(Self { all, next: 0 })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// What to wait for, in the order of the sockets.
    pub(super) fn poll_fds(&self) -> impl Iterator<Item = PollFd<'_>> {
        self.all
            .iter()
            .map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN))
    }

    /// Which of the sockets that are `ready` comes next: a busy one must not keep the others waiting.
    pub(super) fn choose(&mut self, ready: &[bool]) -> Option<usize> {
        let count = ready.len();
        let chosen = (self.next..self.next + count)
            .map(|index| index % count)
            .find(|index| ready[*index])?;
        self.next = chosen + 1;
        Some(chosen)
    }

    /// Closes all but one.
    pub(super) fn into_one(mut self, index: usize) -> Option<ServedSocket> {
        (index < self.all.len()).then(|| self.all.swap_remove(index))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_take_turns() {
        let mut sockets = Sockets {
            all: Vec::new(),
            next: 0,
        };
        let busy = [true, false, true];
        let turns: Vec<_> = (0..4).map(|_| sockets.choose(&busy)).collect();
        assert_eq!(turns, [Some(0), Some(2), Some(0), Some(2)]);
        assert_eq!(sockets.choose(&[false; 3]), None);
        assert_eq!(sockets.choose(&[]), None);
    }
}
