//! Errors of `lazystore status`.

use std::io;
use std::path::PathBuf;

/// Why the status cannot be shown.
#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    /// No server is running.
    #[error(
        "no server of this user is running: start one with `lazystore serve`, or name its socket"
    )]
    NoServer,
    /// The kernel's list of sockets cannot be read.
    #[error("cannot look for servers in /proc/net/unix: {0}: name a server's socket instead")]
    List(io::Error),
    /// No server answers at a socket.
    #[error("no server answers at {}: {source}", socket.display())]
    Ask {
        /// The socket.
        socket: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A socket belongs to another program.
    #[error("the server at {} is not a lazystore of this version: {source}", socket.display())]
    Answer {
        /// The socket.
        socket: PathBuf,
        /// What is wrong with the answer.
        source: serde_json::Error,
    },
}
