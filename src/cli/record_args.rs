//! Arguments for recording what a VM reads, and for prefetching it.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use clap::Args;

use super::errors::{CliError, RecordingError};
use crate::closure::{Closure, Contents};
use crate::image::recording::Recording;

/// What to record and what to prefetch.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Recording and prefetching")]
pub struct RecordArgs {
    /// Prefetch what FILE, a recording, lists. If FILE does not exist or the closure has changed, record in FILE what
    /// the first VM reads
    #[arg(long, value_name = "FILE", requires = "SourceArgs", conflicts_with_all = ["record", "prefetch"])]
    recording: Option<PathBuf>,
    /// Record in FILE what the first VM reads, for --prefetch; without a socket, what is read from the mounted file
    #[arg(long, value_name = "FILE", requires = "SourceArgs")]
    record: Option<PathBuf>,
    /// Read what FILE, made with --record, lists into the host's page cache in advance; paths outside this closure are
    /// skipped
    #[arg(long, value_name = "FILE", requires = "SourceArgs")]
    prefetch: Option<PathBuf>,
}

/// The recording to make and the recording to prefetch.
#[derive(Debug, Default)]
pub struct Records {
    /// File to record to.
    pub record: Option<PathBuf>,
    /// Recording to prefetch.
    pub prefetch: Option<Recording>,
    /// A file that did not exist before, to be removed if nothing was recorded.
    made: Option<PathBuf>,
}

impl RecordArgs {
    /// The file to be written, and the option that names it.
    pub fn written(&self) -> Option<(&'static str, &Path)> {
        let record = self.record.as_deref().map(|path| ("--record", path));
        let recording = self.recording.as_deref();
        record.or(recording.map(|path| ("--recording", path)))
    }

    /// Reads the existing recording and decides whether to make a new one of `closure`.
    ///
    /// # Errors
    /// The file for `--prefetch` cannot be read or is not a recording.
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
    /// Called after serving: removes the file again if nothing was recorded.
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

/// The recording at `path`, if it is usable. An unusable one only causes a warning, so that the VM still starts.
fn kept(path: &Path) -> Option<Recording> {
    // An empty file is left over if an earlier run was killed.
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

/// Whether the file can be written; creates it if it does not exist.
fn is_writable(path: &Path) -> bool {
    let opened = File::options().append(true).create(true).open(path);
    if let Err(error) = &opened {
        tracing::warn!("cannot write the recording {}: {error}", path.display());
    }
    opened.is_ok()
}

/// Whether the closure has all recorded paths. If one is gone, the closure has changed, and its replacement was not
/// recorded.
fn is_of(recording: &Recording, closure: &Closure) -> bool {
    let names: HashSet<&[u8]> = match &closure.contents {
        Contents::StorePaths(paths) => paths.iter().map(|path| &*path.name).collect(),
        Contents::Tree => HashSet::from([&b""[..]]),
    };
    recording.paths.iter().all(|name| names.contains(&**name))
}
