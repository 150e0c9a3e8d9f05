//! Errors of a vhost-user connection.

use std::io;

/// Why a vhost-user connection failed.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// The frontend shared no memory, like QEMU without `share=on`.
    #[error(
        "the VM's memory is not shared: add -object memory-backend-memfd,id=mem,size=SIZE,share=on \
         -machine memory-backend=mem"
    )]
    MemoryNotShared,
    /// The frontend violated the protocol, or the connection failed.
    #[error("the connection to the frontend failed: {0}")]
    Protocol(vhost_user_backend::Error),
    /// The host has no resources for the exit events of queue threads.
    #[error("cannot create events: {0}")]
    Events(io::Error),
}
