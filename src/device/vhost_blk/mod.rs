//! The disk as a vhost-user-blk device.
//!
//! A request passes from left to right and never back:
//!
//! | module | what it does |
//! |---|---|
//! | [`guest`] | guest memory as buffers: copy in, zero, `preadv` straight from a host file |
//! | [`request`] | descriptor chain to request value; every check of what a guest may send |
//! | [`execute`] | request value to bytes in guest memory and a status byte |
//! | [`dirty`] | which pages were written to, for a frontend that saves or moves its VM |
//! | [`inflight`] | requests taken and not yet published, in the order of the ring |
//! | `offload` | what threads of the pool do for one ring, and how it is ended |
//! | [`ring`] | a virtqueue that survives the death of the process that serves it |
//! | `used` | the used ring: what is published, and whether the driver wants an interrupt |
//! | `call` | how the guest is interrupted |
//! | `vring` | a ring as `vhost-user-backend` wants it: what the frontend's messages do to it |
//! | `poller` | how long a thread looks for requests before it sleeps |
//! | [`config`] | what the device says about itself: features and configuration space |
//! | `idle` | wake-ups that find nothing to do |
//! | `pool` | threads for what would block |
//! | `sync` | the locks, atomics and threads of rings and the pool |
//! | `engine` | batches of requests, from the ring and back to it |
//! | [`blk`] | the device: what a frontend asks of it, and its threads |
//! | `error` | why a connection ended badly |
//! | `connection` | one connection, from accept to the frontend's leaving |

pub mod blk;
mod call;
pub mod config;
mod connection;
pub mod dirty;
mod engine;
mod error;
pub mod execute;
pub mod guest;
mod idle;
pub mod inflight;
#[cfg(test)]
mod model;
pub mod offload;
pub(super) mod poller;
pub(super) mod pool;
pub mod request;
pub mod ring;
#[cfg(test)]
mod stress;
mod sync;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod used;
mod vring;

pub use blk::{BlkDevice, DeviceOptions};
pub use config::QUEUES;
pub use connection::{Served, serve_connection};
pub use error::ConnectionError;
