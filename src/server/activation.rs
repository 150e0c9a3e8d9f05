//! Sockets that systemd, or another parent, has made and listens on already.

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

/// A listening socket that was handed over. Its file belongs to the process that made it.
#[derive(Debug)]
pub struct InheritedSocket {
    listener: UnixListener,
    descriptor: RawFd,
}

/// Where a socket is, for messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SocketName {
    /// In the file system.
    Path(PathBuf),
    /// Nowhere: it is known by the number under which it was handed over.
    Descriptor(RawFd),
    /// A TCP port.
    Tcp(SocketAddr),
}

impl SocketName {
    /// Its path, if it has one.
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
    /// Whether there are any: `LISTEN_PID` and `LISTEN_FDS` (sd_listen_fds(3)) speak of this process.
    pub fn are_there() -> bool {
        sd_notify::listen_fds().is_ok_and(|fds| fds.len() > 0)
    }

    /// Takes them all; a second call finds them closed.
    ///
    /// # Errors
    /// When the environment is malformed, or a descriptor is no listening Unix stream socket.
    pub fn take_all() -> Result<Vec<Self>, SocketError> {
        let numbers = sd_notify::listen_fds().map_err(SocketError::Environment)?;
        let mut given = ListenFd::from_env();
        let take = |(index, number)| Self::take(&mut given, index, number);
        numbers.enumerate().map(take).collect()
    }

    /// Takes the one that the parent has left open under a number, and closes that number.
    ///
    /// # Errors
    /// When it is no listening Unix stream socket.
    pub fn take_number(descriptor: RawFd) -> Result<Self, SocketError> {
        let socket = take_descriptor(descriptor)
            .map_err(|source| SocketError::Inherited { descriptor, source })?;
        Self::check(UnixListener::from(socket), descriptor)
    }

    fn take(given: &mut ListenFd, index: usize, descriptor: RawFd) -> Result<Self, SocketError> {
        let fault = |source| SocketError::Inherited { descriptor, source };
        let missing = || fault(io::Error::other("it is not open"));
        let listener = given.take_unix_listener(index).map_err(fault)?;
        Self::check(listener.ok_or_else(missing)?, descriptor)
    }

    fn check(listener: UnixListener, descriptor: RawFd) -> Result<Self, SocketError> {
        let fault = |source| SocketError::Inherited { descriptor, source };
        if !getsockopt(&listener, AcceptConn).map_err(|errno| fault(errno.into()))? {
            return Err(fault(io::Error::other("nobody listens on it")));
        }
        // It has to be a Unix one.
        listener.local_addr().map_err(fault)?;
        // systemd's do not block, and a worker waits for its connection.
        listener.set_nonblocking(false).map_err(fault)?;
        Ok(Self {
            listener,
            descriptor,
        })
    }

    /// Where a frontend finds it.
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

/// Moves an inherited descriptor to a number of its own. A duplicate, since safe code cannot own a bare number. The
/// original would be a way for workers to further connections.
fn take_descriptor(number: RawFd) -> io::Result<OwnedFd> {
    let own = pidfd_open(getpid(), PidfdFlags::empty())?;
    let socket = pidfd_getfd(own, number, PidfdGetfdFlags::empty())?;
    nix::unistd::close(number)?;
    Ok(socket)
}
