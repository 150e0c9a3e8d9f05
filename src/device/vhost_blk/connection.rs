//! One connection, from accept to the frontend's leaving.

use std::os::unix::net::UnixListener;
use std::sync::Arc;

use vhost::vhost_user::{Error as VhostError, Listener};
use vhost_user_backend::{Error as DaemonError, VhostUserDaemon};

use super::blk::{BlkDevice, DeviceOptions, Stats};
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
/// `on_accept` is called once the connection has been taken from the socket's queue; the device tells how it fares.
///
/// # Errors
/// When the frontend shares no memory, breaks the protocol, or the host has no resources left. A frontend that simply
/// goes away is no error.
pub fn serve_connection(
    image: Arc<Image>,
    options: &DeviceOptions,
    listener: UnixListener,
    on_accept: impl FnOnce(&Arc<BlkDevice>),
) -> Result<Served, ConnectionError> {
    let memory = SharedMemory::new(Memory::new());
    let device = BlkDevice::new(image, options, memory.clone()).map_err(ConnectionError::Events)?;
    let device = Arc::new(device);
    let mut daemon = VhostUserDaemon::new("vhost-user".into(), device.clone(), memory)
        .map_err(ConnectionError::Protocol)?;
    daemon
        .start(&mut Listener::from(listener))
        .map_err(ConnectionError::Protocol)?;
    on_accept(&device);
    let end = daemon.wait();
    device.leave();
    // Joins the queue threads, so that the counters are final.
    drop(daemon);
    device.finish();
    judge(end, &device)
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
