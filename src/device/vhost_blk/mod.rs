//! The disk as a vhost-user-blk device.
//!
//! A request passes from left to right and never back:
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
//! | `error` | why a connection ended badly |
//! | `connection` | one connection, from accept to the frontend's leaving |

pub mod blk;
pub mod config;
mod connection;
mod engine;
mod error;
pub mod execute;
pub mod guest;
pub mod inflight;
pub(super) mod poller;
pub(super) mod pool;
pub mod request;
pub mod ring;
mod stats;
#[cfg(test)]
mod testing;

pub use blk::{BlkDevice, DeviceOptions, Stats};
pub use config::QUEUES;
pub use connection::{Served, serve_connection};
pub use error::ConnectionError;
