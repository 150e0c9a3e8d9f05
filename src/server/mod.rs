//! The processes that serve a disk: the listener, and a worker for each connection or mount.
//!
//! | module | what it does |
//! |---|---|
//! | `socket` | the listening sockets: stale and live ones, permissions, removal |
//! | `activation` | listening sockets that systemd hands over |
//! | `descriptors` | how many VMs there are descriptors for |
//! | `workers` | one process per connection or mount |

mod activation;
mod descriptors;
mod socket;
mod workers;

pub use activation::{InheritedSocket, SocketName};
pub use socket::SocketAccess;
pub(crate) use workers::{Forked, fork_tied};
pub use workers::{ServeEvent, ServeOptions, ServeOutcome, serve};
