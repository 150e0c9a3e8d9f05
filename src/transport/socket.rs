//! The listening socket: stale and live ones, permissions, removal.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process;

use rustix::fs::Mode;
use rustix::process::umask;

use super::error::TransportError;

/// `sun_path` of `sockaddr_un` has 108 bytes, the last of which is NUL (unix(7)).
const PATH_BYTES_MAX: usize = 107;

/// A listening socket that removes its file when it is dropped.
#[derive(Debug)]
pub(super) struct ServedSocket {
    listener: UnixListener,
    /// Only there to be dropped.
    _file: SocketFile,
}

impl ServedSocket {
    /// Listens at `path`, replacing a socket that nobody listens on any more. Only the owner may connect.
    ///
    /// Changes the process's umask for a moment, so no other thread should be making files.
    pub(super) fn bind(path: &Path) -> Result<Self, TransportError> {
        check_length(path)?;
        clear_stale(path)?;
        let before = umask(Mode::RWXG | Mode::RWXO | Mode::XUSR);
        let bound = UnixListener::bind(path);
        umask(before);
        let listener = bound.map_err(|error| listen_error(path, error))?;
        let file = SocketFile::of(path).map_err(|error| listen_error(path, error))?;
        Ok(Self {
            listener,
            _file: file,
        })
    }

    /// Gives the listening socket to a forked process, which leaves the file alone.
    pub(super) fn into_listener(self) -> UnixListener {
        self.listener
    }
}

impl AsFd for ServedSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

/// The socket's file, as it was when it was made.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
    /// The process that made it: forked ones must not remove it.
    owner: u32,
}

impl SocketFile {
    fn of(path: &Path) -> io::Result<Self> {
        let meta = fs::symlink_metadata(path)?;
        Ok(Self {
            path: path.to_owned(),
            device: meta.dev(),
            inode: meta.ino(),
            owner: process::id(),
        })
    }

    fn is_ours(&self) -> bool {
        let unchanged = |meta: fs::Metadata| meta.dev() == self.device && meta.ino() == self.inode;
        self.owner == process::id() && fs::symlink_metadata(&self.path).is_ok_and(unchanged)
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.is_ours() {
            // Nobody is left to tell.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn check_length(path: &Path) -> Result<(), TransportError> {
    let len_bytes = path.as_os_str().as_bytes().len();
    if len_bytes <= PATH_BYTES_MAX {
        return Ok(());
    }
    Err(TransportError::PathTooLong {
        path: path.to_owned(),
        len_bytes,
        max_bytes: PATH_BYTES_MAX,
    })
}

/// Removes a socket without a listener; anything else stays.
fn clear_stale(path: &Path) -> Result<(), TransportError> {
    let found = match fs::symlink_metadata(path) {
        Ok(meta) => meta,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(listen_error(path, error)),
    };
    if !found.file_type().is_socket() {
        return Err(TransportError::NotASocket {
            path: path.to_owned(),
        });
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(TransportError::InUse {
            path: path.to_owned(),
        }),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(|error| listen_error(path, error))
        }
        Err(error) => Err(listen_error(path, error)),
    }
}

fn listen_error(path: &Path, source: io::Error) -> TransportError {
    let path = path.to_owned();
    match source.kind() {
        ErrorKind::NotFound | ErrorKind::NotADirectory => TransportError::NoDirectory { path },
        // Someone else was faster.
        ErrorKind::AddrInUse => TransportError::InUse { path },
        _ => TransportError::Listen { path, source },
    }
}
