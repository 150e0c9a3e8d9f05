//! The disk over NBD: the protocol, real clients, and clients that mean harm.
// A helper that cannot go on should panic, as a test does.
#![allow(clippy::unwrap_used)]

#[path = "nbd/client.rs"]
mod client;
mod common;
#[path = "nbd/endpoint.rs"]
mod endpoint;
#[path = "nbd/hostile.rs"]
mod hostile;
#[path = "nbd/protocol.rs"]
mod protocol;
#[path = "nbd/server.rs"]
mod server;
#[path = "nbd/tools.rs"]
mod tools;
