//! The disk over NBD, for clients that share no memory with this host's processes.
//!
//! A request passes from left to right and never back:
//!
//! | module | what it does |
//! |---|---|
//! | [`wire`] | numbers of the protocol, no logic |
//! | [`exports`] | the disks, by name |
//! | [`option`] | an option's bytes to a value; every check of what a client may send before it reads |
//! | [`negotiation`] | options to answers, and in the end to a session; no socket |
//! | [`request`] | a request's bytes to a value; every check of what a client may ask |
//! | [`disk`] | the disk as this device needs it |
//! | [`reply`] | replies as bytes |
//! | [`answer`] | request value to reply bytes |
//! | `options` | what a client gets |
//! | `stream` | a connected socket |
//! | `transmission` | batches of requests, from the socket and back to it |
//! | `connection` | one connection, from the greeting to the client's leaving |

pub mod answer;
mod connection;
pub mod disk;
mod error;
pub mod exports;
pub mod negotiation;
pub mod option;
mod options;
pub mod reply;
pub mod request;
mod stream;
mod transmission;
#[allow(missing_docs)] // The names are the protocol's.
pub mod wire;

pub use connection::{Served, serve_connection};
pub use error::NbdError;
pub use exports::{Export, Exports};
pub use options::NbdOptions;
