//! The arguments of every subcommand that serves.

use std::num::NonZeroUsize;
use std::time::Duration;

use clap::Args;

use super::numbers::{positive, whole};
use crate::device::vhost_blk::{DeviceOptions, QUEUES};

/// What a VM gets, and at what cost.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Device options")]
pub struct DeviceArgs {
    /// Serial that the guest sees, 20 bytes at most
    #[arg(long, default_value = "nixstore", value_parser = parse_serial)]
    serial: String,
    /// Threads that serve one VM's queues, or the file [default: one per core, 4 at most]
    #[arg(long, value_name = "N", value_parser = positive(QUEUES.into()))]
    threads: Option<NonZeroUsize>,
    /// Look for further requests for this many microseconds before sleeping, while that pays; 0 to sleep at once
    #[arg(long, value_name = "MICROSECONDS", default_value_t = 200, value_parser = whole::<u64>(0..=1000))]
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

fn parse_serial(text: &str) -> Result<String, String> {
    /// What the answer to GET_ID has room for (VIRTIO_BLK_ID_BYTES).
    const LEN_MAX: usize = 20;
    match text.len() {
        ..=LEN_MAX => Ok(text.to_owned()),
        len => Err(format!(
            "it has {len} bytes, and the device has room for {LEN_MAX}"
        )),
    }
}
