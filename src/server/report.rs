//! What a worker tells its parent, through a pipe: one line each.
//!
//! The parent meets no guest, and a worker may have fallen to one: what it says is believed as far as log lines go, and
//! is bounded in length.

use std::fmt;
use std::io::{self, ErrorKind, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{OFlags, fcntl_setfl};

use crate::device::Stats;

/// Longest line; what is longer is cut. A write of that many bytes is not mixed with those of other threads (pipe(7)).
const LINE_LEN_MAX: usize = 2048;

/// What is read at once, and what a pipe holds (pipe(7)).
const READ_BYTES: usize = 2 * LINE_LEN_MAX;
const PIPE_BYTES: usize = 64 << 10;

/// One thing that a worker tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Word {
    /// It has taken the connection from the socket's queue.
    Accepted,
    /// The client reads the disk with this index.
    Chose(usize),
    /// The client has sent a first message.
    Spoke,
    /// It is the one that records what its client reads.
    Records,
    /// The file is there.
    Mounted,
    /// A first reader has opened the file.
    Opened,
    /// The last reader has closed the file.
    Closed(Stats),
    /// The VM has gone, or the worker was asked to end.
    Left(Stats),
    /// Why it gives up.
    Failed(String),
}

impl fmt::Display for Word {
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
            Self::Chose(index) => write!(f, "chose {index}"),
            Self::Spoke => f.write_str("spoke"),
            Self::Records => f.write_str("records"),
            Self::Mounted => f.write_str("mounted"),
            Self::Opened => f.write_str("opened"),
            Self::Closed(stats) => numbers(f, "closed", stats),
            Self::Left(stats) => numbers(f, "left", stats),
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

impl Word {
    fn parse(line: &str) -> Option<Self> {
        let (name, rest) = line.split_once(' ').unwrap_or((line, ""));
        Some(match name {
            "accepted" => Self::Accepted,
            "chose" => Self::Chose(rest.parse().ok()?),
            "spoke" => Self::Spoke,
            "records" => Self::Records,
            "mounted" => Self::Mounted,
            "opened" => Self::Opened,
            "closed" => Self::Closed(parse_stats(rest)?),
            "left" => Self::Left(parse_stats(rest)?),
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

/// The worker's end.
#[derive(Debug)]
pub(super) struct Reporter(PipeWriter);

impl Reporter {
    /// The parent may be ending, and will end this process too: that nobody listens is no error.
    pub(super) fn tell(&self, word: &Word) {
        let mut line = word.to_string().into_bytes();
        line.truncate(LINE_LEN_MAX - 1);
        line.push(b'\n');
        let _ = (&self.0).write_all(&line);
    }
}

/// The parent's end.
#[derive(Debug)]
pub(super) struct Reports {
    /// None once the worker has closed its end.
    pipe: Option<PipeReader>,
    /// The beginning of a line.
    begun: Vec<u8>,
}

/// Both ends. The parent does not wait at its own.
pub(super) fn pipe() -> io::Result<(Reports, Reporter)> {
    let (reader, writer) = io::pipe()?;
    fcntl_setfl(&reader, OFlags::NONBLOCK)?;
    let reports = Reports {
        pipe: Some(reader),
        begun: Vec::new(),
    };
    Ok((reports, Reporter(writer)))
}

impl Reports {
    /// Readable when there is something to [`read`](Self::read); none at its end.
    pub(super) fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        self.pipe.as_ref().map(AsFd::as_fd)
    }

    /// Reads once what has come.
    pub(super) fn read(&mut self) -> Vec<Word> {
        self.read_once().unwrap_or_default()
    }

    /// Reads all that a worker has told which has ended: as much as a pipe holds. Its end of the pipe may be in other hands,
    /// for a worker that has fallen to its guest can pass it on.
    pub(super) fn read_to_end(&mut self) -> Vec<Word> {
        let read = std::iter::from_fn(|| self.read_once());
        read.take(PIPE_BYTES / READ_BYTES).flatten().collect()
    }

    /// None when there is nothing.
    fn read_once(&mut self) -> Option<Vec<Word>> {
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

    fn take_lines(&mut self, bytes: &[u8]) -> Vec<Word> {
        let mut words = Vec::new();
        let mut parts = bytes.split(|byte| *byte == b'\n');
        let last = parts.next_back().unwrap_or_default();
        for part in parts {
            self.append(part);
            let line = std::mem::take(&mut self.begun);
            words.extend(Word::parse(&String::from_utf8_lossy(&line)));
        }
        self.append(last);
        words
    }

    fn append(&mut self, part: &[u8]) {
        let room = LINE_LEN_MAX - self.begun.len();
        self.begun.extend_from_slice(&part[..part.len().min(room)]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_arrive_as_they_were_told() {
        let stats = Stats {
            requests: 1,
            bytes: u64::MAX,
            errors: 3,
        };
        let words = [
            Word::Accepted,
            Word::Chose(usize::MAX),
            Word::Spoke,
            Word::Records,
            Word::Mounted,
            Word::Opened,
            Word::Closed(stats),
            Word::Left(stats),
            Word::Failed("why it failed".to_owned()),
        ];
        let (mut reports, reporter) = pipe().unwrap();
        words.iter().for_each(|word| reporter.tell(word));
        drop(reporter);
        assert_eq!(reports.read_to_end(), words);
        assert!(reports.as_fd().is_none());
    }

    /// A worker that has fallen to its guest can pass its end on, and die: the parent must not wait for more, or read for
    /// ever what the new owner writes.
    #[test]
    fn a_pipe_in_other_hands_stops_nobody() {
        let (mut reports, reporter) = pipe().unwrap();
        let mut other = reporter.0.try_clone().unwrap();
        reporter.tell(&Word::Spoke);
        drop(reporter);
        let (told, heard) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            told.send(reports.read_to_end()).unwrap();
            let flood = move || while other.write_all(b"mounted\n").is_ok() {};
            std::thread::spawn(flood);
            told.send(reports.read_to_end()).unwrap();
        });
        let next = || heard.recv_timeout(std::time::Duration::from_secs(10));
        assert_eq!(next(), Ok(vec![Word::Spoke]));
        assert!(next().is_ok());
    }

    #[test]
    fn lies_and_floods_are_bounded() {
        let (mut reports, mut writer) = pipe().unwrap();
        assert_eq!(
            reports.take_lines(b"nonsense\nleft 1 2\nleft x y z\nchose -1\nchose\nspo"),
            []
        );
        assert_eq!(reports.take_lines(b"ke\n"), [Word::Spoke]);
        for _ in 0..100 {
            assert_eq!(reports.take_lines(&[b'x'; 4096]), []);
        }
        assert!(reports.begun.len() <= LINE_LEN_MAX);
        assert_eq!(reports.take_lines(b"\naccepted\n"), [Word::Accepted]);
        writer.0.write_all(b"failed a\x1b[31mb\n").unwrap();
        assert_eq!(reports.read(), [Word::Failed("a[31mb".to_owned())]);
    }
}
