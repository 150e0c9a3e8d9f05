//! The disk as a vhost-user-blk device and as a file.
//!
//! A device's request passes from left to right and never back:
//!
//! | module | what it does |
//! |---|---|
//! | [`guest`] | guest memory as buffers: copy in, zero, `preadv` straight from a host file |
//! | [`request`] | descriptor chain to request value; every check of what a guest may send |
//! | [`execute`] | request value to bytes in guest memory and a status byte |
//! | [`inflight`] | requests taken and not yet published, in the order of the ring |
//! | [`ring`] | a virtqueue that survives the death of the process that serves it |
//! | `poller` | how long a thread looks for requests before it sleeps |
//! | [`config`] | what the device says about itself: features and configuration space |
//! | `pool` | threads for what would block |
//! | `engine` | batches of requests, from the ring and back to it |
//! | [`blk`] | the device: what a frontend asks of it, and its threads |
//! | `vhost` | one connection, from accept to the frontend's leaving |
//! | [`fuse`] | the file, in a FUSE mount |
//! | `socket` | the listening sockets: stale and live ones, permissions, removal |
//! | `activation` | listening sockets that systemd hands over |
//! | `workers` | one process per connection or mount |
//! | `frontend` | the options a frontend needs |
//!
//! Nothing here knows EROFS: the disk is an [`Image`](crate::image::Image).

mod activation;
pub mod blk;
pub mod config;
mod descriptors;
mod engine;
mod error;
pub mod execute;
mod frontend;
pub mod fuse;
pub mod guest;
pub mod inflight;
mod limit;
mod poller;
mod pool;
pub mod request;
pub mod ring;
mod socket;
mod stats;
#[cfg(test)]
mod testing;
mod vhost;
mod workers;

pub use activation::{InheritedSocket, SocketName};
pub use blk::{DeviceOptions, Stats};
pub use config::QUEUES;
pub use error::TransportError;
pub use frontend::{qemu_drive, qemu_escape, qemu_options};
pub use fuse::{FuseOptions, clear_mount};
pub use socket::SocketAccess;
pub use vhost::{Served, serve_connection};
pub(crate) use workers::{Forked, fork_tied};
pub use workers::{ServeEvent, ServeOptions, ServeOutcome, serve};
