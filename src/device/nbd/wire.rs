//! Constants of the protocol, no logic. All integers on the wire are big-endian.
//!
//! Source: `doc/proto.md` of github.com/NetworkBlockDevice/nbd.

/// `NBDMAGIC`: first word of a server's greeting.
pub const GREETING_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// `IHAVEOPT`: second word of the greeting, and first of every option.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// First word of the reply to an option.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// First word of a request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// First word of a simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// First word of a chunk of a structured reply.
pub const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;

/// Length of a request's header.
pub const REQUEST_LEN_BYTES: usize = 28;
/// Length of an option's header.
pub const OPTION_LEN_BYTES: usize = 16;
/// Length of the header of a chunk.
pub const CHUNK_LEN_BYTES: usize = 20;

/// Handshake flags, of the server (16 bits) and of the client (32 bits).
pub mod handshake {
    /// Options have replies.
    pub const FIXED_NEWSTYLE: u16 = 1 << 0;
    /// The reply to `EXPORT_NAME` has no padding.
    pub const NO_ZEROES: u16 = 1 << 1;
}

/// Numbers of options.
pub mod option {
    pub const EXPORT_NAME: u32 = 1;
    pub const ABORT: u32 = 2;
    pub const LIST: u32 = 3;
    pub const STARTTLS: u32 = 5;
    pub const INFO: u32 = 6;
    pub const GO: u32 = 7;
    pub const STRUCTURED_REPLY: u32 = 8;
    pub const LIST_META_CONTEXT: u32 = 9;
    pub const SET_META_CONTEXT: u32 = 10;
}

/// Types of replies to options. Errors have the highest bit set.
pub mod option_reply {
    pub const ACK: u32 = 1;
    pub const SERVER: u32 = 2;
    pub const INFO: u32 = 3;
    pub const META_CONTEXT: u32 = 4;
    pub const ERR_UNSUP: u32 = (1 << 31) + 1;
    pub const ERR_POLICY: u32 = (1 << 31) + 2;
    pub const ERR_INVALID: u32 = (1 << 31) + 3;
    pub const ERR_TLS_REQD: u32 = (1 << 31) + 5;
    pub const ERR_UNKNOWN: u32 = (1 << 31) + 6;
    pub const ERR_TOO_BIG: u32 = (1 << 31) + 9;
}

/// Types of information in the replies to `INFO` and `GO`.
pub mod info {
    pub const EXPORT: u16 = 0;
    pub const NAME: u16 = 1;
    pub const DESCRIPTION: u16 = 2;
    pub const BLOCK_SIZE: u16 = 3;
}

/// Transmission flags: the capabilities of an export.
pub mod transmission {
    pub const HAS_FLAGS: u16 = 1 << 0;
    pub const READ_ONLY: u16 = 1 << 1;
    pub const SEND_FLUSH: u16 = 1 << 2;
    pub const SEND_DF: u16 = 1 << 7;
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
}

/// Types of requests.
pub mod command {
    pub const READ: u16 = 0;
    pub const WRITE: u16 = 1;
    pub const DISC: u16 = 2;
    pub const FLUSH: u16 = 3;
    pub const TRIM: u16 = 4;
    pub const WRITE_ZEROES: u16 = 6;
    pub const BLOCK_STATUS: u16 = 7;
    pub const RESIZE: u16 = 8;
}

/// Flags of requests.
pub mod command_flag {
    /// "Don't fragment": the reply to a read must be one chunk.
    pub const DF: u16 = 1 << 2;
    /// The reply to `BLOCK_STATUS` must be one extent.
    pub const REQ_ONE: u16 = 1 << 3;
}

/// Types of chunks. Errors have the highest bit set.
pub mod chunk {
    pub const OFFSET_DATA: u16 = 1;
    pub const OFFSET_HOLE: u16 = 2;
    pub const BLOCK_STATUS: u16 = 5;
    pub const ERROR: u16 = (1 << 15) + 1;
    /// Flag of the last chunk of a reply.
    pub const FLAG_DONE: u16 = 1 << 0;
}

/// Flags of an extent in the context `base:allocation`.
pub mod allocation {
    pub const HOLE: u32 = 1 << 0;
    pub const ZERO: u32 = 1 << 1;
}

/// The only metadata context that this server has.
pub const BASE_ALLOCATION: &[u8] = b"base:allocation";
/// Its id in `BLOCK_STATUS`. The server chooses the number.
pub const BASE_ALLOCATION_ID: u32 = 1;

/// Error numbers of the protocol, which are those of Linux.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorCode {
    /// Operation not permitted: the disk is read-only.
    Perm,
    /// I/O error: the disk could not be read.
    Io,
    /// Invalid request.
    Inval,
}

impl ErrorCode {
    /// The number on the wire.
    pub fn number(self) -> u32 {
        match self {
            Self::Perm => 1,
            Self::Io => 5,
            Self::Inval => 22,
        }
    }
}
