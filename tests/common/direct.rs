//! Buffers for `O_DIRECT`.

/// The aligned part of a buffer that direct I/O accepts. The buffer must be 4095 bytes longer.
pub fn aligned(buffer: &mut [u8], len: usize) -> &mut [u8] {
    let skip = buffer.as_ptr().align_offset(4096);
    &mut buffer[skip..skip + len]
}
