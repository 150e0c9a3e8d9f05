//! Listening sockets: permissions, replacing stale sockets, removal.

use std::fs;
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket,
};
use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, chmod, chownat, fchmod, fstat, openat};
use rustix::io::ioctl_fionbio;
use rustix::net::{SocketFlags, accept_with, sockopt};
use rustix::process::umask;

use super::activation::InheritedSocket;
use super::error::SocketError;

/// `sun_path` of `sockaddr_un` has 108 bytes, the last of which is NUL (unix(7)).
const PATH_BYTES_MAX: usize = 107;

/// Who may connect to a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketAccess {
    /// Permission bits, 0o777 at most. Write permission is what connecting needs (unix(7)).
    pub mode: u32,
    /// Group of the socket's file. `None`: the group of this process.
    pub group: Option<u32>,
}

impl Default for SocketAccess {
    /// Only the owner.
    fn default() -> Self {
        Self {
            mode: 0o600,
            group: None,
        }
    }
}

/// A listening socket. Dropping it removes its file, if this process created it.
#[derive(Debug)]
pub(super) struct ListeningSocket {
    listener: OwnedFd,
    /// `None` for a socket of another process and for a TCP port.
    file: Option<SocketFile>,
}

impl ListeningSocket {
    /// Listens at `path`, replacing a socket that nobody listens on any more.
    ///
    /// The socket is never connectable by anyone `access` excludes. Changes the process's umask temporarily, so no other
    /// thread should be creating files.
    pub(super) fn bind(path: &Path, access: SocketAccess) -> Result<Self, SocketError> {
        check_length(path)?;
        remove_stale(path)?;
        let fault = |error| listen_error(path, error);
        let socket = bind_with_mode(path, access.initial_mode()).map_err(fault)?;
        let file = SocketFile::of(path).map_err(fault)?;
        if let Some(gid) = access.group {
            file.set_group(gid, access.mode)
                .map_err(|source| SocketError::Group {
                    path: path.to_owned(),
                    gid,
                    source,
                })?;
        }
        listen(&socket, Backlog::MAXALLOWABLE).map_err(|errno| fault(errno.into()))?;
        Ok(Self {
            listener: socket,
            file: Some(file),
        })
    }

    /// Listens at a TCP port. Returns the address, because port 0 stands for any free port.
    pub(super) fn bind_tcp(address: SocketAddr) -> Result<(Self, SocketAddr), SocketError> {
        let fault = |source: io::Error| match source.kind() {
            ErrorKind::AddrInUse => SocketError::PortInUse { address },
            _ => SocketError::Port { address, source },
        };
        let listener = TcpListener::bind(address).map_err(fault)?;
        let chosen = listener.local_addr().map_err(fault)?;
        let listener = OwnedFd::from(listener);
        keep_alive(&listener).map_err(|errno| fault(errno.into()))?;
        // TcpListener has a shorter backlog.
        listen(&listener, Backlog::MAXALLOWABLE).map_err(|errno| fault(errno.into()))?;
        let file = None;
        Ok((Self { listener, file }, chosen))
    }

    /// Makes [`accept`](Self::accept) non-blocking.
    pub(super) fn set_nonblocking(&self) -> io::Result<()> {
        Ok(ioctl_fionbio(&self.listener, true)?)
    }

    /// Accepts a connection and makes it non-blocking.
    pub(super) fn accept(&self) -> io::Result<UnixStream> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        Ok(accept_with(&self.listener, flags)?.into())
    }

    /// For a worker: returns the descriptor and does not remove the file, which belongs to the parent.
    pub(super) fn into_listener(self) -> OwnedFd {
        // Dropping the value would remove the file.
        std::mem::forget(self.file);
        self.listener
    }
}

impl SocketAccess {
    /// Until the file has its group, that of the process must not get access.
    fn initial_mode(self) -> u32 {
        match self.group {
            Some(_) => self.mode & !0o070,
            None => self.mode,
        }
    }
}

/// Enables TCP keepalive, so that a worker ends if the host of its client has vanished: after a minute without traffic,
/// six probes at intervals of 10 s. Connections inherit this from the listening socket.
fn keep_alive(listener: &OwnedFd) -> rustix::io::Result<()> {
    sockopt::set_socket_keepalive(listener, true)?;
    sockopt::set_tcp_keepidle(listener, Duration::from_secs(60))?;
    sockopt::set_tcp_keepintvl(listener, Duration::from_secs(10))?;
    sockopt::set_tcp_keepcnt(listener, 6)
}

/// Creates the socket's file with `mode`. bind(2) copies the mode of the socket's own inode to the file
/// (`unix_bind_bsd` in Linux's net/unix/af_unix.c).
fn bind_with_mode(path: &Path, mode: u32) -> io::Result<OwnedFd> {
    let socket = socket(
        AddressFamily::Unix,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    fchmod(&socket, Mode::from_raw_mode(mode))?;
    let before = umask(Mode::empty());
    let bound = UnixAddr::new(path).and_then(|address| bind(socket.as_raw_fd(), &address));
    umask(before);
    bound?;
    Ok(socket)
}

impl From<InheritedSocket> for ListeningSocket {
    fn from(inherited: InheritedSocket) -> Self {
        Self {
            listener: inherited.into_listener().into(),
            file: None,
        }
    }
}

impl AsFd for ListeningSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

/// The socket's file, identified as it was when it was created.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl SocketFile {
    fn of(path: &Path) -> io::Result<Self> {
        let meta = fs::symlink_metadata(path)?;
        Ok(Self {
            path: path.to_owned(),
            device: meta.dev(),
            inode: meta.ino(),
        })
    }

    /// Sets the group, then the mode. Fails if another file has replaced this one.
    fn set_group(&self, gid: u32, mode: u32) -> io::Result<()> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(CWD, &self.path, flags, Mode::empty())?;
        let found = fstat(&file)?;
        if (found.st_dev, found.st_ino) != (self.device, self.inode) {
            return Err(io::Error::other("another process has replaced it"));
        }
        chownat(
            &file,
            "",
            None,
            Some(Gid::from_raw(gid)),
            AtFlags::EMPTY_PATH,
        )?;
        // fchmod(2) refuses O_PATH descriptors.
        let link = format!("/proc/self/fd/{}", file.as_raw_fd());
        Ok(chmod(link, Mode::from_raw_mode(mode))?)
    }

    fn is_ours(&self) -> bool {
        let unchanged = |meta: fs::Metadata| meta.dev() == self.device && meta.ino() == self.inode;
        fs::symlink_metadata(&self.path).is_ok_and(unchanged)
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.is_ours() {
            // The server is ending, so an error has no consequence.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn check_length(path: &Path) -> Result<(), SocketError> {
    let len_bytes = path.as_os_str().as_bytes().len();
    if len_bytes <= PATH_BYTES_MAX {
        return Ok(());
    }
    Err(SocketError::PathTooLong {
        path: path.to_owned(),
        len_bytes,
        max_bytes: PATH_BYTES_MAX,
    })
}

/// Removes a socket that nobody listens on. Anything else stays.
fn remove_stale(path: &Path) -> Result<(), SocketError> {
    let found = match fs::symlink_metadata(path) {
        Ok(meta) => meta,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(listen_error(path, error)),
    };
    if !found.file_type().is_socket() {
        return Err(SocketError::NotASocket {
            path: path.to_owned(),
        });
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(SocketError::InUse {
            path: path.to_owned(),
        }),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(|error| listen_error(path, error))
        }
        Err(error) => Err(listen_error(path, error)),
    }
}

fn listen_error(path: &Path, source: io::Error) -> SocketError {
    let path = path.to_owned();
    match source.kind() {
        ErrorKind::NotFound | ErrorKind::NotADirectory => SocketError::NoDirectory { path },
        // Another process has bound it since the check.
        ErrorKind::AddrInUse => SocketError::InUse { path },
        _ => SocketError::Listen { path, source },
    }
}
