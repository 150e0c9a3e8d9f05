//! Where clients find the disk.
//!
//! An endpoint owns what it listens on or has mounted, knows the sandbox profile of its workers, and how they run. To add
//! one: a variant here, a file beside `socket`, a [`Process`] in `sandbox`.

mod mount;
mod socket;

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Instant;

pub(super) use mount::{MountEndpoint, MountNews};
pub(super) use socket::{EXIT_SILENT, SocketDevice, SocketEndpoint};

use super::report::Reporter;
use crate::image::Image;
use crate::sandbox::Process;

/// A place where clients find the disk.
pub(super) enum Endpoint {
    /// A vhost-user-blk socket: a worker for each connection.
    VhostUser(SocketEndpoint),
    /// An NBD socket: a worker for each connection.
    Nbd(SocketEndpoint),
    /// A file in a FUSE mount: one worker for all readers.
    Fuse(MountEndpoint),
}

impl Endpoint {
    /// What workers of this endpoint are confined to.
    pub(super) fn profile(&self) -> Process {
        match self {
            Self::VhostUser(_) => Process::VhostWorker,
            Self::Nbd(_) => Process::NbdWorker,
            Self::Fuse(_) => Process::FuseWorker,
        }
    }

    /// What becomes readable when there is something to do.
    pub(super) fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::VhostUser(socket) | Self::Nbd(socket) => Some(socket.as_fd()),
            Self::Fuse(mount) => mount.as_fd(),
        }
    }

    /// When it wants to be looked at, whether anything is readable or not.
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

/// What a worker has of its server.
pub(super) struct WorkerContext<'c> {
    pub(super) image: Arc<Image>,
    pub(super) reporter: Arc<Reporter>,
    /// Confines this process; to be called before it meets a client.
    pub(super) confine: &'c dyn Fn() -> Result<(), crate::sandbox::SandboxError>,
}
