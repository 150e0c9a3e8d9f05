//! Why a process cannot be started or watched.

use std::io;

/// Why a process cannot be started or watched.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// Only the thread that forks exists in the child; a lock that another one held would stay locked there.
    #[error(
        "this process has {threads} threads, and only one may exist when it starts another process"
    )]
    Threads {
        /// How many there are.
        threads: usize,
    },
    /// The host refused.
    #[error("cannot {action}: {source}")]
    Host {
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

impl ProcessError {
    /// For `map_err`: names what was tried.
    pub(super) fn host<E: Into<io::Error>>(action: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Host {
            action,
            source: source.into(),
        }
    }
}
