//! A connected socket, with or without a deadline.

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, Shutdown, recv, send, setsockopt, shutdown, sockopt::TcpNoDelay};

/// A connected stream socket, of any family.
#[derive(Debug)]
pub(super) struct Socket(OwnedFd);

impl Socket {
    /// Takes the socket over. Makes it blocking: calls that must not block use `MSG_DONTWAIT`.
    pub(super) fn new(socket: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&socket, false)?;
        match setsockopt(&socket, TcpNoDelay, &true) {
            // A Unix socket has no Nagle algorithm.
            Ok(()) | Err(Errno::EOPNOTSUPP | Errno::ENOPROTOOPT) => Ok(Self(socket)),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Receives without blocking. `None` if there are no bytes yet, `Some(0)` at the end of the stream.
    pub(super) fn receive_now(&self, into: &mut [u8]) -> io::Result<Option<usize>> {
        match self.receive(into, MsgFlags::MSG_DONTWAIT) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
            done => done.map(Some),
        }
    }

    /// Waits for bytes and receives them. 0 is the end of the stream.
    pub(super) fn receive_blocking(&self, into: &mut [u8]) -> io::Result<usize> {
        self.receive(into, MsgFlags::empty())
    }

    fn receive(&self, into: &mut [u8], flags: MsgFlags) -> io::Result<usize> {
        loop {
            match recv(self.0.as_raw_fd(), into, flags) {
                Err(Errno::EINTR) => {}
                done => return Ok(done?),
            }
        }
    }

    /// Sends all of `bytes`. Fails at `deadline`, if there is one.
    pub(super) fn send(&self, bytes: &[u8], deadline: Option<Instant>) -> io::Result<()> {
        let flags = match deadline {
            Some(_) => MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT,
            None => MsgFlags::MSG_NOSIGNAL,
        };
        let mut rest = bytes;
        while !rest.is_empty() {
            match send(self.0.as_raw_fd(), rest, flags) {
                Ok(count) => rest = &rest[count..],
                Err(Errno::EAGAIN) => self.wait(PollFlags::POLLOUT, deadline)?,
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    /// Ends the connection for all threads that use it.
    pub(super) fn shut_down(&self) {
        // The client may have closed it already.
        let _ = shutdown(self.0.as_raw_fd(), Shutdown::Both);
    }

    /// Waits until there is something to receive.
    pub(super) fn wait_for_bytes(&self, deadline: Option<Instant>) -> io::Result<()> {
        self.wait(PollFlags::POLLIN, deadline)
    }

    fn wait(&self, events: PollFlags, deadline: Option<Instant>) -> io::Result<()> {
        let timeout = deadline.map_or(Ok(PollTimeout::NONE), poll_timeout)?;
        match poll(&mut [PollFd::new(self.0.as_fd(), events)], timeout) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

fn poll_timeout(deadline: Instant) -> io::Result<PollTimeout> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(ErrorKind::TimedOut.into());
    }
    // poll(2) counts in milliseconds. Rounded down, it would not sleep in the last one.
    let left = left + Duration::from_millis(1);
    Ok(PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX))
}
