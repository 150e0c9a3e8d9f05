//! Errors of `lazystore boot`.

use std::io;
use std::path::PathBuf;

use crate::process::ProcessError;

/// Why boots cannot be measured.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The VM did not print the mark in time.
    #[error(
        "boot {run} did not print \"{mark}\" within {seconds} s: its last line was \"{last}\"; is its console on stdout?"
    )]
    NoMark {
        /// Which boot.
        run: u32,
        /// The expected text.
        mark: String,
        /// The time limit.
        seconds: u64,
        /// The last line of its output.
        last: String,
    },
    /// The VM did not end in time.
    #[error(
        "boot {run} did not end within {seconds} s: pass a text with --until, or make the guest power off"
    )]
    Late {
        /// Which boot.
        run: u32,
        /// The time limit.
        seconds: u64,
    },
    /// The VM failed, or ended before it had booted.
    #[error("the VM of boot {run} ended before it had booted: its last line was \"{last}\"")]
    Ended {
        /// Which boot.
        run: u32,
        /// The last line of its output.
        last: String,
    },
    /// The image cannot be read.
    #[error("cannot read the image {}: {source}", path.display())]
    Image {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The results cannot be written.
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
    /// Another system call failed.
    #[error("cannot {action}: {source}")]
    Host {
        /// What was attempted.
        action: &'static str,
        /// Why.
        source: io::Error,
    },
}

impl BootError {
    /// For `map_err`: adds what was attempted.
    pub fn host(action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Host { action, source }
    }
}
