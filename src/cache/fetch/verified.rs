//! A NAR that is hashed and written to a file while it is parsed.

use std::io::{self, Read, Write};

use sha2::{Digest, Sha256};

use super::super::dir::{DirError, NarHash, Staged};
use super::super::meter::{FetchMeter, Fetching};
use super::super::transport::may_pass;
use crate::source::nar::{NarError, NarTree};

/// How many bytes a compressed NAR may have: compression makes nothing much longer.
pub(super) fn compressed_max(nar_size: u64) -> u64 {
    nar_size
        .saturating_add(nar_size / 8)
        .saturating_add(1 << 20)
}

/// Why a NAR is not the one that was wanted.
#[derive(Debug, thiserror::Error)]
pub(super) enum VerifyError {
    /// It is malformed, cut short or too long.
    #[error(transparent)]
    Nar(#[from] NarError),
    /// It is another one.
    #[error("the NAR has another hash than its narinfo says")]
    Hash,
    /// It cannot be decompressed.
    #[error("the NAR cannot be read: {0}")]
    Read(#[from] io::Error),
    /// The cache directory.
    #[error(transparent)]
    Dir(#[from] DirError),
}

impl VerifyError {
    /// Whether another try may be better: the connection broke.
    pub(super) fn may_pass(&self) -> bool {
        let error = match self {
            Self::Nar(NarError::Read(error)) | Self::Read(error) => error,
            _ => return false,
        };
        may_pass(error)
    }
}

/// Counts what comes from a cache.
pub(super) struct Received<'m, R> {
    pub(super) body: R,
    pub(super) meter: &'m FetchMeter,
}

impl<R: Read> Read for Received<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let len = self.body.read(buf)?;
        self.meter.received(len);
        Ok(len)
    }
}

/// How much is written at once, at a multiple of this length. Linux chooses the size of a folio in the page cache by the
/// size of the write, and guests read from large folios faster.
const WRITE_BYTES: usize = 1 << 20;

/// Passes on what it reads.
pub(super) struct Verified<'f, R> {
    reader: R,
    to: &'f Staged,
    /// What has been read and not written yet: less than [`WRITE_BYTES`].
    unwritten: Vec<u8>,
    fetching: &'f Fetching<'f>,
    hash: Sha256,
    /// Why the file cannot be written.
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

    /// The tree that was `parsed`, if all that was read has the hash `expected` and has been written.
    pub(super) fn finish(
        mut self,
        parsed: Result<NarTree, NarError>,
        expected: &NarHash,
    ) -> Result<NarTree, VerifyError> {
        // After an error nobody uses the file.
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
            false => Err(VerifyError::Hash),
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
