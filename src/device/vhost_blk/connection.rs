//! Serves one vhost-user connection.

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

/// The result of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Served {
    /// A frontend sent at least one message.
    Frontend(Stats),
    /// A client connected and disconnected without a message, like probes that check for a listening socket.
    NoFrontend,
}

/// Accepts one connection from a listening, blocking socket and serves it until the frontend disconnects.
///
/// `on_accept` is called after accept(2), with the device and a copy of the connection's descriptor, to detect when the
/// frontend hangs up. This function may not return even then: a malicious frontend can block threads for ever, with
/// guest memory from a file system of its own, or with a call descriptor. A caller that must not wait for that should
/// end the process. The descriptor is `None` if other threads opened files at the same time.
///
/// # Errors
/// The frontend shares no memory or violates the protocol, or the host has no resources left. A frontend that simply
/// disconnects is not an error.
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
    // This joins the queue threads, so that the counters are final.
    drop(daemon);
    device.finish();
    classify(end, &device)
}

/// The number that the second descriptor opened from now on will have. The daemon's first descriptor is the connection,
/// its second is a copy that it keeps until `wait` returns. It gives access to neither, so we predict the number.
fn number_of_second(listener: &UnixListener) -> Option<RawFd> {
    let first = listener.try_clone().ok()?;
    let second = listener.try_clone().ok()?;
    drop(first);
    Some(second.as_raw_fd())
}

#[allow(unsafe_code)]
fn duplicate(number: RawFd) -> Option<OwnedFd> {
    // SAFETY: the daemon keeps this descriptor open. If the prediction is wrong, dup(2) fails or the check for a socket
    // does.
    let connection = unsafe { BorrowedFd::borrow_raw(number) };
    let copy = connection.try_clone_to_owned().ok()?;
    let stat = fstat(&copy).ok()?;
    (FileType::from_raw_mode(stat.st_mode) == FileType::Socket).then_some(copy)
}

/// Distinguishes a frontend that disconnected from one that caused an error.
fn classify(end: Result<(), DaemonError>, device: &BlkDevice) -> Result<Served, ConnectionError> {
    match end {
        _ if !device.was_addressed() => Ok(Served::NoFrontend),
        Ok(())
        | Err(DaemonError::HandleRequest(VhostError::Disconnected | VhostError::PartialMessage)) => {
            Ok(Served::Frontend(device.stats()))
        }
        // Without memory, the first message that fails is the one that sets a ring's addresses.
        Err(DaemonError::HandleRequest(_)) if !device.has_memory() => {
            Err(ConnectionError::MemoryNotShared)
        }
        Err(error) => Err(ConnectionError::Protocol(error)),
    }
}
