use std::io;

/// Why a connection ended early.
#[derive(Debug, thiserror::Error)]
pub enum NbdError {
    /// Not the protocol: flags that were not offered.
    #[error("the NBD client asked for handshake flags {flags:#x}, which were not offered")]
    Flags {
        /// All that it sent.
        flags: u32,
    },
    /// Not the protocol: an option begins otherwise.
    #[error("the NBD client sent {magic:#x} where an option begins")]
    OptionMagic {
        /// What it sent.
        magic: u64,
    },
    /// An option other than `EXPORT_NAME` from a client whose protocol has no answers.
    #[error("the NBD client sent option {option} without the fixed newstyle handshake")]
    NotFixed {
        /// Its number.
        option: u32,
    },
    /// It goes on and on.
    #[error("the NBD client sent more than {max} options")]
    TooManyOptions {
        /// How many are allowed.
        max: u32,
    },
    /// `EXPORT_NAME` has no other answer than the end.
    #[error("the NBD client asked for export \"{name}\", which there is not")]
    UnknownExport {
        /// The name, made printable.
        name: String,
    },
    /// The negotiation took too long.
    #[error("the NBD client did not finish its negotiation within {seconds} s")]
    Late {
        /// How long it may take.
        seconds: u64,
    },
    /// What came before the connection was encrypted may be somebody else's.
    #[error("the NBD client sent more than the option with which it asked for TLS")]
    BeforeTls,
    /// `EXPORT_NAME` without TLS has no other answer than the end.
    #[error("the NBD client asked for an export without TLS")]
    NotEncrypted,
    /// No agreement about TLS.
    #[error("the NBD client and this server do not agree about TLS: {0}")]
    Handshake(io::Error),
    /// Not the protocol: a request begins otherwise.
    #[error("the NBD client sent {magic:#x} where a request begins")]
    RequestMagic {
        /// What it sent.
        magic: u32,
    },
    /// The client left in the middle of a message.
    #[error("the NBD client left in the middle of a message")]
    Cut,
    /// The connection failed.
    #[error("the connection to the NBD client failed: {0}")]
    Connection(#[from] io::Error),
}
