//! The arguments about recordings of what a VM reads.

use std::path::PathBuf;

use clap::Args;

use super::errors::CliError;
use crate::image::recording::{NotARecording, Recording};

/// What to record, and what to read in advance.
#[derive(Debug, Args)]
pub struct RecordArgs {
    /// Write down in FILE what the first VM reads, for --prefetch; without a socket, what is read from the file
    #[arg(long, value_name = "FILE")]
    pub record: Option<PathBuf>,
    /// Have the host read in advance what FILE, made with --record, says; paths that are not in this closure are left out
    #[arg(long, value_name = "FILE")]
    prefetch: Option<PathBuf>,
}

/// Why there is no recording.
#[derive(Debug, thiserror::Error)]
pub enum RecordingError {
    /// It cannot be read.
    #[error("cannot read the recording {}: {source}: make one with --record", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is something else.
    #[error("{}: {source}: make a recording with --record", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: NotARecording,
    },
}

impl RecordArgs {
    /// Reads the recording for `--prefetch`.
    ///
    /// # Errors
    /// When it cannot be read, or is none.
    pub fn recording(&self) -> Result<Option<Recording>, CliError> {
        let Some(path) = self.prefetch.clone() else {
            return Ok(None);
        };
        let text = std::fs::read(&path).map_err(|source| RecordingError::Read {
            path: path.clone(),
            source,
        })?;
        let parsed = Recording::parse(&text);
        Ok(Some(parsed.map_err(|source| RecordingError::Parse {
            path,
            source,
        })?))
    }
}
