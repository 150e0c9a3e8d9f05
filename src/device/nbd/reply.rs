//! Replies as bytes: what has been answered and is not sent yet.

use super::disk::Extent;
use super::wire::{
    BASE_ALLOCATION_ID, CHUNK_LEN_BYTES, ErrorCode, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC,
    allocation, chunk,
};

/// Fewer zeros than this are sent as such: a chunk of their own takes 32 bytes and the client's time.
const HOLE_MIN_BYTES: usize = 4096;

/// Where the flags lie in a chunk.
const FLAGS_AT: usize = 4;
/// Where its length lies.
const LENGTH_AT: usize = 16;
/// Where the length of a hole lies.
const HOLE_LENGTH_AT: usize = CHUNK_LEN_BYTES + 8;

/// Bytes to be sent. What was sent once is overwritten without having been cleared.
#[derive(Debug, Default)]
pub struct Outbox {
    bytes: Vec<u8>,
    used: usize,
}

/// A place in an [`Outbox`], to go back to.
#[derive(Debug, Clone, Copy)]
pub struct Mark(usize);

impl Outbox {
    /// What is to be sent.
    pub fn filled(&self) -> &[u8] {
        &self.bytes[..self.used]
    }

    /// It was sent. Room that only a long reply needs is given back.
    pub fn clear(&mut self, keep_bytes: usize) {
        self.used = 0;
        if self.bytes.len() > keep_bytes {
            self.bytes.truncate(keep_bytes);
            self.bytes.shrink_to_fit();
        }
    }

    /// Where the next reply begins.
    pub fn mark(&self) -> Mark {
        Mark(self.used)
    }

    /// Takes back what was written since.
    pub fn go_back(&mut self, mark: Mark) {
        self.used = self.used.min(mark.0);
    }

    /// A simple reply, whose data follow if there is no error.
    pub fn simple(&mut self, cookie: u64, error: Option<ErrorCode>) {
        self.write(&SIMPLE_REPLY_MAGIC.to_be_bytes());
        self.write(&error.map_or(0, ErrorCode::number).to_be_bytes());
        self.write(&cookie.to_be_bytes());
    }

    /// A simple reply with room for `len` bytes of data.
    pub fn simple_data(&mut self, cookie: u64, len: usize) -> &mut [u8] {
        self.simple(cookie, None);
        self.room(len)
    }

    /// A reply in one chunk of data, with room for all its `len` bytes.
    pub fn whole_data(&mut self, cookie: u64, offset: u64, len: usize) -> &mut [u8] {
        let chunk = self.chunk(chunk::OFFSET_DATA, cookie, 8 + len);
        self.finish(chunk);
        self.write(&offset.to_be_bytes());
        self.room(len)
    }

    /// A reply in one chunk that says only what is wrong. Paths of the host are no business of the client's.
    pub fn error(&mut self, cookie: u64, error: ErrorCode) {
        let chunk = self.chunk(chunk::ERROR, cookie, 4 + 2);
        self.finish(chunk);
        self.write(&error.number().to_be_bytes());
        self.write(&[0, 0]);
    }

    /// A reply that says what is allocated.
    pub fn block_status(&mut self, cookie: u64, extents: &[Extent]) {
        let chunk = self.chunk(chunk::BLOCK_STATUS, cookie, 4 + 8 * extents.len());
        self.finish(chunk);
        self.write(&BASE_ALLOCATION_ID.to_be_bytes());
        for extent in extents {
            let status = match extent.is_hole {
                true => allocation::HOLE | allocation::ZERO,
                false => 0,
            };
            self.write(&extent.len_bytes.to_be_bytes());
            self.write(&status.to_be_bytes());
        }
    }

    fn room(&mut self, len: usize) -> &mut [u8] {
        let start = self.used;
        self.used += len;
        if self.bytes.len() < self.used {
            self.bytes.resize(self.used.next_multiple_of(4096), 0);
        }
        &mut self.bytes[start..self.used]
    }

    fn write(&mut self, bytes: &[u8]) {
        self.room(bytes.len()).copy_from_slice(bytes);
    }

    /// The header of a chunk; more of them follow unless it is [`finish`](Self::finish)ed.
    fn chunk(&mut self, kind: u16, cookie: u64, len: usize) -> Mark {
        let mark = self.mark();
        self.write(&STRUCTURED_REPLY_MAGIC.to_be_bytes());
        self.write(&0u16.to_be_bytes());
        self.write(&kind.to_be_bytes());
        self.write(&cookie.to_be_bytes());
        self.write(&length(len));
        mark
    }

    /// Makes `chunk` the last one of its reply.
    fn finish(&mut self, chunk: Mark) {
        self.overwrite(chunk, FLAGS_AT, &chunk::FLAG_DONE.to_be_bytes());
    }

    fn overwrite(&mut self, mark: Mark, at: usize, bytes: &[u8]) {
        let start = mark.0 + at;
        self.bytes[start..start + bytes.len()].copy_from_slice(bytes);
    }
}

/// Replies are bounded: a length that does not fit cannot be.
fn length(len: usize) -> [u8; 4] {
    u32::try_from(len).unwrap_or(u32::MAX).to_be_bytes()
}

/// The chunk that was written last.
#[derive(Debug, Clone, Copy)]
enum Last {
    /// Data that may become more, and where they begin.
    Data(Mark, usize),
    /// So many zeros, which may become more.
    Hole(Mark, usize),
}

/// A reply in chunks of data and holes that is being written.
pub struct Chunks<'o> {
    out: &'o mut Outbox,
    cookie: u64,
    /// First byte of the disk that is still missing.
    offset: u64,
    last: Option<Last>,
}

impl<'o> Chunks<'o> {
    /// Of the disk from `offset` on.
    pub fn new(out: &'o mut Outbox, cookie: u64, offset: u64) -> Self {
        Self {
            out,
            cookie,
            offset,
            last: None,
        }
    }

    /// Room for `len` bytes of data.
    pub fn data(&mut self, len: usize) -> &mut [u8] {
        if !matches!(self.last, Some(Last::Data(..))) {
            let mark = self.out.chunk(chunk::OFFSET_DATA, self.cookie, 0);
            self.out.write(&self.offset.to_be_bytes());
            self.last = Some(Last::Data(mark, self.out.used));
        }
        self.offset += len as u64;
        self.out.room(len)
    }

    /// So many zeros.
    pub fn zeros(&mut self, len: usize) {
        match self.last {
            Some(Last::Hole(mark, before)) => {
                self.offset += len as u64;
                self.set_hole(mark, before + len);
            }
            _ if len < HOLE_MIN_BYTES => self.data(len).fill(0),
            _ => {
                self.close();
                let mark = self.out.chunk(chunk::OFFSET_HOLE, self.cookie, 8 + 4);
                self.out.write(&self.offset.to_be_bytes());
                self.out.write(&[0; 4]);
                self.offset += len as u64;
                self.set_hole(mark, len);
            }
        }
    }

    /// That was all for now; with `done`, for good.
    pub fn end(mut self, done: bool) {
        self.close();
        if let Some(Last::Data(mark, _) | Last::Hole(mark, _)) = self.last.filter(|_| done) {
            self.out.finish(mark);
        }
    }

    fn set_hole(&mut self, mark: Mark, len: usize) {
        self.out.overwrite(mark, HOLE_LENGTH_AT, &length(len));
        self.last = Some(Last::Hole(mark, len));
    }

    /// Only now is it known how long the data are.
    fn close(&mut self) {
        if let Some(Last::Data(mark, start)) = self.last {
            let len = length(8 + self.out.used - start);
            self.out.overwrite(mark, LENGTH_AT, &len);
        }
    }
}

#[cfg(test)]
mod tests;
