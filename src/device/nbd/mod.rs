//! An NBD server, for clients that cannot share memory with this host.
//!
//! `wire`, `option` and `request` parse; `negotiation` and `execute` process; `reply` writes.
//!
//! | module | what it does |
//! |---|---|
//! | [`wire`] | constants of the protocol, no logic |
//! | [`exports`] | the disks, by name |
//! | [`option`] | parses and checks the options of the handshake |
//! | [`negotiation`] | the state machine of the handshake; works on bytes, has no socket |
//! | [`request`] | parses and checks requests |
//! | [`disk`] | reads and extents of an image |
//! | [`reply`] | encodes replies |
//! | [`execute`] | carries out a request and writes its reply |
//! | `certificates` | the server's certificate, and the certificates that it accepts |
//! | `options` | settings |
//! | `socket` | a connected socket |
//! | `stream` | a connection, plain or with TLS |
//! | `input` | buffer for received bytes |
//! | `transmission` | receives requests, executes them, sends replies |
//! | `connection` | serves one connection, from the greeting to its end |

mod certificates;
mod connection;
pub mod disk;
mod error;
pub mod execute;
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
pub use exports::{Export, ExportName, ExportNameError, Exports, ExportsError, first_duplicate};
pub use options::NbdOptions;
