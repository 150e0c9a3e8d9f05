//! The recording of what a VM reads, and prefetching.
//!
//! One VM is recorded: the first that reads from a store path. If its worker dies, the next worker that reads continues
//! the recording. When the VM disconnects, the recording is complete.

use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read as _, Write as _};
use std::path::Path;
use std::sync::Arc;

use rustix::io::ioctl_fionbio;

use super::error::ServeError;
use super::messages::{Message, MessageSender};
use crate::image::recording::Recording;
use crate::image::{Image, RecordStart};

/// A file to which a worker writes what is read from the main disk.
///
/// A pipe decides which worker records: it contains one byte, the token, and the worker that reads it records. Each
/// worker tries that at its first read from a path, so clients that only connect do not get the token.
pub(super) struct RecordFile {
    image: Arc<Image>,
    file: File,
    token: PipeReader,
    token_writer: PipeWriter,
}

/// Values of the token: whether the recording starts from scratch or continues.
const START_NEW: u8 = b'0';
const APPEND: u8 = b'1';

impl RecordFile {
    /// Creates the file if it does not exist. Does not truncate it: an old recording stays until a new one starts.
    pub(super) fn open(path: &Path, image: Arc<Image>) -> Result<Self, ServeError> {
        let opened = File::options().append(true).create(true).open(path);
        let file = opened.map_err(|source| ServeError::Record {
            path: path.to_owned(),
            source,
        })?;
        let (token, token_writer) = token_pipe().map_err(ServeError::host("create a pipe"))?;
        Ok(Self {
            image,
            file,
            token,
            token_writer,
        })
    }

    /// In a new worker: starts recording at the first read, if this worker then gets the token.
    pub(super) fn start(self, sender: Arc<MessageSender>) {
        let Self {
            image,
            file,
            mut token,
            ..
        } = self;
        image.record_to(file, move || {
            let mut byte = [0];
            token.read_exact(&mut byte).ok()?;
            sender.send(&Message::Recording);
            Some(match byte {
                [START_NEW] => RecordStart::Anew,
                _ => RecordStart::AtItsEnd,
            })
        });
    }

    /// In the parent, after the recording worker has died: puts a token in the pipe for the next worker.
    pub(super) fn release(&mut self) {
        // The pipe has space: it contains at most one other token.
        let _ = self.token_writer.write(&[APPEND]);
    }
}

/// A pipe that contains the first token. Neither end blocks.
fn token_pipe() -> io::Result<(PipeReader, PipeWriter)> {
    let (token, mut token_writer) = io::pipe()?;
    ioctl_fionbio(&token, true)?;
    ioctl_fionbio(&token_writer, true)?;
    token_writer.write_all(&[START_NEW])?;
    Ok((token, token_writer))
}

/// Prefetches what `recording` names.
pub(super) fn prefetch(image: &Image, recording: &Recording) {
    let begin = std::time::Instant::now();
    let done = image.prefetch(recording);
    tracing::info!(
        paths = done.known_paths,
        seconds = begin.elapsed().as_secs_f64(),
        unknown_paths = done.paths - done.known_paths,
        failed_ranges = done.failed,
        "prefetched what was recorded"
    );
}
