//! Listening sockets that systemd or another parent passes to this process.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use listenfd::ListenFd;
use nix::sys::socket::{getsockopt, sockopt::AcceptConn};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

use super::error::SocketError;

/// A listening socket that was passed to this process. The process that created its file also removes it.
#[derive(Debug)]
pub struct InheritedSocket {
    listener: UnixListener,
    descriptor: RawFd,
}

/// The name of a socket, for messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SocketName {
    /// A path.
    Path(PathBuf),
    /// A socket without a path: the number of the passed descriptor.
    Descriptor(RawFd),
    /// A TCP port.
    Tcp(SocketAddr),
}

impl SocketName {
    /// The path, if it has one.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Path(path) => Some(path),
            Self::Descriptor(_) | Self::Tcp(_) => None,
        }
    }
}

impl fmt::Display for SocketName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => write!(f, "{}", path.display()),
            Self::Descriptor(number) => write!(f, "descriptor {number}"),
            Self::Tcp(address) => address.fmt(f),
        }
    }
}

impl InheritedSocket {
    /// Whether systemd passed sockets to this process (`LISTEN_PID` and `LISTEN_FDS`, sd_listen_fds(3)).
    pub fn exist() -> bool {
        sd_notify::listen_fds().is_ok_and(|fds| fds.len() > 0)
    }

    /// Takes all of them. A second call fails, because their numbers are closed then.
    ///
    /// # Errors
    /// The environment is malformed, or a descriptor is not a listening Unix stream socket.
    pub fn take_all() -> Result<Vec<Self>, SocketError> {
        let numbers = sd_notify::listen_fds().map_err(SocketError::Environment)?;
        let mut passed = ListenFd::from_env();
        let take = |(index, number)| Self::take(&mut passed, index, number);
        numbers.enumerate().map(take).collect()
    }

    /// Takes the descriptor with this number from the parent, and closes the number.
    ///
    /// # Errors
    /// It is not a listening Unix stream socket.
    pub fn take_descriptor(descriptor: RawFd) -> Result<Self, SocketError> {
        let socket = move_descriptor(descriptor)
            .map_err(|source| SocketError::Inherited { descriptor, source })?;
        Self::check(UnixListener::from(socket), descriptor)
    }

    fn take(passed: &mut ListenFd, index: usize, descriptor: RawFd) -> Result<Self, SocketError> {
        let fault = |source| SocketError::Inherited { descriptor, source };
        let missing = || fault(io::Error::other("it is not open"));
        let listener = passed.take_unix_listener(index).map_err(fault)?;
        Self::check(listener.ok_or_else(missing)?, descriptor)
    }

    fn check(listener: UnixListener, descriptor: RawFd) -> Result<Self, SocketError> {
        let fault = |source| SocketError::Inherited { descriptor, source };
        if !getsockopt(&listener, AcceptConn).map_err(|errno| fault(errno.into()))? {
            return Err(fault(io::Error::other("nobody listens on it")));
        }
        // Fails unless it is a Unix socket.
        listener.local_addr().map_err(fault)?;
        // systemd's sockets do not block, but a worker waits in accept(2).
        listener.set_nonblocking(false).map_err(fault)?;
        Ok(Self {
            listener,
            descriptor,
        })
    }

    /// The name under which a frontend connects.
    pub fn name(&self) -> SocketName {
        let address = self.listener.local_addr().ok();
        match address.as_ref().and_then(|address| address.as_pathname()) {
            Some(path) => SocketName::Path(path.to_owned()),
            None => SocketName::Descriptor(self.descriptor),
        }
    }

    pub(super) fn into_listener(self) -> UnixListener {
        self.listener
    }
}

/// Duplicates an inherited descriptor, because safe code cannot own a bare number. Closes the original: workers would
/// inherit it, and could accept further connections.
fn move_descriptor(number: RawFd) -> io::Result<OwnedFd> {
    let own = pidfd_open(getpid(), PidfdFlags::empty())?;
    let socket = pidfd_getfd(own, number, PidfdGetfdFlags::empty())?;
    nix::unistd::close(number)?;
    Ok(socket)
}
