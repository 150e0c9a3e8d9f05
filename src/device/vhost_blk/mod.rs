//! A vhost-user-blk device.
//!
//! The modules, roughly from the bottom up:
//!
//! | module | what it does |
//! |---|---|
//! | [`guest`] | guest memory as scatter-gather buffers |
//! | [`request`] | parses and checks descriptor chains |
//! | [`execute`] | executes a request: writes data and the status byte to guest memory |
//! | [`dirty`] | the dirty log, for snapshots and migration |
//! | [`inflight`] | requests taken from the ring and not published yet |
//! | `offload` | coordinates the pool's threads with a ring |
//! | [`ring`] | a virtqueue that survives crashes of the process that serves it |
//! | `used` | publishes requests in the used ring, and decides about interrupts |
//! | `call` | interrupts the guest |
//! | `vring` | implements `vhost-user-backend`'s trait for a ring: changes by the frontend |
//! | `poller` | decides how long a thread polls before it sleeps |
//! | [`config`] | features and configuration space |
//! | `idle` | slows down threads with spurious wake-ups |
//! | `pool` | threads for blocking work |
//! | `sync` | the synchronisation primitives of rings and the pool, replaceable in tests |
//! | `engine` | serves batches of requests |
//! | [`blk`] | the device as the frontend sees it, and its threads |
//! | `error` | errors of a connection |
//! | `connection` | serves one connection |

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

pub use blk::{BlkDevice, DEFAULT_POLL_US, DeviceOptions};
pub use config::QUEUES;
pub use connection::{Served, serve_connection};
pub use error::ConnectionError;
