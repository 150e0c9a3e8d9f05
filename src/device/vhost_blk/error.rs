//! Why a vhost-user connection ended badly.

use std::io;

/// Why a vhost-user connection ended badly.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// The frontend shared no memory, as QEMU does without `share=on`.
    #[error(
        "the VM's memory is not shared: add -object memory-backend-memfd,id=mem,size=SIZE,share=on \
         -machine memory-backend=mem"
    )]
    MemoryNotShared,
    /// The frontend said something that makes no sense, or the connection failed.
    #[error("the connection to the frontend failed: {0}")]
    Protocol(vhost_user_backend::Error),
    /// The host has nothing left for the events that queue threads wait on.
    #[error("cannot create events: {0}")]
    Events(io::Error),
}
