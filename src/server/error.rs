//! Why a disk cannot be served.

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
        /// What is there.
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
    /// The socket cannot be made.
    #[error("cannot listen on {}: {source}", path.display())]
    Listen {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The same socket twice.
    #[error("{name} is given twice: name each socket once")]
    GivenTwice {
        /// The socket.
        name: String,
    },
    /// Other hosts could read what is sent.
    #[error("other hosts may reach {address}, and nothing is encrypted")]
    NotEncrypted {
        /// Where clients would connect.
        address: SocketAddr,
    },
    /// The name of the host means nothing.
    #[error(
        "cannot find the address of {place}: {source}: write an address, such as 127.0.0.1:10809"
    )]
    UnknownHost {
        /// What was asked for.
        place: String,
        /// What the host said.
        source: io::Error,
    },
    /// Another process listens at the port.
    #[error("{address} is in use by another process: stop it or choose another port")]
    PortInUse {
        /// Where clients would connect.
        address: SocketAddr,
    },
    /// The port cannot be listened at.
    #[error("cannot listen at {address}: {source}")]
    Port {
        /// Where clients would connect.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// The socket cannot belong to that group.
    #[error("cannot give {} to group {gid}: {source}; only root, and who is in that group, can", path.display())]
    Group {
        /// The socket.
        path: PathBuf,
        /// The group.
        gid: u32,
        /// What the kernel said.
        source: io::Error,
    },
    /// `LISTEN_PID` and `LISTEN_FDS` are malformed.
    #[error("cannot understand LISTEN_PID and LISTEN_FDS: {0}")]
    Environment(io::Error),
    /// What was handed over is not what is needed.
    #[error(
        "descriptor {descriptor}, which was handed over, is no listening Unix stream socket ({source}): it must be one that \
         connections are accepted from, as with systemd's ListenStream=PATH and Accept=no"
    )]
    Inherited {
        /// Its number.
        descriptor: RawFd,
        /// What is wrong.
        source: io::Error,
    },
}

/// Why a disk cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A socket cannot be served.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// These disks cannot be served, or not in this way.
    #[error(transparent)]
    Disks(#[from] DisksError),
    /// There is nothing to encrypt with.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The disk cannot be mounted as a file.
    #[error(transparent)]
    Fuse(#[from] FuseError),
    /// Plans cannot be kept.
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
        /// What the kernel said.
        source: io::Error,
    },
    /// Not one VM could be served.
    #[error(
        "{free} more files may be opened, and serving a VM takes {needed}: raise the limit of open files (ulimit -n, \
         LimitNOFILE=)"
    )]
    FewDescriptors {
        /// What is left.
        free: usize,
        /// What one VM with one queue needs.
        needed: usize,
    },
    /// The worker that mounts gave up; these are its words.
    #[error("{reason}")]
    NotMounted {
        /// Its words.
        reason: String,
    },
    /// The host refused something that serving needs.
    #[error("cannot {action}: {source}")]
    Host {
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The only worker did not end well.
    #[error("the worker process ended badly: {how}")]
    Worker {
        /// Exit code or signal.
        how: String,
    },
}

impl ServeError {
    /// For `map_err`: names what was tried.
    pub(super) fn host<E: Into<io::Error>>(action: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Host {
            action,
            source: source.into(),
        }
    }
}
