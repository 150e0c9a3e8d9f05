//! Endpoints: the sockets and the mount at which clients reach the disks.
//!
//! An endpoint owns its socket or mount and the disks that it serves. It defines the sandbox profile of its workers and
//! how they run. To add one: a variant here, a file next to `socket`, a [`Process`] in `sandbox`.

mod mount;
mod socket;

use std::num::NonZeroUsize;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Instant;

pub(super) use mount::{MountEndpoint, MountEvent};
pub(super) use socket::{EXIT_SILENT, SocketDevice, SocketEndpoint};

use super::activation::{InheritedSocket, SocketName};
use super::disks::Disks;
use super::error::{ServeError, SocketError};
use super::listener::ListeningSocket;
use super::messages::MessageSender;
use super::nbd_address::NbdAddress;
use super::status::ClientKind;
use super::{ServeOptions, descriptors};
use crate::device::fuse::FuseOptions;
use crate::device::meter::Meter;
use crate::device::nbd::{NbdOptions, TlsConfig};
use crate::device::vhost_blk::DeviceOptions;
use crate::sandbox::{Process, SandboxError};

/// Minimum number of threads if reads may wait for a fetch. VMMs rarely have more reads in flight.
const FETCH_WAITERS: usize = 32;

/// A socket or mount at which clients reach disks.
pub(super) enum Endpoint {
    /// A vhost-user-blk socket: a worker for each connection.
    VhostUser(SocketEndpoint),
    /// An NBD socket: a worker for each connection.
    Nbd(SocketEndpoint),
    /// A file in a FUSE mount: one worker for all readers.
    Fuse(MountEndpoint),
}

impl Endpoint {
    /// The sandbox profile of its workers.
    pub(super) fn profile(&self) -> Process {
        match self {
            Self::VhostUser(_) => Process::VhostWorker,
            Self::Nbd(_) => Process::NbdWorker,
            Self::Fuse(_) => Process::FuseWorker,
        }
    }

    /// The kind of its clients.
    pub(super) fn kind(&self) -> ClientKind {
        match self {
            Self::VhostUser(_) => ClientKind::VhostUser,
            Self::Nbd(_) => ClientKind::Nbd,
            Self::Fuse(_) => ClientKind::Fuse,
        }
    }

    /// The name of the socket, if it is one.
    pub(super) fn listens_at(&self) -> Option<(ClientKind, SocketName)> {
        let socket = self.socket()?;
        Some((self.kind(), socket.name().clone()))
    }

    /// Becomes readable when there is something to do.
    pub(super) fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::VhostUser(socket) | Self::Nbd(socket) => Some(socket.as_fd()),
            Self::Fuse(mount) => mount.as_fd(),
        }
    }

    /// When it must be checked even if it does not become readable.
    pub(super) fn wakes_at(&mut self, now: Instant) -> Option<Instant> {
        match self {
            Self::VhostUser(socket) | Self::Nbd(socket) => socket.waits_until(now),
            Self::Fuse(mount) => mount.retries_at(),
        }
    }

    pub(super) fn socket(&self) -> Option<&SocketEndpoint> {
        match self {
            Self::VhostUser(socket) | Self::Nbd(socket) => Some(socket),
            Self::Fuse(_) => None,
        }
    }

    pub(super) fn socket_mut(&mut self) -> Option<&mut SocketEndpoint> {
        match self {
            Self::VhostUser(socket) | Self::Nbd(socket) => Some(socket),
            Self::Fuse(_) => None,
        }
    }

    pub(super) fn mount_mut(&mut self) -> Option<&mut MountEndpoint> {
        match self {
            Self::VhostUser(_) | Self::Nbd(_) => None,
            Self::Fuse(mount) => Some(mount),
        }
    }

    /// In a worker of another endpoint: closes descriptors and leaves files and mounts to the parent.
    pub(super) fn leave_to_parent(self) {
        match self {
            Self::VhostUser(socket) | Self::Nbd(socket) => drop(socket.into_listener()),
            Self::Fuse(mount) => mount.leave_to_parent(),
        }
    }
}

/// What a worker gets from the server.
pub(super) struct WorkerContext<'c> {
    pub(super) sender: Arc<MessageSender>,
    /// Counters of what it serves.
    pub(super) meter: Meter,
    /// Confines this process. Must be called before it serves a client.
    pub(super) confine: Box<dyn FnOnce() -> Result<(), SandboxError> + 'c>,
}

/// Exit code of a worker, or why it failed.
pub(super) type WorkerResult = Result<u8, Box<dyn std::error::Error>>;

/// Creates the sockets and adds the inherited ones. Mounts nothing yet.
pub(super) fn all(
    disks: &Disks,
    options: &ServeOptions,
    inherited: Vec<InheritedSocket>,
) -> Result<Vec<Endpoint>, ServeError> {
    let mut endpoints = vhost_user_sockets(disks, options, inherited)?;
    let tls = options.nbd_tls.as_ref();
    let tls = tls.map(|tls| TlsConfig::read(&tls.dir, tls.verify_peer));
    let tls = tls.transpose()?;
    for address in &options.nbd {
        let (socket, name) = nbd_socket(address, options, &endpoints)?;
        // Permissions of the file control who can connect to a Unix socket, so it needs no TLS.
        let tls = tls.clone().filter(|_| address.path().is_none());
        let device = SocketDevice::Nbd {
            exports: disks.exports().clone(),
            options: nbd_options(disks, &options.device, tls),
        };
        endpoints.push(Endpoint::Nbd(SocketEndpoint::new(socket, name, device)));
    }
    if let Some(fuse) = options.fuse.clone() {
        let threads = blocking_threads(disks, fuse.threads);
        let fuse = FuseOptions { threads, ..fuse };
        let mount = MountEndpoint::new(fuse, Arc::clone(disks.main()?));
        endpoints.push(Endpoint::Fuse(mount));
    }
    Ok(endpoints)
}

fn vhost_user_sockets(
    disks: &Disks,
    options: &ServeOptions,
    inherited: Vec<InheritedSocket>,
) -> Result<Vec<Endpoint>, ServeError> {
    if options.sockets.is_empty() && inherited.is_empty() {
        return Ok(Vec::new());
    }
    let image = disks.main()?;
    let mut sockets: Vec<(SocketName, ListeningSocket)> = inherited
        .into_iter()
        .map(|socket| (socket.name(), socket.into()))
        .collect();
    for (index, path) in options.sockets.iter().enumerate() {
        if options.sockets[..index].contains(path) {
            let name = path.display().to_string();
            return Err(SocketError::GivenTwice { name }.into());
        }
        let socket = ListeningSocket::bind(path, options.access)?;
        sockets.push((SocketName::Path(path.clone()), socket));
    }
    let device = descriptors::fit_to_limit(&options.device, image.max_open_files())?;
    let endpoint = |(name, socket)| {
        let device = SocketDevice::VhostUser {
            image: Arc::clone(image),
            options: device.clone(),
        };
        Endpoint::VhostUser(SocketEndpoint::new(socket, name, device))
    };
    Ok(sockets.into_iter().map(endpoint).collect())
}

/// Listens at `address`. Fails if one of `others` already does.
fn nbd_socket(
    address: &NbdAddress,
    options: &ServeOptions,
    others: &[Endpoint],
) -> Result<(ListeningSocket, SocketName), SocketError> {
    let check = |name: SocketName| {
        let mut taken = others.iter().filter_map(Endpoint::listens_at);
        match taken.any(|(_, other)| other == name) {
            true => Err(SocketError::GivenTwice {
                name: name.to_string(),
            }),
            false => Ok(name),
        }
    };
    match address {
        NbdAddress::Unix(path) => {
            let name = check(SocketName::Path(path.clone()))?;
            Ok((ListeningSocket::bind(path, options.access)?, name))
        }
        NbdAddress::Tcp(address) => {
            let address = address.resolve(options.nbd_tls.is_none())?;
            check(SocketName::Tcp(address))?;
            let (socket, chosen) = ListeningSocket::bind_tcp(address)?;
            Ok((socket, SocketName::Tcp(chosen)))
        }
    }
}

/// Number of threads for blocking reads. A fetch takes seconds, so if paths may have to be fetched there must be threads
/// left for other reads.
fn blocking_threads(disks: &Disks, wanted: NonZeroUsize) -> NonZeroUsize {
    match (disks.remote(), NonZeroUsize::new(FETCH_WAITERS)) {
        (Some(_), Some(waiters)) => wanted.max(waiters),
        _ => wanted,
    }
}

fn nbd_options(disks: &Disks, device: &DeviceOptions, tls: Option<TlsConfig>) -> NbdOptions {
    NbdOptions {
        threads: blocking_threads(disks, device.threads),
        poll: device.poll,
        tls,
        ..NbdOptions::default()
    }
}
