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
        let take = |(index, number)| {
            let listener = passed.take_unix_listener(index);
            let missing = || io::Error::other("it is not open");
            Self::checked(number, listener.and_then(|found| found.ok_or_else(missing)))
        };
        numbers.enumerate().map(take).collect()
    }

    /// Takes the descriptor with this number from the parent, and closes the number.
    ///
    /// # Errors
    /// It is not a listening Unix stream socket.
    pub fn take_descriptor(descriptor: RawFd) -> Result<Self, SocketError> {
        Self::checked(
            descriptor,
            move_descriptor(descriptor).map(UnixListener::from),
        )
    }

    fn checked(descriptor: RawFd, listener: io::Result<UnixListener>) -> Result<Self, SocketError> {
        match listener.and_then(check) {
            Ok(listener) => Ok(Self {
                listener,
                descriptor,
            }),
            Err(source) => Err(SocketError::Inherited { descriptor, source }),
        }
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

fn check(listener: UnixListener) -> io::Result<UnixListener> {
    if !getsockopt(&listener, AcceptConn)? {
        return Err(io::Error::other("nobody listens on it"));
    }
    // Fails unless it is a Unix socket.
    listener.local_addr()?;
    // systemd's sockets do not block, but a worker waits in accept(2).
    listener.set_nonblocking(false)?;
    Ok(listener)
}

/// Duplicates an inherited descriptor, because safe code cannot own a bare number. Closes the original: workers would
/// inherit it, and could accept further connections.
fn move_descriptor(number: RawFd) -> io::Result<OwnedFd> {
    let own = pidfd_open(getpid(), PidfdFlags::empty())?;
    let socket = pidfd_getfd(own, number, PidfdGetfdFlags::empty())?;
    nix::unistd::close(number)?;
    Ok(socket)
}
