//! Request value to reply bytes.
//!
//! [`Work::fail`] is the only place where an error becomes an error number.

use super::disk::{Disk, Part};
use super::reply::{Chunks, Outbox};
use super::request::{Parsed, Refusal, Request};
use super::wire::ErrorCode;
use crate::image::ReadError;
use crate::source::IoMode;

/// Most bytes of a read in chunks that are answered at once.
pub const SEGMENT_BYTES: u32 = 256 << 10;

/// What there is left to do for a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Work {
    cookie: u64,
    kind: Kind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    /// All data in one piece.
    Whole {
        offset: u64,
        len_bytes: u32,
        chunk: bool,
    },
    /// In as many pieces as one likes. What is still to be read.
    Chunks { offset: u64, len_bytes: u32 },
    /// What is allocated.
    Status {
        offset: u64,
        len_bytes: u32,
        one: bool,
    },
}

/// What a request is, once it is parsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Task {
    /// It has been answered.
    Done,
    /// It was answered with an error.
    Refused(Refusal),
    /// It takes the disk.
    Work(Work),
    /// The client leaves.
    Leave,
}

/// How far some work has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// All of the reply is written.
    Done,
    /// A part of it; there is more.
    Part,
}

/// Answers what does not take the disk.
pub fn begin(parsed: &Parsed, out: &mut Outbox) -> Task {
    let cookie = parsed.cookie;
    let kind = match parsed.request {
        Request::Read {
            offset,
            len_bytes,
            whole,
        } if whole || !parsed.chunks => Kind::Whole {
            offset,
            len_bytes,
            chunk: parsed.chunks,
        },
        Request::Read {
            offset, len_bytes, ..
        } => Kind::Chunks { offset, len_bytes },
        Request::BlockStatus {
            offset,
            len_bytes,
            one,
        } => Kind::Status {
            offset,
            len_bytes,
            one,
        },
        Request::Flush => {
            out.simple(cookie, None);
            return Task::Done;
        }
        Request::Disconnect => return Task::Leave,
        Request::Refused(refusal) => {
            write_error(out, cookie, parsed.chunks, refusal.code());
            return Task::Refused(refusal);
        }
    };
    Task::Work(Work { cookie, kind })
}

fn write_error(out: &mut Outbox, cookie: u64, chunk: bool, code: ErrorCode) {
    if chunk {
        out.error(cookie, code);
    } else {
        out.simple(cookie, Some(code));
    }
}

impl Work {
    /// Whether it is no small thing, in memory or in time: not for a thread that others wait for.
    pub fn is_heavy(&self) -> bool {
        match self.kind {
            Kind::Whole { len_bytes, .. } => len_bytes > SEGMENT_BYTES,
            Kind::Chunks { .. } => false,
            // Paths may have to be planned.
            Kind::Status { .. } => true,
        }
    }

    /// Whether it takes more memory than [`SEGMENT_BYTES`] and a little.
    pub fn is_large(&self) -> bool {
        matches!(self.kind, Kind::Whole { len_bytes, .. } if len_bytes > SEGMENT_BYTES)
    }

    /// Bytes of the disk that are still to be delivered.
    pub fn len_bytes(&self) -> u64 {
        match self.kind {
            Kind::Whole { len_bytes, .. } | Kind::Chunks { len_bytes, .. } => len_bytes.into(),
            Kind::Status { .. } => 0,
        }
    }

    /// For messages.
    pub fn offset(&self) -> u64 {
        match self.kind {
            Kind::Whole { offset, .. }
            | Kind::Chunks { offset, .. }
            | Kind::Status { offset, .. } => offset,
        }
    }

    /// Does some of it, and writes that part of the reply to `out`.
    ///
    /// # Errors
    /// When the disk cannot be read; nothing is written then, and the work can be tried again.
    pub fn advance(
        &mut self,
        disk: &Disk,
        mode: IoMode,
        out: &mut Outbox,
    ) -> Result<Progress, ReadError> {
        let mark = out.mark();
        let done = match &mut self.kind {
            Kind::Whole {
                offset,
                len_bytes,
                chunk,
            } => {
                let len = usize::try_from(*len_bytes).unwrap_or(usize::MAX);
                let room = match chunk {
                    true => out.whole_data(self.cookie, *offset, len),
                    false => out.simple_data(self.cookie, len),
                };
                fill(disk, mode, *offset, *len_bytes, room).map(|()| Progress::Done)
            }
            Kind::Chunks { offset, len_bytes } => {
                let now = SEGMENT_BYTES.min(*len_bytes);
                let is_last = now == *len_bytes;
                let chunks = Chunks::new(out, self.cookie, *offset);
                write_chunks(disk, mode, *offset, now, chunks, is_last).map(|()| {
                    *offset += u64::from(now);
                    *len_bytes -= now;
                    match is_last {
                        true => Progress::Done,
                        false => Progress::Part,
                    }
                })
            }
            Kind::Status {
                offset,
                len_bytes,
                one,
            } => {
                out.block_status(self.cookie, &disk.extents(*offset, *len_bytes, *one));
                Ok(Progress::Done)
            }
        };
        if done.is_err() {
            out.go_back(mark);
        }
        done
    }

    /// Ends the reply with an error: whatever it was, the client gets to know only that the disk could not be read.
    pub fn fail(&self, out: &mut Outbox) {
        let chunk = match self.kind {
            Kind::Whole { chunk, .. } => chunk,
            Kind::Chunks { .. } | Kind::Status { .. } => true,
        };
        write_error(out, self.cookie, chunk, ErrorCode::Io);
    }
}

fn fill(
    disk: &Disk,
    mode: IoMode,
    offset: u64,
    len_bytes: u32,
    room: &mut [u8],
) -> Result<(), ReadError> {
    let mut rest = room;
    disk.visit(mode, offset, len_bytes, &mut |part| {
        let len = match &part {
            Part::Bytes(source) => source.len_bytes(),
            Part::Zeros(len) => *len,
        };
        let (now, later) = std::mem::take(&mut rest).split_at_mut(len);
        rest = later;
        match part {
            Part::Bytes(source) => source.read_into(now),
            Part::Zeros(_) => {
                now.fill(0);
                Ok(())
            }
        }
    })
}

fn write_chunks(
    disk: &Disk,
    mode: IoMode,
    offset: u64,
    len_bytes: u32,
    mut chunks: Chunks<'_>,
    is_last: bool,
) -> Result<(), ReadError> {
    disk.visit(mode, offset, len_bytes, &mut |part| {
        match part {
            Part::Bytes(source) => source.read_into(chunks.data(source.len_bytes()))?,
            Part::Zeros(len) => chunks.zeros(len),
        }
        Ok(())
    })?;
    chunks.end(is_last);
    Ok(())
}

#[cfg(test)]
mod tests;
