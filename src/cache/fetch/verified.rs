//! Hashes a NAR and writes it to a file while it is parsed.

use std::io::{self, Read, Write};

use sha2::{Digest, Sha256};

use super::super::dir::{DirError, NarHash, Staged};
use super::super::meter::{FetchMeter, Fetching};
use super::super::transport::may_pass;
use crate::source::nar::{NarError, NarTree};

/// Returns the most bytes that a compressed NAR may have: compression hardly lengthens its input.
pub(super) fn compressed_max(nar_size: u64) -> u64 {
    nar_size
        .saturating_add(nar_size / 8)
        .saturating_add(1 << 20)
}

/// Why a NAR is not the expected one.
#[derive(Debug, thiserror::Error)]
pub(super) enum NarVerifyError {
    /// It is malformed, truncated or too long.
    #[error(transparent)]
    Nar(#[from] NarError),
    /// It is a different NAR.
    #[error("the hash of the NAR differs from the one in its narinfo")]
    Hash,
    /// It cannot be decompressed.
    #[error("the NAR cannot be read: {0}")]
    Read(#[from] io::Error),
    /// The cache directory failed.
    #[error(transparent)]
    Dir(#[from] DirError),
}

impl NarVerifyError {
    /// Returns whether a retry may succeed: the connection broke.
    pub(super) fn may_pass(&self) -> bool {
        let error = match self {
            Self::Nar(NarError::Read(error)) | Self::Read(error) => error,
            _ => return false,
        };
        may_pass(error)
    }
}

/// Counts the bytes received from a cache.
pub(super) struct MeteredBody<'m, R> {
    pub(super) body: R,
    pub(super) meter: &'m FetchMeter,
}

impl<R: Read> Read for MeteredBody<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let len = self.body.read(buf)?;
        self.meter.received(len);
        Ok(len)
    }
}

/// Data is written in units of this size, at multiples of it. Linux chooses the size of page cache folios by the size of the
/// write, and guests read faster from large folios.
const WRITE_BYTES: usize = 1 << 20;

/// Hashes the bytes read through it and writes them to a file.
pub(super) struct Verified<'f, R> {
    reader: R,
    to: &'f Staged,
    /// Bytes not yet written: less than [`WRITE_BYTES`].
    unwritten: Vec<u8>,
    fetching: &'f Fetching<'f>,
    hash: Sha256,
    /// Why writing the file failed.
    write_error: Option<io::Error>,
}

impl<'f, R: Read> Verified<'f, R> {
    pub(super) fn new(reader: R, to: &'f Staged, fetching: &'f Fetching<'f>) -> Self {
        Self {
            reader,
            to,
            unwritten: Vec::with_capacity(WRITE_BYTES),
            fetching,
            hash: Sha256::new(),
            write_error: None,
        }
    }

    /// Returns the `parsed` tree if the hash is `expected` and everything has been written.
    pub(super) fn finish(
        mut self,
        parsed: Result<NarTree, NarError>,
        expected: &NarHash,
    ) -> Result<NarTree, NarVerifyError> {
        // After an error the file is not used.
        if parsed.is_ok() {
            self.write_error = self.write_error.take().or(self.flush().err());
        }
        if let Some(error) = self.write_error {
            return Err(self.to.write_error(error).into());
        }
        let tree = parsed?;
        let hash: NarHash = self.hash.finalize().into();
        match hash == *expected {
            true => Ok(tree),
            false => Err(NarVerifyError::Hash),
        }
    }

    fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(WRITE_BYTES - self.unwritten.len()));
            self.unwritten.extend_from_slice(now);
            if self.unwritten.len() == WRITE_BYTES {
                self.flush()?;
            }
            bytes = later;
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.file().write_all(&self.unwritten)?;
        self.unwritten.clear();
        Ok(())
    }
}

impl<R: Read> Read for Verified<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let len = self.reader.read(buf)?;
        self.hash.update(&buf[..len]);
        self.fetching.wrote(len);
        if let Err(error) = self.write(&buf[..len]) {
            let kind = error.kind();
            self.write_error = Some(error);
            return Err(kind.into());
        }
        Ok(len)
    }
}
