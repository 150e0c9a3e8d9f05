//! What a client gets.

use std::num::NonZeroUsize;
use std::time::Duration;

use super::certificates::TlsConfig;
use crate::device::meter::Meter;
use crate::process::ProcessError;

/// What a client gets.
#[derive(Debug, Clone)]
pub struct NbdOptions {
    /// Threads for what would block.
    pub threads: NonZeroUsize,
    /// How long to look for further requests before sleeping, while that pays.
    pub poll: Duration,
    /// How long a client may take to say what it wants to read.
    pub negotiation: Duration,
    /// With it, nothing is told to a client that does not encrypt.
    pub tls: Option<TlsConfig>,
}

impl NbdOptions {
    /// Counters for one connection: for the thread that receives, and for all others.
    ///
    /// # Errors
    /// When there is no memory left.
    pub fn meter(&self) -> Result<Meter, ProcessError> {
        Meter::new(2)
    }
}

impl Default for NbdOptions {
    fn default() -> Self {
        Self {
            threads: NonZeroUsize::new(4).unwrap_or(NonZeroUsize::MIN),
            poll: Duration::from_micros(200),
            negotiation: Duration::from_secs(10),
            tls: None,
        }
    }
}
