//! The arguments of every subcommand that serves.

use std::num::NonZeroUsize;
use std::time::Duration;

use clap::Args;

use crate::device::vhost_blk::{DeviceOptions, QUEUES};

/// What a VM gets, and at what cost.
#[derive(Debug, Args)]
pub struct DeviceArgs {
    /// Serial that the guest sees, 20 bytes at most
    #[arg(long, default_value = "nixstore")]
    serial: String,
    /// Threads that serve one VM's queues, or the file [default: one per core, 4 at most]
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
    /// Look for further requests for this many microseconds before sleeping, while that pays; 0 to sleep at once
    #[arg(long, value_name = "MICROSECONDS", default_value_t = 50, value_parser = clap::value_parser!(u64).range(..=1000))]
    poll_us: u64,
    /// Do not confine the processes that serve: to find out whether the confinement is what fails, or to debug them
    #[arg(long)]
    no_sandbox: bool,
}

impl DeviceArgs {
    pub fn options(&self) -> DeviceOptions {
        DeviceOptions {
            serial: self.serial.clone(),
            queues: QUEUES,
            threads: self.threads.unwrap_or_else(DeviceOptions::default_threads),
            poll: Duration::from_micros(self.poll_us),
        }
    }

    pub fn sandbox(&self) -> bool {
        !self.no_sandbox
    }
}
