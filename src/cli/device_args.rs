//! Arguments of all subcommands that serve a disk.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::numbers::{positive, whole};
use crate::device::vhost_blk::{DEFAULT_POLL_US, DeviceOptions, QUEUES};

/// Options of the virtual device.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Device options")]
pub struct DeviceArgs {
    /// Serial number of the disk in the guest, at most 20 bytes
    #[arg(long, default_value = "nixstore", value_parser = parse_serial)]
    serial: String,
    /// Threads that serve one VM's queues, or the file [default: one per core, at most 4]
    #[arg(long, value_name = "N", value_parser = positive(QUEUES.into()))]
    threads: Option<NonZeroUsize>,
    /// Poll for further requests up to this long before sleeping, as long as polling pays off; 0 disables polling
    #[arg(long, value_name = "MICROSECONDS", default_value_t = DEFAULT_POLL_US, value_parser = whole::<u64>(0..=1000))]
    poll_us: u64,
    /// Keep the layouts and small files of store paths in DIR, which is created if necessary, so that later servers need not read
    /// them again. DIR must belong to this user; at most 512 MiB are kept
    #[arg(long, value_name = "DIR", help_heading = "Disk")]
    pub plan_dir: Option<PathBuf>,
    /// Do not confine the serving processes: for debugging, or to find out whether confinement causes a failure
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
    /// Size of the reply to VIRTIO_BLK_T_GET_ID (VIRTIO_BLK_ID_BYTES).
    const LEN_MAX: usize = 20;
    match text.len() {
        ..=LEN_MAX => Ok(text.to_owned()),
        len => Err(format!(
            "it has {len} bytes, but the device allows at most {LEN_MAX}"
        )),
    }
}
