//! The processes that serve disks: a parent that listens, and a worker for each connection or mount.
//!
//! A frontend can truncate the file that backs its shared memory. A process that then accesses a ring dies of SIGBUS. So
//! the parent accesses no guest memory. It has one thread and forks a worker for each connection, and a guest can only
//! crash its own worker. A worker costs little, because the disk is a pure function and the parent's plans are shared
//! copy-on-write. Its death loses no request (see [`ring`](crate::device::vhost_blk::ring)).
//!
//! | module | what it does |
//! |---|---|
//! | `disks` | the disks: a main disk, and others that NBD clients choose by name |
//! | `endpoint` | sockets and the FUSE mount, and how their workers run |
//! | `supervisor` | the parent: waits for events, starts workers, ends everything |
//! | `workers` | the parent's view of the workers of VMs |
//! | `messages` | messages from a worker to its parent |
//! | `status` | status sockets and metrics |
//! | `throttle`, `mute` | limit the forks and log lines that a client can cause |
//! | `listener` | listening sockets: permissions, stale sockets, removal |
//! | `activation` | listening sockets that systemd passes |
//! | `nbd_address` | addresses of NBD sockets |
//! | `descriptors` | fits queues and threads to the limit of file descriptors |
//! | `boot_report` | the report on what the first VM read |
//! | `written` | replaces files atomically |
//! | `recording` | the recording of what a VM reads, and prefetching |
//! | `confine` | confines the processes |
//! | `error` | errors |

mod activation;
mod boot_report;
mod confine;
mod descriptors;
mod disks;
mod endpoint;
mod error;
mod listener;
mod messages;
mod mute;
mod nbd_address;
mod recording;
mod status;
mod supervisor;
mod throttle;
mod workers;
mod written;

use std::path::{Path, PathBuf};
use std::time::Duration;

pub use activation::{InheritedSocket, SocketName};
pub use boot_report::{
    BootReport, FORMAT as REPORT_FORMAT, PathReads, ReportOptions, Totals as ReportTotals,
};
pub use disks::{Disks, DisksError};
pub use error::{ServeError, SocketError};
pub use listener::SocketAccess;
pub use nbd_address::{NbdAddress, NbdAddressError, NbdTls, TcpAddress};
pub use status::{
    ClientKind, ClientStatus, ExportStatus, STATUS_SUFFIX, ServerStatus, prometheus_text,
    status_path,
};
pub use supervisor::serve;

use crate::cache::FetchMeter;
use crate::device::fuse::FuseOptions;
use crate::device::vhost_blk::DeviceOptions;
use crate::image::recording::Recording;

/// How to serve disks: at sockets, as a file, or both.
#[derive(Debug, Clone)]
pub struct ServeOptions {
    /// Paths of vhost-user sockets, each at most 107 bytes long.
    pub sockets: Vec<PathBuf>,
    /// Addresses of NBD sockets.
    pub nbd: Vec<NbdAddress>,
    /// TLS for TCP ports. Without it, only loopback addresses are allowed.
    pub nbd_tls: Option<NbdTls>,
    /// Who may connect to Unix sockets.
    pub access: SocketAccess,
    /// The FUSE mount.
    pub fuse: Option<FuseOptions>,
    /// End when the first VM at a socket has disconnected; without a socket, when the last reader closes the file.
    pub once: bool,
    /// Confine every process before it serves a guest.
    pub sandbox: bool,
    /// Settings of the vhost-user-blk device.
    pub device: DeviceOptions,
    /// Limits for clients.
    pub limits: ClientLimits,
    /// File for the recording of what the first VM reads.
    pub record: Option<PathBuf>,
    /// A private directory that the caller removes at the end, when this process may already be confined.
    pub private_dir: Option<PathBuf>,
    /// Path of the status socket. `None`: one next to each socket and the mount, see [`status_path`].
    pub status: Option<PathBuf>,
    /// The report on what the first VM reads.
    pub report: Option<ReportOptions>,
    /// A file for metrics in the text format of Prometheus.
    pub metrics: Option<PathBuf>,
    /// Directory that keeps plans for later servers. Created if it does not exist.
    pub plan_dir: Option<PathBuf>,
    /// The recording to prefetch.
    pub prefetch: Option<Recording>,
    /// Counters of what is fetched from binary caches, for the status.
    pub fetched: Option<FetchMeter>,
}

impl ServeOptions {
    /// The sockets that are files.
    fn socket_files(&self) -> impl Iterator<Item = &Path> {
        let nbd = self.nbd.iter().filter_map(NbdAddress::path);
        self.sockets.iter().map(PathBuf::as_path).chain(nbd)
    }
}

/// Limits for clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientLimits {
    /// Maximum number of connections at all sockets together. Further clients wait.
    pub max_vms: usize,
    /// Maximum time from a client's connect to its first message.
    pub first_message: Duration,
}

impl Default for ClientLimits {
    /// More VMs than a host has. More time than a VMM needs, which allocates the VM's memory before its first message.
    fn default() -> Self {
        Self {
            max_vms: 1000,
            first_message: Duration::from_secs(60),
        }
    }
}

/// Events for the caller of [`serve`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServeEvent<'s> {
    /// The sockets listen, and the file is mounted.
    Ready(&'s [(ClientKind, SocketName)]),
    /// The number of connected VMs has changed to this.
    Vms(usize),
    /// The server is ending.
    Stopping,
}
