//! The disk over NBD: the protocol, real clients, and clients that mean harm.

pub mod client;
mod endpoint;
mod hostile;
mod protocol;
mod server;
mod tools;
