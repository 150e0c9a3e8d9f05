//! Why a status cannot be told.

use std::io;
use std::path::PathBuf;

/// Why a status cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    /// Nobody serves.
    #[error(
        "no server of this user is running: start one with `lazystore serve`, or name its socket"
    )]
    NoServer,
    /// The kernel's list of sockets.
    #[error("cannot look for servers in /proc/net/unix: {0}: name a server's socket instead")]
    List(io::Error),
    /// Nobody answers.
    #[error("no server answers at {}: {source}", socket.display())]
    Ask {
        /// Where.
        socket: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Somebody else answers.
    #[error("what answers at {} is no lazystore of this version: {source}", socket.display())]
    Answer {
        /// Where.
        socket: PathBuf,
        /// What is wrong with the answer.
        source: serde_json::Error,
    },
}
