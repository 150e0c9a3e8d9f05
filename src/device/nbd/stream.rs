//! A connected socket, with or without a deadline, and what was received and not yet looked at.

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, Shutdown, recv, send, setsockopt, shutdown, sockopt::TcpNoDelay};

/// A connected stream socket, of any family.
#[derive(Debug)]
pub(super) struct Stream(OwnedFd);

impl Stream {
    /// Takes the socket over, which may or may not block.
    pub(super) fn new(socket: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&socket, false)?;
        match setsockopt(&socket, TcpNoDelay, &true) {
            // A Unix socket, which does not collect bytes anyway.
            Ok(()) | Err(Errno::EOPNOTSUPP | Errno::ENOPROTOOPT) => Ok(Self(socket)),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Receives what is there, at the end nothing. None if nothing is there yet.
    pub(super) fn receive_now(&self, into: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            match recv(self.0.as_raw_fd(), into, MsgFlags::MSG_DONTWAIT) {
                Ok(count) => return Ok(Some(count)),
                Err(Errno::EAGAIN) => return Ok(None),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Waits for bytes; at the end there are none.
    pub(super) fn receive(&self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            match recv(self.0.as_raw_fd(), into, MsgFlags::empty()) {
                Err(Errno::EINTR) => {}
                done => return Ok(done?),
            }
        }
    }

    /// Waits for bytes until `deadline`.
    pub(super) fn receive_before(&self, into: &mut [u8], deadline: Instant) -> io::Result<usize> {
        loop {
            if let Some(count) = self.receive_now(into)? {
                return Ok(count);
            }
            self.wait(PollFlags::POLLIN, deadline)?;
        }
    }

    /// Sends all of `bytes`, however long the other side takes to read them.
    pub(super) fn send(&self, bytes: &[u8]) -> io::Result<()> {
        let mut rest = bytes;
        while !rest.is_empty() {
            match send(self.0.as_raw_fd(), rest, MsgFlags::MSG_NOSIGNAL) {
                Ok(count) => rest = &rest[count..],
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    /// Sends all of `bytes` until `deadline`.
    pub(super) fn send_before(&self, bytes: &[u8], deadline: Instant) -> io::Result<()> {
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
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
        // It may be at its end already.
        let _ = shutdown(self.0.as_raw_fd(), Shutdown::Both);
    }

    fn wait(&self, events: PollFlags, deadline: Instant) -> io::Result<()> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        // Rounded up, or the last millisecond would be spent without sleeping.
        let left = left + Duration::from_millis(1);
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(self.0.as_fd(), events)], timeout) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// Bytes that were received and not yet taken.
#[derive(Debug)]
pub(super) struct Input {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl Input {
    /// Room for as much as one call receives: 146 requests.
    const ROOM_BYTES: usize = 4096;

    pub(super) fn new() -> Self {
        Self {
            bytes: vec![0; Self::ROOM_BYTES],
            start: 0,
            end: 0,
        }
    }

    /// All that is there.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// The first `count` bytes are done with, or all there are.
    pub(super) fn take(&mut self, count: usize) {
        self.start = self.end.min(self.start + count);
    }

    /// The next `N` bytes, which are done with then.
    pub(super) fn take_array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let taken = *self.bytes().first_chunk()?;
        self.start += N;
        Some(taken)
    }

    /// Has `fill` put further bytes after those that are there; how many it returns.
    pub(super) fn add<E>(
        &mut self,
        fill: impl FnOnce(&mut [u8]) -> Result<usize, E>,
    ) -> Result<usize, E> {
        self.make_room();
        let added = fill(&mut self.bytes[self.end..])?;
        self.end += added;
        Ok(added)
    }

    /// There is always some: the reader bounds what comes in.
    fn make_room(&mut self) {
        self.bytes.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        if self.end == self.bytes.len() {
            self.bytes.resize(2 * self.end, 0);
        }
    }
}

/// Who cannot be sent anything has left: the next attempt to receive says so, too.
pub(super) fn left(error: io::Error) -> io::Result<()> {
    gone(error).map(|_| ())
}

/// A connection that was reset is at its end.
pub(super) fn gone(error: io::Error) -> io::Result<usize> {
    match error.kind() {
        ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => Ok(0),
        _ => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    fn add(input: &mut Input, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let fill = |room: &mut [u8]| {
                let count = room.len().min(rest.len());
                room[..count].copy_from_slice(&rest[..count]);
                rest = &rest[count..];
                Ok::<_, ()>(count)
            };
            assert_ne!(input.add(fill), Ok(0));
        }
    }

    #[test]
    fn input_keeps_what_is_not_taken() {
        let mut input = Input::new();
        let bytes: Vec<u8> = (0..10_000u32).map(|at| at.to_le_bytes()[0]).collect();
        add(&mut input, &bytes);
        assert_eq!(input.bytes(), bytes);
        input.take(9_998);
        assert_eq!(input.take_array::<3>(), None);
        add(&mut input, &[7]);
        assert_eq!(input.take_array(), Some([bytes[9_998], bytes[9_999], 7]));
        input.take(1);
        assert!(input.bytes().is_empty());
    }

    #[test]
    fn a_deadline_ends_what_would_wait_for_ever() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let stream = Stream::new(ours.into()).unwrap();
        let deadline = Instant::now() + Duration::from_millis(20);
        let received = stream.receive_before(&mut [0], deadline);
        assert_eq!(received.unwrap_err().kind(), ErrorKind::TimedOut);
        let sent = stream.send_before(&vec![0; 64 << 20], deadline);
        assert_eq!(sent.unwrap_err().kind(), ErrorKind::TimedOut);
        drop(theirs);
    }
}
