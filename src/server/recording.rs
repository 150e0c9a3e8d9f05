//! Which worker records what its VM reads, and the process that reads a recording in advance.
//!
//! One VM is recorded, the first that uses the disk. When its worker dies, the next one goes on where it stopped; once the
//! VM has left, the recording is done.

use std::fs::File;
use std::path::Path;

use super::error::ServeError;
use crate::image::Image;
use crate::image::recording::Recording;

/// A file that a worker fills.
pub(super) struct RecordFile {
    file: File,
    /// What is in the file is to be discarded.
    replace: bool,
    turn: Turn,
}

/// Who records.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// The next worker.
    Next,
    /// The worker with this number.
    Worker(u64),
    /// Nobody any more.
    Done,
}

/// How a worker ended, as far as its recording goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RecordEnd {
    /// Its client has left.
    Complete,
    /// Its client said nothing.
    Unused,
    /// It died, and its VM may come back.
    Broken,
}

impl RecordFile {
    /// Makes the file if it is not there, and leaves what is in it until there is something to record.
    pub(super) fn open(path: &Path) -> Result<Self, ServeError> {
        let opened = File::options().append(true).create(true).open(path);
        let file = opened.map_err(|source| ServeError::Record {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            file,
            replace: true,
            turn: Turn::Next,
        })
    }

    /// In a worker that was just forked: records what is read from `image` if it is this one's turn.
    pub(super) fn record_if_next(self, image: &Image) {
        if self.turn == Turn::Next {
            image.record_to(self.file, self.replace);
        }
    }

    /// In the parent: a worker has been forked.
    pub(super) fn started(&mut self, worker: u64) {
        if self.turn == Turn::Next {
            self.turn = Turn::Worker(worker);
        }
    }

    /// In the parent: a worker has ended.
    pub(super) fn ended(&mut self, worker: u64, end: RecordEnd) {
        if self.turn != Turn::Worker(worker) {
            return;
        }
        self.turn = match end {
            RecordEnd::Complete => Turn::Done,
            RecordEnd::Unused => Turn::Next,
            RecordEnd::Broken => {
                self.replace = false;
                Turn::Next
            }
        };
    }
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
