//! Parses and checks requests.

use super::error::NbdError;
use super::negotiation::{READ_MAX_BYTES, Session};
use super::wire::{ErrorCode, REQUEST_LEN_BYTES, REQUEST_MAGIC, command, command_flag};

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A write to a read-only disk.
    #[error("the client tried to write (request type {kind}): the disk is read-only")]
    Write {
        /// Type of the request.
        kind: u16,
    },
    /// An unknown type.
    #[error("request type {kind} is unknown")]
    Unknown {
        /// Type of the request.
        kind: u16,
    },
    /// Flags that this type does not have, or that were not negotiated.
    #[error("request type {kind} came with flags {flags:#x}")]
    Flags {
        /// Type of the request.
        kind: u16,
        /// All its flags.
        flags: u16,
    },
    /// A length of zero.
    #[error("a request for 0 bytes")]
    Empty,
    /// A read longer than the maximum block size.
    #[error("a read of {len_bytes} bytes is longer than {READ_MAX_BYTES}")]
    TooLong {
        /// Length of the read.
        len_bytes: u32,
    },
    /// The range is not inside the disk.
    #[error("a request for {len_bytes} bytes at {offset} is beyond the end of the disk")]
    Beyond {
        /// First byte.
        offset: u64,
        /// Length of the range.
        len_bytes: u32,
    },
    /// No metadata context was negotiated.
    #[error("a request for the block status without a metadata context")]
    NoContext,
}

impl Refusal {
    /// The error number for the client.
    pub fn code(self) -> ErrorCode {
        match self {
            Self::Write { .. } => ErrorCode::Perm,
            _ => ErrorCode::Inval,
        }
    }
}

/// A checked request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// Read a range, which is on the disk and not empty.
    Read {
        /// First byte on the disk.
        offset: u64,
        /// Length.
        len_bytes: u32,
        /// The reply must be in one piece.
        unfragmented: bool,
    },
    /// Return the allocation of a range, which is on the disk and not empty.
    BlockStatus {
        /// First byte on the disk.
        offset: u64,
        /// Length.
        len_bytes: u32,
        /// Return one extent, which ends within the range.
        one_extent: bool,
    },
    /// Flush writes. There are none, so there is nothing to do.
    Flush,
    /// End the connection.
    Disconnect,
    /// Reply with an error.
    Refused(Refusal),
}

/// A parsed request, and what its reply needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parsed {
    /// The client's identifier for the request.
    pub cookie: u64,
    /// The request.
    pub request: Request,
    /// The reply is a structured one.
    pub structured: bool,
    /// Length of the payload after the header, which must be discarded.
    pub payload_bytes: u32,
}

/// The fields of a header.
#[derive(Debug, Clone, Copy)]
struct Header {
    flags: u16,
    kind: u16,
    cookie: u64,
    offset: u64,
    len_bytes: u32,
}

/// Parses a request of `session`.
///
/// # Errors
/// The bytes are no request. The start of the next one is then unknown, so the connection must be closed.
pub fn parse(bytes: &[u8; REQUEST_LEN_BYTES], session: &Session) -> Result<Parsed, NbdError> {
    let header = Header::read(bytes)?;
    let request = header.request(session).unwrap_or_else(Request::Refused);
    let has_chunks = matches!(header.kind, command::READ | command::BLOCK_STATUS);
    Ok(Parsed {
        cookie: header.cookie,
        request,
        structured: session.structured && has_chunks,
        payload_bytes: match header.kind {
            command::WRITE => header.len_bytes,
            _ => 0,
        },
    })
}

impl Header {
    fn read(bytes: &[u8; REQUEST_LEN_BYTES]) -> Result<Self, NbdError> {
        let [m0, m1, m2, m3, f0, f1, k0, k1, rest @ ..] = *bytes;
        let [c0, c1, c2, c3, c4, c5, c6, c7, rest @ ..] = rest;
        let [o0, o1, o2, o3, o4, o5, o6, o7, len @ ..] = rest;
        let magic = u32::from_be_bytes([m0, m1, m2, m3]);
        if magic != REQUEST_MAGIC {
            return Err(NbdError::RequestMagic { magic });
        }
        Ok(Self {
            flags: u16::from_be_bytes([f0, f1]),
            kind: u16::from_be_bytes([k0, k1]),
            cookie: u64::from_be_bytes([c0, c1, c2, c3, c4, c5, c6, c7]),
            offset: u64::from_be_bytes([o0, o1, o2, o3, o4, o5, o6, o7]),
            len_bytes: u32::from_be_bytes(len),
        })
    }

    fn request(self, session: &Session) -> Result<Request, Refusal> {
        match self.kind {
            command::READ => self.read_request(session),
            command::BLOCK_STATUS => self.status_request(session),
            command::FLUSH => self.with_flags(0).map(|()| Request::Flush),
            // It has no reply, so it cannot be refused.
            command::DISC => Ok(Request::Disconnect),
            kind @ (command::WRITE | command::TRIM | command::WRITE_ZEROES | command::RESIZE) => {
                Err(Refusal::Write { kind })
            }
            kind => Err(Refusal::Unknown { kind }),
        }
    }

    fn read_request(self, session: &Session) -> Result<Request, Refusal> {
        self.with_flags(if session.structured {
            command_flag::DF
        } else {
            0
        })?;
        self.check_range(session)?;
        let len_bytes = self.len_bytes;
        if len_bytes > READ_MAX_BYTES {
            return Err(Refusal::TooLong { len_bytes });
        }
        Ok(Request::Read {
            offset: self.offset,
            len_bytes,
            unfragmented: self.flags & command_flag::DF != 0,
        })
    }

    fn status_request(self, session: &Session) -> Result<Request, Refusal> {
        if !session.base_allocation {
            return Err(Refusal::NoContext);
        }
        self.with_flags(command_flag::REQ_ONE)?;
        self.check_range(session)?;
        Ok(Request::BlockStatus {
            offset: self.offset,
            len_bytes: self.len_bytes,
            one_extent: self.flags & command_flag::REQ_ONE != 0,
        })
    }

    fn with_flags(self, allowed: u16) -> Result<(), Refusal> {
        let Self { flags, kind, .. } = self;
        match flags & !allowed {
            0 => Ok(()),
            _ => Err(Refusal::Flags { kind, flags }),
        }
    }

    fn check_range(self, session: &Session) -> Result<(), Refusal> {
        let Self {
            offset, len_bytes, ..
        } = self;
        let end = offset.checked_add(len_bytes.into());
        let disk_len_bytes = session.export.image.len_bytes();
        if end.is_none_or(|end| end > disk_len_bytes) {
            return Err(Refusal::Beyond { offset, len_bytes });
        }
        match len_bytes {
            0 => Err(Refusal::Empty),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
