//! One connection, from accept to the frontend's leaving.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::sync::Arc;

use rustix::fs::{FileType, fstat};

use vhost::vhost_user::{Error as VhostError, Listener};
use vhost_user_backend::{Error as DaemonError, VhostUserDaemon};

use super::super::meter::{Meter, Stats};
use super::blk::{BlkDevice, DeviceOptions};
use super::error::ConnectionError;
use super::guest::{Memory, SharedMemory};
use crate::image::Image;

/// What came of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Served {
    /// A frontend used the disk, or was about to.
    Frontend(Stats),
    /// Someone connected and left without a word, as probes for a living socket do.
    Nobody,
}

/// Accepts one connection from a listening, blocking socket and serves it until the frontend leaves.
///
/// `on_accept` is called once the connection has been taken from the socket's queue; the device tells how it fares, and the
/// descriptor when the frontend hangs up. This function may not return then: a frontend can have threads wait for what
/// never happens, in guest memory that a file system of its own provides, or at a call descriptor. A caller that
/// must not wait for that ends the process. There is no descriptor if other threads open files meanwhile.
///
/// # Errors
/// When the frontend shares no memory, breaks the protocol, or the host has no resources left. A frontend that simply
/// goes away is no error.
pub fn serve_connection(
    image: Arc<Image>,
    options: &DeviceOptions,
    meter: Meter,
    listener: UnixListener,
    on_accept: impl FnOnce(&Arc<BlkDevice>, Option<OwnedFd>),
) -> Result<Served, ConnectionError> {
    let memory = SharedMemory::new(Memory::new());
    let device =
        BlkDevice::new(image, options, meter, memory.clone()).map_err(ConnectionError::Events)?;
    let device = Arc::new(device);
    let mut daemon = VhostUserDaemon::new("vhost-user".into(), device.clone(), memory)
        .map_err(ConnectionError::Protocol)?;
    let number = number_of_second(&listener);
    daemon
        .start(&mut Listener::from(listener))
        .map_err(ConnectionError::Protocol)?;
    on_accept(&device, number.and_then(duplicate));
    let end = daemon.wait();
    device.leave();
    // Joins the queue threads, so that the counters are final.
    drop(daemon);
    device.finish();
    judge(end, &device)
}

/// The number of the second descriptor from now on. The daemon's first is the connection, its second a copy that it keeps
/// until it has been waited for; it shows neither.
fn number_of_second(listener: &UnixListener) -> Option<RawFd> {
    let first = listener.try_clone().ok()?;
    let second = listener.try_clone().ok()?;
    drop(first);
    Some(second.as_raw_fd())
}

#[allow(unsafe_code)]
fn duplicate(number: RawFd) -> Option<OwnedFd> {
    // SAFETY: the daemon holds this descriptor; should it be another one, or none, `dup` says so or it is no socket.
    let connection = unsafe { BorrowedFd::borrow_raw(number) };
    let copy = connection.try_clone_to_owned().ok()?;
    let stat = fstat(&copy).ok()?;
    (FileType::from_raw_mode(stat.st_mode) == FileType::Socket).then_some(copy)
}

/// Tells a frontend that left from one that was thrown out.
fn judge(end: Result<(), DaemonError>, device: &BlkDevice) -> Result<Served, ConnectionError> {
    match end {
        _ if !device.was_addressed() => Ok(Served::Nobody),
        Ok(())
        | Err(DaemonError::HandleRequest(VhostError::Disconnected | VhostError::PartialMessage)) => {
            Ok(Served::Frontend(device.stats()))
        }
        // Setting a ring's addresses is the first thing that fails without memory.
        Err(DaemonError::HandleRequest(_)) if !device.has_memory() => {
            Err(ConnectionError::MemoryNotShared)
        }
        Err(error) => Err(ConnectionError::Protocol(error)),
    }
}
