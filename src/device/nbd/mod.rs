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
//! | `certificates` | what a server encrypts with, and whom it believes |
//! | `options` | what a client gets |
//! | `socket` | a connected socket |
//! | `stream` | a connection, plain or encrypted |
//! | `input` | what was received and not yet looked at |
//! | `transmission` | batches of requests, from the socket and back to it |
//! | `connection` | one connection, from the greeting to the client's leaving |

pub mod answer;
mod certificates;
mod connection;
pub mod disk;
mod error;
pub mod exports;
mod input;
pub mod negotiation;
pub mod option;
mod options;
pub mod reply;
pub mod request;
mod socket;
mod stream;
mod transmission;
#[allow(missing_docs)] // The names are the protocol's.
pub mod wire;

pub use certificates::{TlsConfig, TlsError};
pub use connection::{Served, serve_connection};
pub use error::NbdError;
pub use exports::{Export, ExportName, Exports, ExportsError, NotAName, repeated};
pub use options::NbdOptions;
