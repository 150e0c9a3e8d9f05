//! What is told of a server and its VMs.

use serde::{Deserialize, Serialize};

use crate::cache::FetchFigures;
use crate::device::Stats;
use crate::device::meter::{Figures, merged};

/// How a client reads the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClientKind {
    /// Over vhost-user-blk.
    VhostUser,
    /// Over NBD.
    Nbd,
    /// From the file, all readers together.
    Fuse,
}

impl ClientKind {
    /// For people and labels.
    pub fn name(self) -> &'static str {
        match self {
            Self::VhostUser => "vhost-user",
            Self::Nbd => "nbd",
            Self::Fuse => "fuse",
        }
    }
}

/// One VM, or one client of another kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientStatus {
    /// Its number, counted from 1 since the server started; 0 for the file.
    pub vm: u64,
    /// How it reads.
    pub kind: ClientKind,
    /// Its socket, or the file.
    pub place: String,
    /// The disk that it has chosen by name, if the server has several.
    #[serde(default)]
    pub export: Option<String>,
    /// Since when it is served: seconds since 1970.
    pub since_sec: u64,
    /// For how long, in milliseconds.
    pub age_ms: u64,
    /// Requests answered, whatever the answer.
    pub requests: u64,
    /// Data bytes delivered.
    pub bytes: u64,
    /// Requests answered with an error.
    pub errors: u64,
    /// Requests that wait for the host.
    pub in_flight: u64,
    /// Store paths whose planning was begun.
    pub plans: u64,
    /// How long answers took: nanoseconds, and how many took no longer and longer than those before.
    pub times: Vec<(u64, u64)>,
}

/// One of several disks of a server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportStatus {
    /// Its name.
    pub name: String,
    /// Its fingerprint.
    pub disk: Option<String>,
    /// Store paths on it.
    pub paths: u64,
}

/// A server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerStatus {
    /// Its process.
    pub pid: u32,
    /// Its version.
    pub version: String,
    /// Fingerprint of the main disk; a tree has none.
    #[serde(default)]
    pub disk: Option<String>,
    /// All disks, if there are several.
    #[serde(default)]
    pub exports: Vec<ExportStatus>,
    /// When it started: seconds since 1970.
    pub since_sec: u64,
    /// How long ago that was, in milliseconds.
    pub age_ms: u64,
    /// Store paths, each once, however many disks have it.
    pub paths: u64,
    /// Who is connected.
    pub clients: Vec<ClientStatus>,
    /// How many were, and have left.
    pub left: u64,
    /// What those got: requests, bytes, errors.
    pub left_requests: u64,
    /// Bytes that they got.
    pub left_bytes: u64,
    /// Errors that they got.
    pub left_errors: u64,
    /// What was fetched from binary caches, if some paths are not on this host.
    pub fetched: Option<FetchFigures>,
}

impl ClientStatus {
    /// Takes over what a meter has counted.
    pub(in super::super) fn set_figures(&mut self, figures: &Figures) {
        let Stats {
            requests,
            bytes,
            errors,
        } = figures.stats;
        (self.requests, self.bytes, self.errors) = (requests, bytes, errors);
        (self.in_flight, self.plans) = (figures.in_flight, figures.plans);
        self.times = merged(std::slice::from_ref(figures));
    }
}
