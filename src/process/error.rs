//! Errors of starting and watching processes.

use std::io;

/// Why a process cannot be started or watched.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// fork(2) copies only the calling thread. A lock held by another thread would stay locked in the child for ever.
    #[error(
        "this process has {threads} threads, and only one may exist when it starts another process"
    )]
    Threads {
        /// The number of threads.
        threads: u64,
    },
    /// A system call failed.
    #[error("cannot {action}: {source}")]
    Host {
        /// What was attempted.
        action: &'static str,
        /// The kernel's error.
        source: io::Error,
    },
}

impl ProcessError {
    /// For `map_err`: adds what was attempted.
    pub(super) fn host<E: Into<io::Error>>(action: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Host {
            action,
            source: source.into(),
        }
    }
}
