use std::io;

/// Why a connection ended early.
#[derive(Debug, thiserror::Error)]
pub enum NbdError {
    /// The client set handshake flags that the server had not offered.
    #[error("the NBD client asked for handshake flags {flags:#x}, which were not offered")]
    Flags {
        /// All flags that it sent.
        flags: u32,
    },
    /// An option does not begin with `IHAVEOPT`.
    #[error("the NBD client sent {magic:#x} where an option begins")]
    OptionMagic {
        /// What it sent.
        magic: u64,
    },
    /// An option other than `EXPORT_NAME` without the fixed newstyle handshake, in which other options have no replies.
    #[error("the NBD client sent option {option} without the fixed newstyle handshake")]
    NotFixed {
        /// Its number.
        option: u32,
    },
    /// The client sent more options than any real client needs.
    #[error("the NBD client sent more than {max} options")]
    TooManyOptions {
        /// How many are allowed.
        max: u32,
    },
    /// `EXPORT_NAME` named an unknown export. The option has no error reply, so the connection is closed.
    #[error("the NBD client asked for export \"{name}\", which does not exist")]
    UnknownExport {
        /// The name, escaped.
        name: String,
    },
    /// The handshake took too long.
    #[error("the NBD client did not finish the handshake within {seconds} s")]
    HandshakeTimeout {
        /// How long it may take.
        seconds: u64,
    },
    /// The client sent unencrypted bytes after `STARTTLS`. An attacker on the network could have added them.
    #[error("the NBD client sent unencrypted data after NBD_OPT_STARTTLS")]
    UnencryptedData,
    /// `EXPORT_NAME` without TLS. The option has no error reply, so the connection is closed.
    #[error("the NBD client asked for an export without TLS")]
    TlsRequired,
    /// The TLS handshake failed.
    #[error("the TLS handshake with the NBD client failed: {0}")]
    TlsHandshake(io::Error),
    /// A request does not begin with the magic number.
    #[error("the NBD client sent {magic:#x} where a request begins")]
    RequestMagic {
        /// What it sent.
        magic: u32,
    },
    /// The client closed the connection in the middle of a message.
    #[error("the NBD client disconnected in the middle of a message")]
    UnexpectedEof,
    /// The connection failed.
    #[error("the connection to the NBD client failed: {0}")]
    Connection(#[from] io::Error),
}
