//! Carries out requests and writes their replies.

use super::disk::{NbdDisk, ReadPart};
use super::reply::{ChunkWriter, ReplyBuffer};
use super::request::{Parsed, Refusal, Request};
use super::wire::ErrorCode;
use crate::image::ReadError;
use crate::source::IoMode;

/// A long read in chunks is carried out in segments of this length, each of which is sent before the next is read.
pub const SEGMENT_BYTES: u32 = 256 << 10;

/// A request that needs the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskRequest {
    cookie: u64,
    /// The range that is still to be read.
    offset: u64,
    len_bytes: u32,
    reply: ReplyKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ReplyKind {
    /// A simple reply with all data.
    Simple,
    /// One chunk with all data.
    SingleChunk,
    /// Any number of chunks with data and holes.
    Chunks,
    /// The extents of the range.
    Extents { one_extent: bool },
}

/// What to do after [`dispatch`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Nothing: the reply is written.
    Answered,
    /// Nothing: an error reply is written.
    Refused(Refusal),
    /// Execute a request that needs the disk.
    Execute(DiskRequest),
    /// Close the connection.
    Disconnect,
}

/// Progress of a [`DiskRequest`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplyProgress {
    /// The reply is complete.
    Done,
    /// A part of the reply is written, and more will follow.
    More,
}

/// Answers requests that do not need the disk.
pub fn dispatch(parsed: &Parsed, out: &mut ReplyBuffer) -> Action {
    let cookie = parsed.cookie;
    let (offset, len_bytes, reply) = match parsed.request {
        Request::Read {
            offset,
            len_bytes,
            unfragmented,
        } => {
            let reply = match (parsed.structured, unfragmented) {
                (false, _) => ReplyKind::Simple,
                (true, true) => ReplyKind::SingleChunk,
                (true, false) => ReplyKind::Chunks,
            };
            (offset, len_bytes, reply)
        }
        Request::BlockStatus {
            offset,
            len_bytes,
            one_extent,
        } => (offset, len_bytes, ReplyKind::Extents { one_extent }),
        Request::Flush => {
            out.simple(cookie, None);
            return Action::Answered;
        }
        Request::Disconnect => return Action::Disconnect,
        Request::Refused(refusal) => {
            write_error(out, cookie, parsed.structured, refusal.code());
            return Action::Refused(refusal);
        }
    };
    Action::Execute(DiskRequest {
        cookie,
        offset,
        len_bytes,
        reply,
    })
}

fn write_error(out: &mut ReplyBuffer, cookie: u64, chunk: bool, code: ErrorCode) {
    if chunk {
        out.error(cookie, code);
    } else {
        out.simple(cookie, Some(code));
    }
}

impl DiskRequest {
    /// Whether it may take much time or memory. It then belongs in the pool, not in the receiving thread.
    pub fn is_slow(&self) -> bool {
        // A query of extents may have to plan paths.
        self.is_large() || matches!(self.reply, ReplyKind::Extents { .. })
    }

    /// Whether its reply is longer than [`SEGMENT_BYTES`] and must be in memory as a whole.
    pub fn is_large(&self) -> bool {
        let is_whole = matches!(self.reply, ReplyKind::Simple | ReplyKind::SingleChunk);
        is_whole && self.len_bytes > SEGMENT_BYTES
    }

    /// Number of bytes that are still to be read.
    pub fn len_bytes(&self) -> u64 {
        match self.reply {
            ReplyKind::Extents { .. } => 0,
            _ => self.len_bytes.into(),
        }
    }

    /// Offset on the disk, for log messages.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Executes the next part, and appends that part of the reply to `out`.
    ///
    /// # Errors
    /// The disk cannot be read. Nothing is written then, and the call can be repeated.
    pub fn advance(
        &mut self,
        disk: &NbdDisk,
        mode: IoMode,
        out: &mut ReplyBuffer,
    ) -> Result<ReplyProgress, ReadError> {
        let position = out.position();
        let result = self.write_part(disk, mode, out);
        if result.is_err() {
            out.truncate_to(position);
        }
        result
    }

    fn write_part(
        &mut self,
        disk: &NbdDisk,
        mode: IoMode,
        out: &mut ReplyBuffer,
    ) -> Result<ReplyProgress, ReadError> {
        let (offset, len_bytes) = (self.offset, self.len_bytes);
        let len = usize::try_from(len_bytes).unwrap_or(usize::MAX);
        match self.reply {
            ReplyKind::Simple => {
                let data = out.simple_data(self.cookie, len);
                fill(disk, mode, offset, len_bytes, data)?;
            }
            ReplyKind::SingleChunk => {
                let data = out.single_chunk_data(self.cookie, offset, len);
                fill(disk, mode, offset, len_bytes, data)?;
            }
            ReplyKind::Chunks => {
                let now = SEGMENT_BYTES.min(len_bytes);
                let is_last = now == len_bytes;
                let chunks = ChunkWriter::new(out, self.cookie, offset);
                write_chunks(disk, mode, offset, now, chunks, is_last)?;
                self.offset += u64::from(now);
                self.len_bytes -= now;
                if !is_last {
                    return Ok(ReplyProgress::More);
                }
            }
            ReplyKind::Extents { one_extent } => {
                let extents = disk.extents(offset, len_bytes, one_extent);
                out.block_status(self.cookie, &extents);
            }
        }
        Ok(ReplyProgress::Done)
    }

    /// Ends the reply with an I/O error. The client does not learn more than that.
    pub fn fail(&self, out: &mut ReplyBuffer) {
        let chunk = self.reply != ReplyKind::Simple;
        write_error(out, self.cookie, chunk, ErrorCode::Io);
    }
}

fn fill(
    disk: &NbdDisk,
    mode: IoMode,
    offset: u64,
    len_bytes: u32,
    room: &mut [u8],
) -> Result<(), ReadError> {
    let mut rest = room;
    disk.visit(mode, offset, len_bytes, &mut |part| {
        let len = match &part {
            ReadPart::Bytes(source) => source.len_bytes(),
            ReadPart::Zeros(len) => *len,
        };
        let (now, later) = std::mem::take(&mut rest).split_at_mut(len);
        rest = later;
        match part {
            ReadPart::Bytes(source) => source.read_into(now),
            ReadPart::Zeros(_) => {
                now.fill(0);
                Ok(())
            }
        }
    })
}

fn write_chunks(
    disk: &NbdDisk,
    mode: IoMode,
    offset: u64,
    len_bytes: u32,
    mut chunks: ChunkWriter<'_>,
    is_last: bool,
) -> Result<(), ReadError> {
    disk.visit(mode, offset, len_bytes, &mut |part| {
        match part {
            ReadPart::Bytes(source) => source.read_into(chunks.data(source.len_bytes()))?,
            ReadPart::Zeros(len) => chunks.zeros(len),
        }
        Ok(())
    })?;
    chunks.end(is_last);
    Ok(())
}

#[cfg(test)]
mod tests;
