//! The processes that serve disks: one that listens, and a worker for each connection or mount.
//!
//! A frontend can truncate the file behind its shared memory, and then a process that touches a ring dies of SIGBUS. So
//! the process that owns the endpoints touches no guest's memory: it has one thread, and forks a worker for every
//! connection. What a guest breaks is its own worker. A worker costs little, because the disk is a pure function and the
//! parent's plans are shared copy-on-write; and its death loses nothing (see
//! [`ring`](crate::device::vhost_blk::ring)).
//!
//! | module | what it does |
//! |---|---|
//! | `disks` | what is served: a main disk, and others that NBD clients choose by name |
//! | `endpoint` | where clients find the disk: sockets, a FUSE mount; how their workers run |
//! | `supervisor` | the parent: waits for events, starts workers, ends everything |
//! | `workers` | the workers of VMs: what they tell, and how they ended |
//! | `report` | what a worker tells its parent |
//! | `status` | where the server can be asked what its VMs do, and its metrics |
//! | `throttle`, `mute` | limits of what a client can cause: forks and log lines |
//! | `listener` | listening sockets: stale and live ones, permissions, removal |
//! | `activation` | listening sockets that systemd hands over |
//! | `nbd_place` | where NBD clients connect |
//! | `descriptors` | how many VMs there are descriptors for |
//! | `boot_report` | what the first VM read, written when it has left |
//! | `written` | files that the server writes while it serves |
//! | `recording` | which VM is recorded, and reading in advance |
//! | `confine` | which process gives up what, and when |
//! | `error` | why a disk cannot be served |

mod activation;
mod boot_report;
mod confine;
mod descriptors;
mod disks;
mod endpoint;
mod error;
mod listener;
mod mute;
mod nbd_place;
mod recording;
mod report;
mod status;
mod supervisor;
mod throttle;
mod workers;
mod written;

use std::path::{Path, PathBuf};
use std::time::Duration;

pub use activation::{InheritedSocket, SocketName};
pub use boot_report::{
    BootReport, FORMAT as REPORT_FORMAT, PathReport, ReportOptions, Totals as ReportTotals,
};
pub use disks::{Disks, DisksError};
pub use error::{ServeError, SocketError};
pub use listener::SocketAccess;
pub use nbd_place::{NbdPlace, NbdTls, NotAPlace, TcpPlace};
pub use status::{
    ClientKind, ClientStatus, ExportStatus, STATUS_SUFFIX, ServerStatus, prometheus_text,
    status_path,
};
pub use supervisor::serve;

use crate::cache::FetchMeter;
use crate::device::fuse::FuseOptions;
use crate::device::vhost_blk::DeviceOptions;
use crate::image::recording::Recording;

/// How to serve a disk to any number of VMs: at sockets, as a file, or both.
#[derive(Debug, Clone)]
pub struct ServeOptions {
    /// Where to listen; each at most 107 bytes.
    pub sockets: Vec<PathBuf>,
    /// Where to listen for NBD clients.
    pub nbd: Vec<NbdPlace>,
    /// What encrypts at TCP ports. Without it they are this host's only.
    pub nbd_tls: Option<NbdTls>,
    /// Who may connect there.
    pub access: SocketAccess,
    /// Where to mount.
    pub fuse: Option<FuseOptions>,
    /// End when the first VM at a socket has gone; without a socket, when the last reader has closed the file.
    pub once: bool,
    /// Confine every process before it meets a guest.
    pub sandbox: bool,
    /// What each VM gets.
    pub device: DeviceOptions,
    /// What clients may cost.
    pub limits: Limits,
    /// Where to write down what the first VM reads.
    pub record: Option<PathBuf>,
    /// A directory for this alone, which the caller removes at the end.
    pub private_dir: Option<PathBuf>,
    /// Where the status can be asked for; none: next to each socket and the mount, see [`status_path`].
    pub status: Option<PathBuf>,
    /// What the first VM reads, as a report.
    pub report: Option<ReportOptions>,
    /// A file with metrics in Prometheus' text format.
    pub metrics: Option<PathBuf>,
    /// Where plans of store paths are kept for later servers. Made if it is not there.
    pub plan_dir: Option<PathBuf>,
    /// What to read in advance.
    pub prefetch: Option<Recording>,
    /// What is fetched meanwhile from binary caches.
    pub fetched: Option<FetchMeter>,
}

impl ServeOptions {
    /// Sockets that are made as files.
    fn socket_files(&self) -> impl Iterator<Item = &Path> {
        let nbd = self.nbd.iter().filter_map(NbdPlace::path);
        self.sockets.iter().map(PathBuf::as_path).chain(nbd)
    }
}

/// What clients may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Connections at a time, all sockets together; further ones wait.
    pub max_vms: usize,
    /// How long a client may stay connected without a first message.
    pub first_message: Duration,
}

impl Default for Limits {
    /// More than a host has VMs; and longer than a VMM takes from its connecting to its first message while it allocates
    /// a VM's memory.
    fn default() -> Self {
        Self {
            max_vms: 1000,
            first_message: Duration::from_secs(60),
        }
    }
}

/// What happens while a disk is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServeEvent<'s> {
    /// These sockets listen, and the file is there.
    Ready(&'s [(ClientKind, SocketName)]),
    /// So many VMs are connected now.
    Vms(usize),
    /// The end begins.
    Stopping,
}
