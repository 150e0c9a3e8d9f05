//! The messages between workers and the fetcher, over a socket that preserves message boundaries.
//!
//! Neither side trusts the other: malformed messages are dropped.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixDatagram;

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, send, socketpair};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

/// The longest text in a message, in bytes. Longer texts are truncated.
pub const TEXT_MAX_BYTES: usize = 800;

/// The longest message, in bytes.
const MESSAGE_MAX_BYTES: usize = HEAD_BYTES + DIGEST_BYTES + TEXT_MAX_BYTES;

const HEAD_BYTES: usize = 12;
const DIGEST_BYTES: usize = 32;

/// Kinds of answers.
const FILE: u8 = 0;
const FAILED: u8 = 1;
const IN_PIECES: u8 = 2;

/// SHA-256 of a packed tree.
pub type Digest = [u8; DIGEST_BYTES];

/// In place of a digest: the file is not a verified NAR.
pub const NOT_VERIFIED: Digest = [0; DIGEST_BYTES];

/// Length of a piece of a NAR, in bytes. The last piece may be shorter.
pub const PIECE_BYTES: u64 = 1 << 20;

/// Returns the pieces that contain a range of bytes.
pub fn pieces_of(bytes: Range<u64>) -> Range<u32> {
    let number = |piece: u64| u32::try_from(piece).unwrap_or(u32::MAX);
    number(bytes.start / PIECE_BYTES)..number(bytes.end.div_ceil(PIECE_BYTES))
}

/// A requestable part of a store path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PathPart {
    /// Its tree in the form of [`NarTree::to_packed`](crate::source::nar::NarTree::to_packed), possibly unverified.
    Tree,
    /// Its NAR, uncompressed and verified.
    Nar,
    /// A piece of its NAR, unverified, in a file at its offset in the NAR; or the whole NAR, verified.
    Piece(u32),
}

/// A request: a part of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FetchRequest {
    /// The part.
    pub part: PathPart,
    /// The number of the path among the disk's paths that are not on the host.
    pub path: u32,
}

/// The result of a successful request.
#[derive(Debug)]
pub enum Fetched {
    /// A file.
    File {
        /// For a verified NAR the digest of its packed tree, otherwise [`NOT_VERIFIED`].
        digest: Digest,
        /// Open for reading.
        file: File,
    },
    /// The NAR must be requested in pieces.
    InPieces,
}

impl Fetched {
    fn try_clone(&self) -> io::Result<Self> {
        Ok(match self {
            Self::File { digest, file } => Self::File {
                digest: *digest,
                file: file.try_clone()?,
            },
            Self::InPieces => Self::InPieces,
        })
    }
}

/// A message of the fetcher.
#[derive(Debug)]
pub enum Answer {
    /// The fetcher has started or restarted. Requests that are not yet answered must be repeated.
    Hello,
    /// The request succeeded.
    Here {
        /// The request.
        request: FetchRequest,
        /// The packed tree, the NAR, or a file with the piece.
        found: Fetched,
    },
    /// The request failed.
    Failed {
        /// The request.
        request: FetchRequest,
        /// The reason, as a sentence.
        reason: String,
    },
}

impl Answer {
    /// Duplicates the answer for another connection. Gives a failure if no descriptors are left.
    pub fn try_clone(&self) -> Self {
        match self {
            Self::Hello => Self::Hello,
            Self::Failed { request, reason } => Self::Failed {
                request: *request,
                reason: reason.clone(),
            },
            Self::Here { request, found } => match found.try_clone() {
                Ok(found) => Self::Here {
                    request: *request,
                    found,
                },
                Err(error) => Self::Failed {
                    request: *request,
                    reason: error.to_string(),
                },
            },
        }
    }
}

/// One end of a connection between two processes.
#[derive(Debug)]
pub struct Connection(UnixDatagram);

impl Connection {
    /// Returns both ends of a new connection.
    ///
    /// # Errors
    /// No descriptors are left.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (family, kind) = (AddressFamily::Unix, SockType::SeqPacket);
        let (one, other) = socketpair(family, kind, None, SockFlag::SOCK_CLOEXEC)?;
        Ok((Self::from(one), Self::from(other)))
    }

    /// Sends a request. Does not wait.
    ///
    /// # Errors
    /// The fetcher has ended, or has many requests queued: [`io::ErrorKind::WouldBlock`].
    pub fn send_request(&self, request: FetchRequest) -> io::Result<()> {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        send(self.0.as_raw_fd(), &request.head(), flags)?;
        Ok(())
    }

    /// Waits for the next request. Returns `None` for a malformed one.
    ///
    /// # Errors
    /// The other process has ended: [`io::ErrorKind::UnexpectedEof`].
    pub fn next_request(&self) -> io::Result<Option<FetchRequest>> {
        let mut message = [0; HEAD_BYTES + 1];
        match self.0.recv(&mut message)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            HEAD_BYTES => Ok(FetchRequest::parse(&message[..HEAD_BYTES])),
            _ => Ok(None),
        }
    }

    /// Sends an answer. On a [nonblocking](Self::set_nonblocking) end it does not wait for a client that does not read.
    ///
    /// # Errors
    /// The other process has ended, or the nonblocking socket is full.
    pub fn answer(&self, answer: &Answer) -> io::Result<()> {
        match answer {
            Answer::Hello => self.0.send(&[0; HEAD_BYTES]).map(drop),
            Answer::Here { request, found } => match found {
                Fetched::File { digest, file } => {
                    let message = [&request.answer_head(FILE)[..], digest].concat();
                    let sent = self.0.send_with_fd(&message[..], file.as_raw_fd());
                    sent.map(drop).map_err(io::Error::from)
                }
                Fetched::InPieces => self.0.send(&request.answer_head(IN_PIECES)).map(drop),
            },
            Answer::Failed { request, reason } => {
                let mut message = request.answer_head(FAILED).to_vec();
                message.extend_from_slice(cut(reason).as_bytes());
                self.0.send(&message).map(drop)
            }
        }
    }

    /// Waits for the next answer. Returns `None` for a malformed one.
    ///
    /// # Errors
    /// The fetcher has ended: [`io::ErrorKind::UnexpectedEof`].
    pub fn next_answer(&self) -> io::Result<Option<Answer>> {
        let mut message = [0; MESSAGE_MAX_BYTES];
        let (len, file) = self.0.recv_with_fd(&mut message).map_err(io::Error::from)?;
        match len {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            len => Ok(parse_answer(&message[..len], file)),
        }
    }

    /// Sends `end`, one end of another connection, to the process at the other end of this one.
    ///
    /// # Errors
    /// The other process has ended.
    pub fn send_connection(&self, end: &Self) -> io::Result<()> {
        let sent = self.0.send_with_fd(&[0_u8][..], end.as_raw_fd());
        sent.map(drop).map_err(io::Error::from)
    }

    /// Waits for the next connection sent with [`send_connection`](Self::send_connection). Returns `None` for any other
    /// message.
    ///
    /// # Errors
    /// The other process has ended: [`io::ErrorKind::UnexpectedEof`].
    pub fn receive_connection(&self) -> io::Result<Option<Self>> {
        let mut message = [0; 1];
        match self.0.recv_with_fd(&mut message).map_err(io::Error::from)? {
            (0, _) => Err(io::ErrorKind::UnexpectedEof.into()),
            (_, file) => Ok(file.map(|file| Self::from(OwnedFd::from(file)))),
        }
    }

    /// Sets whether sending fails, instead of waiting for the other process.
    ///
    /// # Errors
    /// The kernel returns an error.
    pub fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        self.0.set_nonblocking(nonblocking)
    }

    /// Returns another descriptor of the same end.
    ///
    /// # Errors
    /// No descriptors are left.
    pub fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }
}

impl From<OwnedFd> for Connection {
    fn from(fd: OwnedFd) -> Self {
        Self(UnixDatagram::from(fd))
    }
}

impl std::os::fd::AsFd for Connection {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Connection {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl FetchRequest {
    /// Returns the request for another piece of the same NAR.
    #[must_use]
    pub fn other(self, piece: u32) -> Self {
        Self {
            part: PathPart::Piece(piece),
            ..self
        }
    }

    fn head(self) -> [u8; HEAD_BYTES] {
        let (part, piece) = match self.part {
            PathPart::Tree => (1, 0),
            PathPart::Nar => (2, 0),
            PathPart::Piece(piece) => (3, piece),
        };
        let mut head = [0; HEAD_BYTES];
        head[0] = part;
        head[4..8].copy_from_slice(&self.path.to_le_bytes());
        head[8..].copy_from_slice(&piece.to_le_bytes());
        head
    }

    fn answer_head(self, kind: u8) -> [u8; HEAD_BYTES] {
        let mut head = self.head();
        head[1] = kind;
        head
    }

    fn parse(head: &[u8]) -> Option<Self> {
        let number = |at: usize| Some(u32::from_le_bytes(head.get(at..at + 4)?.try_into().ok()?));
        let (path, piece) = (number(4)?, number(8)?);
        let part = match head.first()? {
            1 => PathPart::Tree,
            2 => PathPart::Nar,
            3 => PathPart::Piece(piece),
            _ => return None,
        };
        Some(Self { part, path })
    }
}

fn parse_answer(message: &[u8], file: Option<File>) -> Option<Answer> {
    let (head, rest) = message.split_at_checked(HEAD_BYTES)?;
    if head == [0; HEAD_BYTES] {
        return Some(Answer::Hello);
    }
    let request = FetchRequest::parse(head)?;
    let found = match head[1] {
        FILE => Fetched::File {
            digest: rest.try_into().ok()?,
            file: file?,
        },
        IN_PIECES => Fetched::InPieces,
        _ => {
            let reason = String::from_utf8_lossy(rest).into_owned();
            return Some(Answer::Failed { request, reason });
        }
    };
    Some(Answer::Here { request, found })
}

/// Truncates a text to what a message holds.
fn cut(text: &str) -> &str {
    let mut end = text.len().min(TEXT_MAX_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn messages_round_trip() {
        let (one, other) = Connection::pair().unwrap();
        let request = FetchRequest {
            part: PathPart::Nar,
            path: 70_000,
        };
        one.send_request(request).unwrap();
        assert_eq!(other.next_request().unwrap(), Some(request));
        other.answer(&Answer::Hello).unwrap();
        assert!(matches!(one.next_answer().unwrap(), Some(Answer::Hello)));
        let reason = "é".repeat(TEXT_MAX_BYTES);
        other.answer(&Answer::Failed { request, reason }).unwrap();
        let Some(Answer::Failed { reason, .. }) = one.next_answer().unwrap() else {
            panic!()
        };
        assert_eq!(reason, "é".repeat(TEXT_MAX_BYTES / 2));
        let file = File::open("/proc/self/status").unwrap();
        let found = Fetched::File {
            digest: [7; 32],
            file,
        };
        other.answer(&Answer::Here { request, found }).unwrap();
        let answer = one.next_answer().unwrap();
        let Some(Answer::Here {
            found: Fetched::File { mut file, digest },
            ..
        }) = answer
        else {
            panic!("{answer:?}")
        };
        assert!(file.read(&mut [0; 10]).unwrap() > 0 && digest == [7; 32]);
        let request = FetchRequest {
            part: PathPart::Piece(80_000),
            path: 70_000,
        };
        let found = Fetched::InPieces;
        other.answer(&Answer::Here { request, found }).unwrap();
        assert!(matches!(
            one.next_answer().unwrap(),
            Some(Answer::Here { request: received, found: Fetched::InPieces }) if received == request
        ));
        drop(other);
        let ended = one.next_answer().unwrap_err();
        assert_eq!(ended.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_sent_connection_works() {
        let (one, other) = Connection::pair().unwrap();
        let (near, far) = Connection::pair().unwrap();
        one.send_connection(&far).unwrap();
        drop(far);
        let far = other.receive_connection().unwrap().unwrap();
        far.answer(&Answer::Hello).unwrap();
        assert!(matches!(near.next_answer().unwrap(), Some(Answer::Hello)));
        drop(far);
        assert!(near.next_answer().is_err());
    }

    #[test]
    fn malformed_messages_are_dropped() {
        let (one, other) = Connection::pair().unwrap();
        for message in [&b"x"[..], &[4; 12], &[1; 13], &[1; 100]] {
            one.0.send(message).unwrap();
            assert!(other.next_request().unwrap().is_none(), "{message:?}");
        }
        // A head without a digest, or without a file.
        for message in [
            &[2_u8, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0][..],
            &[&[2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0][..], &[0; 32]].concat(),
        ] {
            other.0.send(message).unwrap();
            assert!(one.next_answer().unwrap().is_none(), "{message:?}");
        }
    }
}
