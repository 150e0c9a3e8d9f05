//! Encodes replies.

use super::disk::AllocationExtent;
use super::wire::{
    BASE_ALLOCATION_ID, CHUNK_LEN_BYTES, ErrorCode, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC,
    allocation, chunk,
};

/// Minimum length of a hole. Fewer zeros are sent as data, because a chunk for a hole takes 32 bytes and the client's
/// time.
const HOLE_MIN_BYTES: usize = 4096;

/// Offset of the flags in a chunk.
const FLAGS_OFFSET: usize = 4;
/// Offset of the payload's length in a chunk.
const LENGTH_OFFSET: usize = 16;
/// Offset of the length of a hole in its chunk.
const HOLE_LENGTH_OFFSET: usize = CHUNK_LEN_BYTES + 8;

/// Replies to be sent. The allocation is reused for later replies, without clearing it.
#[derive(Debug, Default)]
pub struct ReplyBuffer {
    bytes: Vec<u8>,
    used: usize,
}

/// A position in a [`ReplyBuffer`].
#[derive(Debug, Clone, Copy)]
pub struct Position(usize);

impl ReplyBuffer {
    /// The bytes to be sent.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.used]
    }

    /// Empties the buffer, after it was sent. Frees memory beyond `keep_bytes`, which only a long reply needs.
    pub fn clear(&mut self, keep_bytes: usize) {
        self.used = 0;
        if self.bytes.len() > keep_bytes {
            self.bytes.truncate(keep_bytes);
            self.bytes.shrink_to_fit();
        }
    }

    /// The end of the buffer, where the next reply begins.
    pub fn position(&self) -> Position {
        Position(self.used)
    }

    /// Removes everything after `position`.
    pub fn truncate_to(&mut self, position: Position) {
        self.used = self.used.min(position.0);
    }

    /// Writes the header of a simple reply. If there is no error, the data of a read follow.
    pub fn simple(&mut self, cookie: u64, error: Option<ErrorCode>) {
        self.write(&SIMPLE_REPLY_MAGIC.to_be_bytes());
        self.write(&error.map_or(0, ErrorCode::number).to_be_bytes());
        self.write(&cookie.to_be_bytes());
    }

    /// Writes a simple reply with `len` bytes of data, which the caller fills in.
    pub fn simple_data(&mut self, cookie: u64, len: usize) -> &mut [u8] {
        self.simple(cookie, None);
        self.reserve(len)
    }

    /// Writes a structured reply of one chunk with `len` bytes of data, which the caller fills in.
    pub fn single_chunk_data(&mut self, cookie: u64, offset: u64, len: usize) -> &mut [u8] {
        let chunk = self.chunk(chunk::OFFSET_DATA, cookie, 8 + len);
        self.finish(chunk);
        self.write(&offset.to_be_bytes());
        self.reserve(len)
    }

    /// Writes a structured reply with an error and no message: a message would tell the client paths on the host.
    pub fn error(&mut self, cookie: u64, error: ErrorCode) {
        let chunk = self.chunk(chunk::ERROR, cookie, 4 + 2);
        self.finish(chunk);
        self.write(&error.number().to_be_bytes());
        self.write(&[0, 0]);
    }

    /// Writes a structured reply with extents.
    pub fn block_status(&mut self, cookie: u64, extents: &[AllocationExtent]) {
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

    fn reserve(&mut self, len: usize) -> &mut [u8] {
        let start = self.used;
        self.used += len;
        if self.bytes.len() < self.used {
            self.bytes.resize(self.used.next_multiple_of(4096), 0);
        }
        &mut self.bytes[start..self.used]
    }

    fn write(&mut self, bytes: &[u8]) {
        self.reserve(bytes.len()).copy_from_slice(bytes);
    }

    /// Writes the header of a chunk. The reply's last chunk must be marked with [`finish`](Self::finish).
    fn chunk(&mut self, kind: u16, cookie: u64, len: usize) -> Position {
        let position = self.position();
        self.write(&STRUCTURED_REPLY_MAGIC.to_be_bytes());
        self.write(&0u16.to_be_bytes());
        self.write(&kind.to_be_bytes());
        self.write(&cookie.to_be_bytes());
        self.write(&length(len));
        position
    }

    /// Marks `chunk` as the last one of its reply.
    fn finish(&mut self, chunk: Position) {
        self.overwrite(chunk, FLAGS_OFFSET, &chunk::FLAG_DONE.to_be_bytes());
    }

    fn overwrite(&mut self, position: Position, at: usize, bytes: &[u8]) {
        let start = position.0 + at;
        self.bytes[start..start + bytes.len()].copy_from_slice(bytes);
    }
}

/// A length on the wire. Replies are limited to far below 4 GiB, so it always fits.
fn length(len: usize) -> [u8; 4] {
    u32::try_from(len).unwrap_or(u32::MAX).to_be_bytes()
}

/// The chunk that was written last, and may still grow.
#[derive(Debug, Clone, Copy)]
enum LastChunk {
    /// Data: where the chunk begins, and where its data begin.
    Data(Position, usize),
    /// A hole: where the chunk begins, and the hole's length.
    Hole(Position, usize),
}

/// Writes a structured reply in chunks of data and holes. Neighbouring parts of the same kind share a chunk.
pub struct ChunkWriter<'o> {
    out: &'o mut ReplyBuffer,
    cookie: u64,
    /// Offset on the disk of the next part.
    offset: u64,
    last: Option<LastChunk>,
}

impl<'o> ChunkWriter<'o> {
    /// Starts at `offset` on the disk.
    pub fn new(out: &'o mut ReplyBuffer, cookie: u64, offset: u64) -> Self {
        Self {
            out,
            cookie,
            offset,
            last: None,
        }
    }

    /// Appends `len` bytes of data, which the caller fills in.
    pub fn data(&mut self, len: usize) -> &mut [u8] {
        if !matches!(self.last, Some(LastChunk::Data(..))) {
            let position = self.out.chunk(chunk::OFFSET_DATA, self.cookie, 0);
            self.out.write(&self.offset.to_be_bytes());
            self.last = Some(LastChunk::Data(position, self.out.used));
        }
        self.offset += len as u64;
        self.out.reserve(len)
    }

    /// Appends `len` zeros.
    pub fn zeros(&mut self, len: usize) {
        match self.last {
            Some(LastChunk::Hole(position, before)) => {
                self.offset += len as u64;
                self.set_hole(position, before + len);
            }
            _ if len < HOLE_MIN_BYTES => self.data(len).fill(0),
            _ => {
                self.close();
                let position = self.out.chunk(chunk::OFFSET_HOLE, self.cookie, 8 + 4);
                self.out.write(&self.offset.to_be_bytes());
                self.out.write(&[0; 4]);
                self.offset += len as u64;
                self.set_hole(position, len);
            }
        }
    }

    /// Ends the last chunk; with `done`, also the reply.
    pub fn end(mut self, done: bool) {
        self.close();
        if let Some(LastChunk::Data(position, _) | LastChunk::Hole(position, _)) =
            self.last.filter(|_| done)
        {
            self.out.finish(position);
        }
    }

    fn set_hole(&mut self, position: Position, len: usize) {
        self.out
            .overwrite(position, HOLE_LENGTH_OFFSET, &length(len));
        self.last = Some(LastChunk::Hole(position, len));
    }

    /// Sets the length of the last chunk, if it contains data.
    fn close(&mut self) {
        if let Some(LastChunk::Data(position, start)) = self.last {
            let len = length(8 + self.out.used - start);
            self.out.overwrite(position, LENGTH_OFFSET, &len);
        }
    }
}

#[cfg(test)]
mod tests;
