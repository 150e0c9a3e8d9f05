//! The status of a server and its VMs.

use serde::{Deserialize, Serialize};

use crate::cache::FetchFigures;

/// How a client reads the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClientKind {
    /// Over vhost-user-blk.
    VhostUser,
    /// Over NBD.
    Nbd,
    /// Through the file. All readers together count as one client.
    Fuse,
}

impl ClientKind {
    /// The name for people and labels.
    pub fn name(self) -> &'static str {
        match self {
            Self::VhostUser => "vhost-user",
            Self::Nbd => "nbd",
            Self::Fuse => "fuse",
        }
    }
}

/// The status of a VM or another client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientStatus {
    /// Its number, counted from 1 since the server started; 0 for the file.
    pub vm: u64,
    /// How it reads the disk.
    pub kind: ClientKind,
    /// Its socket or the file.
    pub place: String,
    /// The disk that it has chosen by name, if the server has several.
    #[serde(default)]
    pub export: Option<String>,
    /// When it connected, in seconds since 1970.
    pub since_sec: u64,
    /// How long ago that was, in milliseconds.
    pub age_ms: u64,
    /// Requests answered, including errors.
    pub requests: u64,
    /// Data bytes delivered.
    pub bytes: u64,
    /// Requests answered with an error.
    pub errors: u64,
    /// Requests that wait for the host.
    pub in_flight: u64,
    /// Store paths whose planning was started.
    pub plans: u64,
    /// Histogram of latencies: pairs of the upper bound of a bucket in nanoseconds, and its count.
    pub times: Vec<(u64, u64)>,
}

/// The status of one of several disks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportStatus {
    /// Its name.
    pub name: String,
    /// Its fingerprint.
    pub disk: Option<String>,
    /// Number of store paths on it.
    pub paths: u64,
}

/// The status of a server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerStatus {
    /// Its process id.
    pub pid: u32,
    /// Its version.
    pub version: String,
    /// Fingerprint of the main disk. A tree has none.
    #[serde(default)]
    pub disk: Option<String>,
    /// All disks, if there are several.
    #[serde(default)]
    pub exports: Vec<ExportStatus>,
    /// When it started, in seconds since 1970.
    pub since_sec: u64,
    /// How long ago that was, in milliseconds.
    pub age_ms: u64,
    /// Number of distinct store paths on all disks.
    pub paths: u64,
    /// Plans that all VMs read by, on all disks.
    #[serde(default)]
    pub published_plans: u64,
    /// Those of them that an earlier server kept.
    #[serde(default)]
    pub kept_plans: u64,
    /// Connected clients.
    pub clients: Vec<ClientStatus>,
    /// Number of clients that have disconnected.
    pub left: u64,
    /// Requests of those.
    pub left_requests: u64,
    /// Bytes delivered to those.
    pub left_bytes: u64,
    /// Errors of those.
    pub left_errors: u64,
    /// What was fetched from binary caches, if paths are not on this host.
    pub fetched: Option<FetchFigures>,
}
