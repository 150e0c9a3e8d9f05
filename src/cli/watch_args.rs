//! Arguments for monitoring.

use std::path::PathBuf;

use clap::Args;

use super::places::NamedPath;

/// Where the server publishes its status and metrics.
#[derive(Debug, Args)]
#[command(next_help_heading = "Watching")]
pub struct WatchArgs {
    /// Serve the status for `lazystore status` at SOCKET [default: SOCKET.status next to each socket, DIR.status next
    /// to a mount]
    #[arg(long, value_name = "SOCKET")]
    pub status: Option<PathBuf>,
    /// Write Prometheus metrics to FILE every 5 seconds, for node_exporter's textfile collector
    #[arg(long, value_name = "FILE")]
    pub metrics_file: Option<PathBuf>,
}

impl WatchArgs {
    /// Returns the files to be created.
    pub fn places(&self) -> impl Iterator<Item = NamedPath> {
        let status = self
            .status
            .iter()
            .map(|path| NamedPath::new("--status", path));
        let metrics = self.metrics_file.iter();
        status.chain(metrics.map(|path| NamedPath::new("--metrics-file", path)))
    }
}
