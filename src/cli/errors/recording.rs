use std::path::PathBuf;

use crate::image::recording::NotARecording;

/// Why a recording cannot be used.
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
    /// The file is not a recording.
    #[error("{}: {source}: make a recording with --record", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: NotARecording,
    },
}
