//! The disk as a vhost-user-blk device and as a file.
//!
//! A device's request passes from left to right and never back:
//!
//! | module | what it does |
//! |---|---|
//! | [`guest`] | guest memory as buffers: copy in, zero, `preadv` straight from a host file |
//! | [`request`] | descriptor chain to request value; every check of what a guest may send |
//! | [`execute`] | request value to bytes in guest memory and a status byte |
//! | [`ring`] | a virtqueue that survives the death of the process that serves it |
//! | [`config`] | what the device says about itself: features and configuration space |
//! | [`blk`] | the device: batches of requests, threads, counters |
//! | `vhost` | one connection, from accept to the frontend's leaving |
//! | [`fuse`] | the file, in a FUSE mount |
//! | `socket` | the listening socket: stale and live ones, permissions, removal |
//! | `workers` | one process per connection or mount |
//! | `frontend` | the options a frontend needs |
//!
//! Nothing here knows EROFS: the disk is an [`Image`](crate::image::Image).

pub mod blk;
pub mod config;
mod error;
pub mod execute;
mod frontend;
pub mod fuse;
pub mod guest;
mod limit;
pub mod request;
pub mod ring;
mod socket;
#[cfg(test)]
mod testing;
mod vhost;
mod workers;

pub use blk::{DeviceOptions, Stats};
pub use error::TransportError;
pub use frontend::{qemu_drive, qemu_options};
pub use fuse::FuseOptions;
pub use vhost::{Served, serve_connection};
pub use workers::{ServeOptions, ServeOutcome, serve};
