//! The arguments about recordings of what a VM reads.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use clap::Args;

use super::errors::{CliError, RecordingError};
use crate::closure::{Closure, Contents};
use crate::image::recording::Recording;

/// What to record, and what to read in advance.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "The next boot")]
pub struct RecordArgs {
    /// Keep a recording in FILE of what the first VM reads: make it when there is none or the closure has changed, and
    /// have the host read in advance what it says
    #[arg(long, value_name = "FILE", conflicts_with_all = ["record", "prefetch"])]
    recording: Option<PathBuf>,
    /// Write down in FILE what the first VM reads, for --prefetch; without a socket, what is read from the file
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    /// Have the host read in advance what FILE, made with --record, says; paths that are not in this closure are left out
    #[arg(long, value_name = "FILE")]
    prefetch: Option<PathBuf>,
}

/// What becomes of the arguments.
#[derive(Debug, Default)]
pub struct Records {
    /// Where to write down what is read.
    pub record: Option<PathBuf>,
    /// What to read in advance.
    pub prefetch: Option<Recording>,
    /// A file that serving makes: to be removed if nothing was recorded.
    made: Option<PathBuf>,
}

impl RecordArgs {
    /// The file that is written, and the option that names it.
    pub fn written(&self) -> Option<(&'static str, &Path)> {
        let record = self.record.as_deref().map(|path| ("--record", path));
        let recording = self.recording.as_deref();
        record.or(recording.map(|path| ("--recording", path)))
    }

    /// Reads the recording that is there, and finds out whether to make one of `closure`.
    ///
    /// # Errors
    /// When the file for `--prefetch` cannot be read, or is no recording.
    pub fn records(&self, closure: &Closure) -> Result<Records, CliError> {
        let prefetch = match (&self.prefetch, &self.recording) {
            (Some(path), _) => Some(read(path)?),
            (None, Some(path)) => kept(path),
            (None, None) => None,
        };
        let is_kept = self.recording.is_some();
        let is_fresh = prefetch.as_ref().is_some_and(|old| is_of(old, closure));
        let written = self.written().map(|(_, path)| path.to_owned());
        let record = written.filter(|_| !(is_kept && is_fresh));
        let made = record.clone().filter(|path| !path.exists());
        let record = record.filter(|path| !is_kept || is_writable(path));
        Ok(Records {
            record,
            prefetch,
            made,
        })
    }
}

impl Records {
    /// After serving: an empty file is no recording.
    pub fn remove_empty(&self) {
        if let Some(path) = &self.made
            && fs::metadata(path).is_ok_and(|found| found.is_file() && found.len() == 0)
            && let Err(error) = fs::remove_file(path)
        {
            tracing::warn!("{} is empty and cannot be removed: {error}", path.display());
        }
    }
}

fn read(path: &Path) -> Result<Recording, RecordingError> {
    let text = fs::read(path).map_err(|source| RecordingError::Read {
        path: path.to_owned(),
        source,
    })?;
    Recording::parse(&text).map_err(|source| RecordingError::Parse {
        path: path.to_owned(),
        source,
    })
}

/// The recording at `path` if it is of use. One that is not must not keep a VM from starting.
fn kept(path: &Path) -> Option<Recording> {
    // Left by a start that was killed.
    if fs::metadata(path).is_ok_and(|found| found.is_file() && found.len() == 0) {
        return None;
    }
    match read(path) {
        Ok(recording) => Some(recording),
        Err(RecordingError::Read { source, .. }) if source.kind() == ErrorKind::NotFound => None,
        Err(RecordingError::Read { path, source }) => {
            tracing::warn!("cannot read the recording {}: {source}", path.display());
            None
        }
        Err(RecordingError::Parse { path, source }) => {
            tracing::warn!("{}: {source}; it is recorded again", path.display());
            None
        }
    }
}

/// Makes the file if it is not there.
fn is_writable(path: &Path) -> bool {
    let opened = File::options().append(true).create(true).open(path);
    if let Err(error) = &opened {
        tracing::warn!("cannot write the recording {}: {error}", path.display());
    }
    opened.is_ok()
}

/// Whether the closure has all that was recorded. A path that is not there any more has a successor that was not recorded.
fn is_of(recording: &Recording, closure: &Closure) -> bool {
    let names: HashSet<&[u8]> = match &closure.contents {
        Contents::StorePaths(paths) => paths.iter().map(|path| &*path.name).collect(),
        Contents::Tree => HashSet::from([&b""[..]]),
    };
    recording.paths.iter().all(|name| names.contains(&**name))
}
