//! The arguments about being watched.

use std::path::PathBuf;

use clap::Args;

use super::places::Place;

/// Where the server tells what it does.
#[derive(Debug, Args)]
#[command(next_help_heading = "Watching")]
pub struct WatchArgs {
    /// Tell `lazystore status` at SOCKET what the VMs do [default: SOCKET.status next to each socket, DIR.status next to a
    /// mount]
    #[arg(long, value_name = "SOCKET")]
    pub status: Option<PathBuf>,
    /// Keep metrics for Prometheus in FILE, replaced every 5 seconds: for node_exporter's textfile collector
    #[arg(long, value_name = "FILE")]
    pub metrics_file: Option<PathBuf>,
}

impl WatchArgs {
    /// What is made.
    pub fn places(&self) -> impl Iterator<Item = Place> {
        let status = self.status.iter().map(|path| Place::new("--status", path));
        let metrics = self.metrics_file.iter();
        status.chain(metrics.map(|path| Place::new("--metrics-file", path)))
    }
}
