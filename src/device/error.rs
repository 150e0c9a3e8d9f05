//! Why the disk cannot be served.

use std::io;
use std::os::fd::RawFd;
use std::path::PathBuf;

use crate::sandbox::SandboxError;

/// Why the disk cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
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
        /// Why.
        source: io::Error,
    },
    /// The same socket twice.
    #[error("{} is given twice: name each socket once", path.display())]
    GivenTwice {
        /// The socket.
        path: PathBuf,
    },
    /// The socket cannot belong to that group.
    #[error("cannot give {} to group {gid}: {source}; only root, and who is in that group, can", path.display())]
    Group {
        /// The socket.
        path: PathBuf,
        /// The group.
        gid: u32,
        /// Why.
        source: io::Error,
    },
    /// What was handed over is not what is needed.
    #[error(
        "descriptor {descriptor}, which was handed over in LISTEN_FDS, is no listening Unix stream socket ({source}): \
         use ListenStream=PATH and Accept=no"
    )]
    Inherited {
        /// Its number.
        descriptor: RawFd,
        /// What is wrong.
        source: io::Error,
    },
    /// There is no such directory to mount on.
    #[error("{} is not a directory: create it or choose another one", path.display())]
    NotADirectory {
        /// What was asked for.
        path: PathBuf,
    },
    /// The kernel has no FUSE, or this process may not use it.
    #[error(
        "cannot open /dev/fuse ({source}): load the kernel's module with `modprobe fuse`, give a container the \
         device, or use --vhost-user instead"
    )]
    NoFuseDevice {
        /// Why.
        source: io::Error,
    },
    /// Only root can do without this program.
    #[error(
        "fusermount3, which mounts for users that are not root, is missing: install fuse3, or use --vhost-user instead"
    )]
    NoFusermount,
    /// The file cannot be mounted.
    #[error("cannot mount on {}: {source}", dir.display())]
    Mount {
        /// The directory.
        dir: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The recording cannot be written.
    #[error("cannot write the recording {}: {source}: choose another file for --record", path.display())]
    Record {
        /// The file.
        path: PathBuf,
        /// Why.
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
    /// The worker that mounts gave up; it has said why.
    #[error("{reason}")]
    NotMounted {
        /// Its words.
        reason: String,
    },
    /// The frontend shared no memory, as QEMU does without `share=on`.
    #[error(
        "the VM's memory is not shared: add -object memory-backend-memfd,id=mem,size=SIZE,share=on \
         -machine memory-backend=mem"
    )]
    MemoryNotShared,
    /// The frontend said something that makes no sense, or the connection failed.
    #[error("the connection to the frontend failed: {0}")]
    Connection(vhost_user_backend::Error),
    /// The host refused something that serving needs.
    #[error("cannot {action}: {source}")]
    Host {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// A process with several threads cannot be forked safely.
    #[error(
        "the serving process has {threads} threads, and only one may exist when workers are started"
    )]
    Threads {
        /// How many there are.
        threads: usize,
    },
    /// A process cannot be confined.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// The only worker did not end well.
    #[error("the worker process ended badly: {how}")]
    Worker {
        /// Exit code or signal.
        how: String,
    },
}

impl TransportError {
    /// For `map_err`: names what was tried.
    pub(crate) fn host<E: Into<io::Error>>(action: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Host {
            action,
            source: source.into(),
        }
    }
}
