//! Why boots cannot be measured.

use std::io;
use std::path::PathBuf;

use crate::process::ProcessError;

/// Why boots cannot be measured.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The mark did not come.
    #[error(
        "boot {run} did not say \"{mark}\" within {seconds} s: its last line was \"{last}\"; is its console on stdout?"
    )]
    NoMark {
        /// Which boot.
        run: u32,
        /// What was waited for.
        mark: String,
        /// For how long.
        seconds: u64,
        /// What it said last.
        last: String,
    },
    /// It did not end.
    #[error(
        "boot {run} did not end within {seconds} s: name a text with --until, or have the guest power off"
    )]
    Late {
        /// Which boot.
        run: u32,
        /// For how long it was waited for.
        seconds: u64,
    },
    /// It ended badly, or too early.
    #[error("the VM of boot {run} ended before it had booted: its last line was \"{last}\"")]
    Ended {
        /// Which boot.
        run: u32,
        /// What it said last.
        last: String,
    },
    /// The image.
    #[error("cannot read the image {}: {source}", path.display())]
    Image {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The results.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A process cannot be started.
    #[error(transparent)]
    Process(ProcessError),
    /// The host refused something else.
    #[error("cannot {action}: {source}")]
    Host {
        /// What was tried.
        action: &'static str,
        /// Why.
        source: io::Error,
    },
}

impl BootError {
    /// For `map_err`: names what was tried.
    pub fn host(action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Host { action, source }
    }
}
