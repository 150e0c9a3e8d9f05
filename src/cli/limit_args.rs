//! Arguments that limit clients.

use std::time::Duration;

use clap::Args;

use crate::server::ClientLimits;

/// Limits on connections.
#[derive(Debug, Args)]
pub struct LimitArgs {
    /// Serve at most N VMs at a time, over all sockets; further ones wait until one disconnects
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    max_vms: u32,
    /// Disconnect a client that sends nothing within SECONDS after it connected
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    first_message_timeout: u32,
}

impl LimitArgs {
    /// Returns the limits for the server.
    pub fn limits(&self) -> ClientLimits {
        ClientLimits {
            max_vms: usize::try_from(self.max_vms).unwrap_or(usize::MAX),
            first_message: Duration::from_secs(self.first_message_timeout.into()),
        }
    }
}
