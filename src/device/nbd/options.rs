//! What a client gets.

use std::num::NonZeroUsize;
use std::time::Duration;

/// What a client gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NbdOptions {
    /// Threads for what would block.
    pub threads: NonZeroUsize,
    /// How long to look for further requests before sleeping, while that pays.
    pub poll: Duration,
    /// How long a client may take to say what it wants to read.
    pub negotiation: Duration,
}

impl Default for NbdOptions {
    fn default() -> Self {
        Self {
            threads: NonZeroUsize::new(4).unwrap_or(NonZeroUsize::MIN),
            poll: Duration::from_micros(200),
            negotiation: Duration::from_secs(10),
        }
    }
}
