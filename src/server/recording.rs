//! Which worker records what its VM reads, and the process that reads a recording in advance.
//!
//! One VM is recorded, the first that reads something of a path. When its worker dies, the next one that reads goes on where
//! it stopped; once the VM has left, the recording is done.

use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read as _, Write as _};
use std::path::Path;
use std::sync::Arc;

use rustix::io::ioctl_fionbio;

use super::error::ServeError;
use super::report::{Reporter, Word};
use crate::image::recording::Recording;
use crate::image::{Image, Start};

/// A file that a worker fills with what is read from the main disk.
///
/// Whose turn it is, is decided by a pipe: it holds one byte, and the worker that reads it records. All workers have its
/// end, so a client that only connects, or never reads, takes nothing.
pub(super) struct RecordFile {
    image: Arc<Image>,
    file: File,
    turn: PipeReader,
    give: PipeWriter,
}

/// The byte for each way to begin.
const ANEW: u8 = b'0';
const AT_ITS_END: u8 = b'1';

impl RecordFile {
    /// Makes the file if it is not there, and leaves what is in it until there is something to record.
    pub(super) fn open(path: &Path, image: Arc<Image>) -> Result<Self, ServeError> {
        let opened = File::options().append(true).create(true).open(path);
        let file = opened.map_err(|source| ServeError::Record {
            path: path.to_owned(),
            source,
        })?;
        let (turn, give) = turn_pipe().map_err(ServeError::host("create a pipe"))?;
        Ok(Self {
            image,
            file,
            turn,
            give,
        })
    }

    /// In a worker that was just forked: records what is read, if nobody else does by then.
    pub(super) fn record(self, reporter: Arc<Reporter>) {
        let Self {
            image,
            file,
            mut turn,
            ..
        } = self;
        image.record_to(file, move || {
            let mut byte = [0];
            turn.read_exact(&mut byte).ok()?;
            reporter.tell(&Word::Records);
            Some(match byte {
                [ANEW] => Start::Anew,
                _ => Start::AtItsEnd,
            })
        });
    }

    /// In the parent: the worker that recorded has died, and its VM may come back.
    pub(super) fn give_to_next(&mut self) {
        // There is room: it holds a byte or two.
        let _ = self.give.write(&[AT_ITS_END]);
    }
}

/// A pipe with the first turn in it. Neither end is waited for.
fn turn_pipe() -> io::Result<(PipeReader, PipeWriter)> {
    let (turn, mut give) = io::pipe()?;
    ioctl_fionbio(&turn, true)?;
    ioctl_fionbio(&give, true)?;
    give.write_all(&[ANEW])?;
    Ok((turn, give))
}

/// Reads in advance what `recording` names.
pub(super) fn prefetch(image: &Image, recording: &Recording) {
    let begin = std::time::Instant::now();
    let done = image.prefetch(recording);
    tracing::info!(
        paths = done.known_paths,
        seconds = begin.elapsed().as_secs_f64(),
        unknown_paths = done.paths - done.known_paths,
        failed_ranges = done.failed,
        "read in advance what was recorded"
    );
}
