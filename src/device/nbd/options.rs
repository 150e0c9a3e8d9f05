//! Settings of the NBD server.

use std::num::NonZeroUsize;
use std::time::Duration;

use super::certificates::TlsConfig;
use crate::device::meter::Meter;
use crate::device::vhost_blk::DEFAULT_POLL_US;
use crate::process::ProcessError;

/// Settings of the NBD server, per connection.
#[derive(Debug, Clone)]
pub struct NbdOptions {
    /// Threads for requests that would block.
    pub threads: NonZeroUsize,
    /// Maximum time to poll for further requests before sleeping. Adaptive: shorter when polling finds nothing.
    pub poll: Duration,
    /// Maximum duration of the handshake.
    pub negotiation: Duration,
    /// Requires TLS, if given: clients without TLS get no information.
    pub tls: Option<TlsConfig>,
}

impl NbdOptions {
    /// Counters for one connection: one set for the receiving thread, one for the pool.
    ///
    /// # Errors
    /// There is no memory left.
    pub fn meter(&self) -> Result<Meter, ProcessError> {
        Meter::new(2)
    }
}

impl Default for NbdOptions {
    fn default() -> Self {
        Self {
            threads: NonZeroUsize::new(4).unwrap_or(NonZeroUsize::MIN),
            poll: Duration::from_micros(DEFAULT_POLL_US),
            negotiation: Duration::from_secs(10),
            tls: None,
        }
    }
}
