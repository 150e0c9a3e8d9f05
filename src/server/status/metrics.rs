//! A file with metrics, for collectors such as node_exporter's textfile collector.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::super::written::replace;
use super::ServerStatus;

/// Interval between writes. Collectors read every 15 seconds or less often.
const INTERVAL: Duration = Duration::from_secs(5);

/// A file that is rewritten periodically.
pub(in super::super) struct MetricsFile {
    path: PathBuf,
    due: Instant,
    has_failed: bool,
}

impl MetricsFile {
    pub(in super::super) fn new(path: PathBuf, now: Instant) -> Self {
        Self {
            path,
            due: now,
            has_failed: false,
        }
    }

    /// When it must be written next.
    pub(in super::super) fn wakes_at(&self) -> Instant {
        self.due
    }

    /// Writes it if it is due. Logs only the first of consecutive errors.
    pub(in super::super) fn write_if_due(
        &mut self,
        now: Instant,
        status: &dyn Fn() -> ServerStatus,
    ) {
        if now < self.due {
            return;
        }
        self.due = now + INTERVAL;
        let written = replace(&self.path, super::prometheus_text(&status()).as_bytes());
        if let Err(error) = &written
            && !self.has_failed
        {
            tracing::warn!("cannot write the metrics {}: {error}", self.path.display());
        }
        self.has_failed = written.is_err();
    }

    /// Removes the file when the server ends, because the server would otherwise look idle.
    pub(in super::super) fn remove(&self) {
        // It may not exist.
        let _ = fs::remove_file(&self.path);
    }
}
