//! The disk over NBD: the protocol, real clients, and clients that mean harm.

pub mod client;
mod endpoint;
mod exports;
mod guest;
mod hostile;
mod pki;
mod program;
mod protocol;
mod server;
mod tcp;
mod tls;
mod tools;
