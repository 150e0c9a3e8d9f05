//! A client that shares no code with the server: it has its own constants and layouts.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

pub const READ: u16 = 0;
pub const WRITE: u16 = 1;
pub const DISC: u16 = 2;
pub const FLUSH: u16 = 3;
pub const TRIM: u16 = 4;
pub const CACHE: u16 = 5;
pub const WRITE_ZEROES: u16 = 6;
pub const BLOCK_STATUS: u16 = 7;

pub const DF: u16 = 4;
pub const REQ_ONE: u16 = 8;

pub const EPERM: u32 = 1;
pub const EIO: u32 = 5;
pub const EINVAL: u32 = 22;

pub const OPT_EXPORT_NAME: u32 = 1;
pub const OPT_ABORT: u32 = 2;
pub const OPT_LIST: u32 = 3;
pub const OPT_STARTTLS: u32 = 5;
pub const OPT_INFO: u32 = 6;
pub const OPT_GO: u32 = 7;
pub const OPT_STRUCTURED: u32 = 8;
pub const OPT_LIST_CONTEXT: u32 = 9;
pub const OPT_SET_CONTEXT: u32 = 10;

pub const ACK: u32 = 1;
pub const SERVER: u32 = 2;
pub const INFO: u32 = 3;
pub const CONTEXT: u32 = 4;
pub const UNSUP: u32 = 0x8000_0001;
pub const POLICY: u32 = 0x8000_0002;
pub const INVALID: u32 = 0x8000_0003;
pub const TLS_REQD: u32 = 0x8000_0005;
pub const UNKNOWN: u32 = 0x8000_0006;
pub const TOO_BIG: u32 = 0x8000_0009;

/// A reply to an option.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub kind: u32,
    pub data: Vec<u8>,
}

/// One chunk of a structured reply, or a simple reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// Error and data.
    Simple(u32, Vec<u8>),
    Data {
        done: bool,
        offset: u64,
        data: Vec<u8>,
    },
    Hole {
        done: bool,
        offset: u64,
        len: u32,
    },
    /// Pairs of length and flags.
    Status(Vec<(u32, u32)>),
    Error(u32),
}

pub struct Client<S = UnixStream> {
    pub stream: S,
    /// Information from `GO`.
    pub len_bytes: u64,
    pub flags: u16,
}

impl Client {
    pub fn connect(socket: &Path) -> Self {
        Self::greet(UnixStream::connect(socket).unwrap(), 3)
    }
}

impl<S: Read + Write> Client<S> {
    /// Receives the greeting and sends the client's flags. Options may follow.
    pub fn greet(stream: S, flags: u32) -> Self {
        let mut client = Self {
            stream,
            len_bytes: 0,
            flags: 0,
        };
        let greeting: [u8; 18] = client.bytes();
        assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");
        assert_eq!(greeting[16..], [0, 3]);
        client.send(&flags.to_be_bytes());
        client
    }

    /// A client of the export `name`, with all protocol features.
    pub fn start(stream: S, name: &str) -> Self {
        let mut client = Self::greet(stream, 3);
        client.begin(name);
        client
    }

    /// Negotiates all features after the greeting.
    pub fn begin(&mut self, name: &str) {
        assert_eq!(self.option(OPT_STRUCTURED, &[])[0].kind, ACK);
        let contexts = self.option(OPT_SET_CONTEXT, &query(name, &["base:allocation"]));
        assert_eq!(contexts[0].data, b"\0\0\0\x01base:allocation");
        self.go(name);
    }

    /// A client that only knows `EXPORT_NAME` and simple replies.
    pub fn start_simple(stream: S, name: &str) -> Self {
        let mut client = Self::greet(stream, 3);
        client.go(name);
        client
    }

    pub fn go(&mut self, name: &str) {
        let answers = self.option(OPT_GO, &wanted(name, &[]));
        assert_eq!(answers.last().unwrap().kind, ACK);
        let data = &answers[0].data;
        assert_eq!(data[..2], [0, 0]);
        self.len_bytes = u64::from_be_bytes(data[2..10].try_into().unwrap());
        self.flags = u16::from_be_bytes(data[10..12].try_into().unwrap());
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    pub fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    fn word(&mut self) -> u32 {
        u32::from_be_bytes(self.bytes())
    }

    fn long(&mut self) -> u64 {
        u64::from_be_bytes(self.bytes())
    }

    pub fn data(&mut self, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.stream.read_exact(&mut data).unwrap();
        data
    }

    pub fn send_option(&mut self, number: u32, data: &[u8]) {
        self.send(&option_bytes(number, data));
    }

    /// Sends an option and receives all replies to it.
    pub fn option(&mut self, number: u32, data: &[u8]) -> Vec<Answer> {
        self.send_option(number, data);
        self.answers(number)
    }

    pub fn answers(&mut self, number: u32) -> Vec<Answer> {
        let mut answers = Vec::new();
        loop {
            assert_eq!(self.long(), 0x0003_e889_0455_65a9);
            assert_eq!(self.word(), number);
            let kind = self.word();
            let len = usize::try_from(self.word()).unwrap();
            let data = self.data(len);
            answers.push(Answer { kind, data });
            if kind == ACK || kind >= UNSUP {
                return answers;
            }
        }
    }

    pub fn request(&mut self, kind: u16, flags: u16, cookie: u64, offset: u64, len: u32) {
        self.send(&request_bytes(kind, flags, cookie, offset, len));
    }

    /// Receives the next reply to any request. `read_len` is the length of the data of a successful simple reply.
    pub fn reply(&mut self, read_len: usize) -> (u64, Reply) {
        match self.word() {
            0x6744_6698 => {
                let error = self.word();
                let cookie = self.long();
                let data = if error == 0 {
                    self.data(read_len)
                } else {
                    Vec::new()
                };
                (cookie, Reply::Simple(error, data))
            }
            0x668e_33ef => self.chunk(),
            other => panic!("no reply begins with {other:#x}"),
        }
    }

    fn chunk(&mut self) -> (u64, Reply) {
        let [_, flags, kind @ ..]: [u8; 4] = self.bytes();
        let done = flags == 1;
        let cookie = self.long();
        let len = usize::try_from(self.word()).unwrap();
        let reply = match u16::from_be_bytes(kind) {
            1 => Reply::Data {
                done,
                offset: self.long(),
                data: self.data(len - 8),
            },
            2 => {
                assert_eq!(len, 12);
                Reply::Hole {
                    done,
                    offset: self.long(),
                    len: self.word(),
                }
            }
            5 => {
                assert!(done);
                assert_eq!(self.word(), 1);
                let pair = |_| (self.word(), self.word());
                Reply::Status((0..(len - 4) / 8).map(pair).collect())
            }
            0x8001 => {
                assert!(done);
                let error = self.word();
                self.data(len - 4);
                Reply::Error(error)
            }
            other => panic!("unknown chunk {other:#x}"),
        };
        (cookie, reply)
    }

    /// Receives all chunks of one read, checks and joins them. `Err` contains the error number.
    pub fn read(&mut self, flags: u16, offset: u64, len: usize) -> Result<Vec<u8>, u32> {
        let len32 = u32::try_from(len).unwrap();
        self.request(READ, flags, 77, offset, len32);
        let mut data = vec![0xaa; len];
        let mut seen = 0;
        loop {
            let (cookie, reply) = self.reply(len);
            assert_eq!(cookie, 77);
            let (done, at, part) = match reply {
                Reply::Simple(0, data) => return Ok(data),
                Reply::Simple(error, _) | Reply::Error(error) => return Err(error),
                Reply::Data { done, offset, data } => (done, offset, data),
                Reply::Hole { done, offset, len } => {
                    (done, offset, vec![0; usize::try_from(len).unwrap()])
                }
                Reply::Status(_) => panic!("a status for a read"),
            };
            let start = usize::try_from(at - offset).unwrap();
            assert_eq!(start, seen, "this server sends chunks in order");
            data[start..start + part.len()].copy_from_slice(&part);
            seen += part.len();
            if done {
                assert_eq!(seen, len);
                return Ok(data);
            }
        }
    }

    pub fn status(&mut self, flags: u16, offset: u64, len: u32) -> Vec<(u32, u32)> {
        self.request(BLOCK_STATUS, flags, 5, offset, len);
        match self.reply(0) {
            (5, Reply::Status(extents)) => extents,
            other => panic!("{other:?}"),
        }
    }

    /// Whether the server has closed the connection.
    pub fn is_at_end(&mut self) -> bool {
        matches!(self.stream.read(&mut [0]), Ok(0) | Err(_))
    }
}

pub fn option_bytes(number: u32, data: &[u8]) -> Vec<u8> {
    let len = u32::try_from(data.len()).unwrap();
    [
        b"IHAVEOPT".as_slice(),
        &number.to_be_bytes(),
        &len.to_be_bytes(),
        data,
    ]
    .concat()
}

pub fn request_bytes(kind: u16, flags: u16, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
    [
        0x2560_9513u32.to_be_bytes().as_slice(),
        &flags.to_be_bytes(),
        &kind.to_be_bytes(),
        &cookie.to_be_bytes(),
        &offset.to_be_bytes(),
        &len.to_be_bytes(),
    ]
    .concat()
}

fn string(text: &str) -> Vec<u8> {
    let len = u32::try_from(text.len()).unwrap();
    [&len.to_be_bytes(), text.as_bytes()].concat()
}

/// Data of `INFO` and `GO`.
pub fn wanted(name: &str, kinds: &[u16]) -> Vec<u8> {
    let count = u16::try_from(kinds.len()).unwrap();
    let kinds: Vec<u8> = kinds.iter().flat_map(|kind| kind.to_be_bytes()).collect();
    [string(name), count.to_be_bytes().to_vec(), kinds].concat()
}

/// Data of the options about metadata contexts.
pub fn query(name: &str, queries: &[&str]) -> Vec<u8> {
    let count = u32::try_from(queries.len()).unwrap();
    let queries: Vec<u8> = queries.iter().flat_map(|query| string(query)).collect();
    [string(name), count.to_be_bytes().to_vec(), queries].concat()
}
