//! Decompresses streams.
//!
//! Memory is bounded for any input: xz and zstd streams that need more than [`MEMORY_MAX_BYTES`] are rejected; brotli
//! needs slightly more than 16 MiB, the others less. The caller must bound the size of the output, and of input that
//! produces no output.

use std::io::{self, BufRead, BufReader, Error, ErrorKind, Read};

use brotli_decompressor::{BrotliDecompressStream, BrotliResult, BrotliState, StandardAlloc};
use bzip2::bufread::MultiBzDecoder;
use flate2::bufread::MultiGzDecoder;
use liblzma::bufread::XzDecoder;
use liblzma::stream::{CONCATENATED, Stream};

use crate::closure::narinfo::Compression;

/// Memory limit: the default of `zstd -d`, and more than `xz -9` needs.
pub const MEMORY_MAX_BYTES: u64 = 1 << ZSTD_WINDOW_LOG_MAX;

const ZSTD_WINDOW_LOG_MAX: u32 = 27;

/// Size of the input buffer in bytes.
const READ_BYTES: usize = 64 << 10;

/// Decompresses `reader`. Concatenated streams are accepted as in Nix, except for brotli. Truncated input and trailing
/// garbage cause an error when the stream is read to its end.
///
/// # Errors
/// There is not enough memory.
pub fn decompress<'r>(
    compression: Compression,
    reader: impl Read + Send + 'r,
) -> io::Result<Box<dyn Read + Send + 'r>> {
    let buffered = BufReader::with_capacity(READ_BYTES, reader);
    Ok(match compression {
        Compression::None => Box::new(buffered),
        Compression::Xz => {
            let stream = Stream::new_stream_decoder(MEMORY_MAX_BYTES, CONCATENATED)?;
            Box::new(XzDecoder::new_stream(buffered, stream))
        }
        Compression::Zstd => {
            let mut decoder = zstd::Decoder::with_buffer(buffered)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
            Box::new(decoder)
        }
        Compression::Brotli => Box::new(BrotliReader::new(buffered)),
        Compression::Bzip2 => Box::new(MultiBzDecoder::new(buffered)),
        Compression::Gzip => Box::new(MultiGzDecoder::new(buffered)),
    })
}

/// A brotli reader that rejects trailing garbage, which the crate's own reader ignores.
struct BrotliReader<R> {
    input: R,
    state: BrotliState<StandardAlloc, StandardAlloc, StandardAlloc>,
    total_out: usize,
    ended: bool,
}

impl<R: BufRead> BrotliReader<R> {
    fn new(input: R) -> Self {
        let allocators = [(); 3].map(|()| StandardAlloc::default());
        let [bytes, numbers, codes] = allocators;
        Self {
            input,
            // Strict: rejects the extension for windows of up to 1 GiB, which is not part of RFC 7932.
            state: BrotliState::new_strict(bytes, numbers, codes),
            total_out: 0,
            ended: false,
        }
    }

    /// Decompresses available input into `to`; returns the number of bytes.
    fn step(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let input = self.input.fill_buf()?;
        let at_end = input.is_empty();
        if self.ended {
            return match at_end {
                true => Ok(0),
                false => Err(invalid("trailing garbage after the brotli stream")),
            };
        }
        let (mut left, mut read, mut room, mut written) = (input.len(), 0, to.len(), 0);
        let result = BrotliDecompressStream(
            &mut left,
            &mut read,
            input,
            &mut room,
            &mut written,
            to,
            &mut self.total_out,
            &mut self.state,
        );
        self.input.consume(read);
        match result {
            BrotliResult::ResultSuccess => self.ended = true,
            BrotliResult::ResultFailure => return Err(invalid("the brotli stream is corrupt")),
            BrotliResult::NeedsMoreInput if at_end && written == 0 => {
                let fault = "the brotli stream is truncated";
                return Err(Error::new(ErrorKind::UnexpectedEof, fault));
            }
            BrotliResult::NeedsMoreInput | BrotliResult::NeedsMoreOutput => {}
        }
        Ok(written)
    }
}

impl<R: BufRead> Read for BrotliReader<R> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        while !to.is_empty() {
            let was_ended = self.ended;
            let len = self.step(to)?;
            if len > 0 || was_ended {
                return Ok(len);
            }
        }
        Ok(0)
    }
}

fn invalid(fault: &'static str) -> Error {
    Error::new(ErrorKind::InvalidData, fault)
}

#[cfg(test)]
mod tests;
