//! Buffers for `O_DIRECT`.

/// A part of a buffer, which must be 4095 bytes longer, that direct I/O accepts.
pub fn aligned(buffer: &mut [u8], len: usize) -> &mut [u8] {
    let skip = buffer.as_ptr().align_offset(4096);
    &mut buffer[skip..skip + len]
}
