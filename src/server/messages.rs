//! Messages from a worker to its parent: lines of text in a pipe.
//!
//! A worker may be compromised by its guest. The parent limits the length of its messages, and uses them only for log
//! lines, statistics and the state of that worker.

use std::fmt;
use std::io::{self, ErrorKind, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{OFlags, fcntl_setfl};

use crate::device::Stats;

/// Maximum length of a line; longer ones are truncated. Writes of that length to a pipe are atomic (pipe(7)), so the
/// lines of several threads do not mix.
const LINE_LEN_MAX: usize = 2048;

/// Size of a read, and capacity of a pipe (pipe(7)).
const READ_BYTES: usize = 2 * LINE_LEN_MAX;
const PIPE_BYTES: usize = 64 << 10;

/// A message from a worker to its parent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Message {
    /// The worker has accepted its connection.
    Accepted,
    /// The client has chosen the disk with this index.
    ExportChosen(usize),
    /// The client has sent its first message, so it counts as a VM.
    Connected,
    /// The worker records what its client reads.
    Recording,
    /// The file is mounted.
    Mounted,
    /// The first reader has opened the file.
    FileOpened,
    /// The last reader has closed the file.
    FileClosed(Stats),
    /// The client has disconnected, or the worker was asked to end.
    Disconnected(Stats),
    /// The worker ends because of this error.
    Failed(String),
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let numbers = |f: &mut fmt::Formatter<'_>, name: &str, stats: &Stats| {
            let Stats {
                requests,
                bytes,
                errors,
            } = stats;
            write!(f, "{name} {requests} {bytes} {errors}")
        };
        match self {
            Self::Accepted => f.write_str("accepted"),
            Self::ExportChosen(index) => write!(f, "export {index}"),
            Self::Connected => f.write_str("connected"),
            Self::Recording => f.write_str("recording"),
            Self::Mounted => f.write_str("mounted"),
            Self::FileOpened => f.write_str("opened"),
            Self::FileClosed(stats) => numbers(f, "closed", stats),
            Self::Disconnected(stats) => numbers(f, "disconnected", stats),
            Self::Failed(reason) => {
                write!(f, "failed ")?;
                reason
                    .chars()
                    .filter(|c| !c.is_control())
                    .try_for_each(|c| write!(f, "{c}"))
            }
        }
    }
}

impl Message {
    fn parse(line: &str) -> Option<Self> {
        let (name, rest) = line.split_once(' ').unwrap_or((line, ""));
        Some(match name {
            "accepted" => Self::Accepted,
            "export" => Self::ExportChosen(rest.parse().ok()?),
            "connected" => Self::Connected,
            "recording" => Self::Recording,
            "mounted" => Self::Mounted,
            "opened" => Self::FileOpened,
            "closed" => Self::FileClosed(parse_stats(rest)?),
            "disconnected" => Self::Disconnected(parse_stats(rest)?),
            "failed" => Self::Failed(rest.chars().filter(|c| !c.is_control()).collect()),
            _ => return None,
        })
    }
}

fn parse_stats(text: &str) -> Option<Stats> {
    let mut numbers = text.split(' ').map(|number| number.parse().ok());
    Some(Stats {
        requests: numbers.next()??,
        bytes: numbers.next()??,
        errors: numbers.next()??,
    })
}

/// The worker's end of the pipe.
#[derive(Debug)]
pub(super) struct MessageSender(PipeWriter);

impl MessageSender {
    /// Sends a message. Errors are ignored: if the parent has closed the pipe, it is ending and will kill this process.
    pub(super) fn send(&self, message: &Message) {
        let mut line = message.to_string().into_bytes();
        line.truncate(LINE_LEN_MAX - 1);
        line.push(b'\n');
        let _ = (&self.0).write_all(&line);
    }
}

/// The parent's end of the pipe.
#[derive(Debug)]
pub(super) struct MessageReceiver {
    /// `None` once the worker has closed its end.
    pipe: Option<PipeReader>,
    /// The beginning of an incomplete line.
    partial_line: Vec<u8>,
}

/// Creates a pipe. The parent's end does not block.
pub(super) fn channel() -> io::Result<(MessageReceiver, MessageSender)> {
    let (reader, writer) = io::pipe()?;
    fcntl_setfl(&reader, OFlags::NONBLOCK)?;
    let receiver = MessageReceiver {
        pipe: Some(reader),
        partial_line: Vec::new(),
    };
    Ok((receiver, MessageSender(writer)))
}

impl MessageReceiver {
    /// Readable when there is something to [`receive`](Self::receive). `None` once the worker has closed its end.
    pub(super) fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        self.pipe.as_ref().map(AsFd::as_fd)
    }

    /// Receives messages with one read.
    pub(super) fn receive(&mut self) -> Vec<Message> {
        self.read_once().unwrap_or_default()
    }

    /// Receives the remaining messages of a worker that has ended. Reads at most the capacity of a pipe: a compromised
    /// worker can have passed its end to another process, which could write forever.
    pub(super) fn receive_all(&mut self) -> Vec<Message> {
        let read = std::iter::from_fn(|| self.read_once());
        read.take(PIPE_BYTES / READ_BYTES).flatten().collect()
    }

    /// `None` if there is nothing to read.
    fn read_once(&mut self) -> Option<Vec<Message>> {
        let mut buffer = [0; READ_BYTES];
        match self.pipe.as_mut()?.read(&mut buffer) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => None,
            Ok(0) | Err(_) => {
                self.pipe = None;
                None
            }
            Ok(len) => Some(self.take_lines(&buffer[..len])),
        }
    }

    fn take_lines(&mut self, bytes: &[u8]) -> Vec<Message> {
        let mut messages = Vec::new();
        let mut parts = bytes.split(|byte| *byte == b'\n');
        let last = parts.next_back().unwrap_or_default();
        for part in parts {
            self.append(part);
            let line = std::mem::take(&mut self.partial_line);
            messages.extend(Message::parse(&String::from_utf8_lossy(&line)));
        }
        self.append(last);
        messages
    }

    fn append(&mut self, part: &[u8]) {
        let room = LINE_LEN_MAX - self.partial_line.len();
        self.partial_line
            .extend_from_slice(&part[..part.len().min(room)]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_received_as_they_were_sent() {
        let stats = Stats {
            requests: 1,
            bytes: u64::MAX,
            errors: 3,
        };
        let messages = [
            Message::Accepted,
            Message::ExportChosen(usize::MAX),
            Message::Connected,
            Message::Recording,
            Message::Mounted,
            Message::FileOpened,
            Message::FileClosed(stats),
            Message::Disconnected(stats),
            Message::Failed("why it failed".to_owned()),
        ];
        let (mut receiver, sender) = channel().unwrap();
        messages.iter().for_each(|message| sender.send(message));
        drop(sender);
        assert_eq!(receiver.receive_all(), messages);
        assert!(receiver.as_fd().is_none());
    }

    /// A compromised worker can pass its end of the pipe to another process and die. The parent must not wait for more
    /// messages, nor read forever.
    #[test]
    fn a_pipe_held_by_another_process_does_not_block_the_parent() {
        let (mut receiver, sender) = channel().unwrap();
        let mut other = sender.0.try_clone().unwrap();
        sender.send(&Message::Connected);
        drop(sender);
        let (results, received) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            results.send(receiver.receive_all()).unwrap();
            let flood = move || while other.write_all(b"mounted\n").is_ok() {};
            std::thread::spawn(flood);
            results.send(receiver.receive_all()).unwrap();
        });
        let next = || received.recv_timeout(std::time::Duration::from_secs(10));
        assert_eq!(next(), Ok(vec![Message::Connected]));
        assert!(next().is_ok());
    }

    #[test]
    fn invalid_and_long_lines_are_ignored_or_truncated() {
        let (mut receiver, mut writer) = channel().unwrap();
        assert_eq!(
            receiver.take_lines(
                b"nonsense\ndisconnected 1 2\ndisconnected x y z\nexport -1\nexport\nconn"
            ),
            []
        );
        assert_eq!(receiver.take_lines(b"ected\n"), [Message::Connected]);
        for _ in 0..100 {
            assert_eq!(receiver.take_lines(&[b'x'; 4096]), []);
        }
        assert!(receiver.partial_line.len() <= LINE_LEN_MAX);
        assert_eq!(receiver.take_lines(b"\naccepted\n"), [Message::Accepted]);
        writer.0.write_all(b"failed a\x1b[31mb\n").unwrap();
        assert_eq!(receiver.receive(), [Message::Failed("a[31mb".to_owned())]);
    }
}
