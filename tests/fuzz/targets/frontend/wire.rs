//! Bytes and descriptors on the socket.

use std::io::Read;
use std::net::Shutdown;
use std::os::fd::RawFd;
use std::os::unix::net::UnixStream;

use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::protocol::words32;

/// The frontend's end of the connection. Buffers bytes that can be sent together.
pub struct Wire<'s> {
    stream: &'s UnixStream,
    waiting: Vec<u8>,
}

impl<'s> Wire<'s> {
    pub fn new(stream: &'s UnixStream) -> Self {
        Self {
            stream,
            waiting: Vec::new(),
        }
    }

    /// A message whose header has the right length of its payload.
    pub fn message(&mut self, request: u32, flags: u32, payload: &[u8], fds: &[RawFd]) {
        let len = u32::try_from(payload.len()).unwrap();
        self.any(request, flags, len, payload, fds);
    }

    pub fn any(&mut self, request: u32, flags: u32, len: u32, payload: &[u8], fds: &[RawFd]) {
        if !fds.is_empty() {
            self.flush();
        }
        self.waiting.extend(words32(&[request, flags, len]));
        self.waiting.extend(payload);
        if !fds.is_empty() {
            self.stream
                .send_with_fds(&[self.waiting.as_slice()], fds)
                .unwrap();
            self.waiting.clear();
        }
    }

    pub fn raw(&mut self, bytes: &[u8]) {
        self.waiting.extend(bytes);
    }

    fn flush(&mut self) {
        if !self.waiting.is_empty() {
            self.stream
                .send_with_fds(&[self.waiting.as_slice()], &[])
                .unwrap();
            self.waiting.clear();
        }
    }

    /// Sends the rest and disconnects.
    pub fn end(mut self) {
        self.flush();
        self.stream.shutdown(Shutdown::Write).unwrap();
    }
}

/// All complete messages in the socket: numbers and payloads. The device must have disconnected.
pub fn answers(mut stream: &UnixStream) -> Vec<(u32, Vec<u8>)> {
    let mut bytes = Vec::new();
    // If the device disconnects with unread data, there is an error after its last message.
    let _ = stream.read_to_end(&mut bytes);
    let mut rest = bytes.as_slice();
    let mut answers = Vec::new();
    while let Some((header, after)) = rest.split_first_chunk::<12>() {
        let [number, _, len] = [0, 4, 8].map(|at| {
            let word = header[at..at + 4].try_into().unwrap();
            u32::from_le_bytes(word)
        });
        let Some(payload) = after.get(..len as usize) else {
            break;
        };
        answers.push((number, payload.to_vec()));
        rest = &after[payload.len()..];
    }
    answers
}
