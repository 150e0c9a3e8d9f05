//! Errors of the server.

use std::io;
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::path::PathBuf;

use super::disks::DisksError;
use crate::device::fuse::FuseError;
use crate::device::nbd::TlsError;
use crate::image::PlanDirError;
use crate::process::ProcessError;
use crate::sandbox::SandboxError;

/// Why a socket cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another process listens there.
    #[error("{} is in use by another process: stop it or choose another path", path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// Something is there that is not a socket.
    #[error("{} exists and is not a socket: remove it or choose another path", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// The directory for the socket is missing.
    #[error("the directory of {} does not exist: create it or choose another path", path.display())]
    NoDirectory {
        /// The socket.
        path: PathBuf,
    },
    /// The path does not fit a socket address.
    #[error("{} is {len_bytes} bytes long, and a socket's path may have {max_bytes}: choose a shorter one", path.display())]
    PathTooLong {
        /// The socket.
        path: PathBuf,
        /// Its length.
        len_bytes: usize,
        /// The longest that works.
        max_bytes: usize,
    },
    /// The socket cannot be created.
    #[error("cannot listen on {}: {source}", path.display())]
    Listen {
        /// The socket.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
    /// A socket is given twice.
    #[error("{name} is given twice: name each socket once")]
    GivenTwice {
        /// The socket.
        name: String,
    },
    /// A TCP address that other hosts can reach, without TLS.
    #[error("other hosts may reach {address}, and nothing is encrypted")]
    NotEncrypted {
        /// The address.
        address: SocketAddr,
    },
    /// The name of the host cannot be resolved.
    #[error(
        "cannot find the address of {place}: {source}: write an address, such as 127.0.0.1:10809"
    )]
    UnknownHost {
        /// The given address.
        place: String,
        /// The resolver's error.
        source: io::Error,
    },
    /// Another process listens at the port.
    #[error("{address} is in use by another process: stop it or choose another port")]
    PortInUse {
        /// The address.
        address: SocketAddr,
    },
    /// The port cannot be opened.
    #[error("cannot listen at {address}: {source}")]
    Port {
        /// The address.
        address: SocketAddr,
        /// The kernel's error.
        source: io::Error,
    },
    /// The group of the socket's file cannot be set.
    #[error("cannot give {} to group {gid}: {source}; only root, and who is in that group, can", path.display())]
    Group {
        /// The socket.
        path: PathBuf,
        /// The group.
        gid: u32,
        /// The kernel's error.
        source: io::Error,
    },
    /// `LISTEN_PID` and `LISTEN_FDS` are malformed.
    #[error("LISTEN_PID and LISTEN_FDS are malformed: {0}")]
    Environment(io::Error),
    /// A passed descriptor is not a listening Unix stream socket.
    #[error(
        "descriptor {descriptor}, which the parent has passed, is not a listening Unix stream socket ({source}): pass one \
         as systemd does with ListenStream=PATH and Accept=no"
    )]
    Inherited {
        /// Its number.
        descriptor: RawFd,
        /// The reason.
        source: io::Error,
    },
}

/// Why a disk cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A socket cannot be served.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// These disks cannot be served together, or not with these options.
    #[error(transparent)]
    Disks(#[from] DisksError),
    /// TLS cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The disk cannot be mounted as a file.
    #[error(transparent)]
    Fuse(#[from] FuseError),
    /// The directory for plans cannot be used.
    #[error(transparent)]
    PlanDir(#[from] PlanDirError),
    /// A process cannot be started or watched.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// A process cannot be confined.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// The recording cannot be written.
    #[error("cannot write the recording {}: {source}", path.display())]
    Record {
        /// The file.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
    /// There are too few descriptors even for one VM.
    #[error(
        "{free} more files may be opened, and serving a VM takes {needed}: raise the limit of open files (ulimit -n, \
         LimitNOFILE=)"
    )]
    TooFewDescriptors {
        /// Number of descriptors that can still be opened.
        free: usize,
        /// Number that a VM with one queue needs.
        needed: usize,
    },
    /// The worker that mounts has failed.
    #[error("{reason}")]
    NotMounted {
        /// Its error message.
        reason: String,
    },
    /// The host refused something that serving needs.
    #[error("cannot {action}: {source}")]
    Host {
        /// What was tried.
        action: &'static str,
        /// The kernel's error.
        source: io::Error,
    },
    /// The only worker ended with an error.
    #[error("the worker process failed: {how}")]
    Worker {
        /// Exit code or signal.
        how: String,
    },
}

impl ServeError {
    /// For `map_err`: adds what was tried.
    pub(super) fn host<E: Into<io::Error>>(action: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Host {
            action,
            source: source.into(),
        }
    }
}
