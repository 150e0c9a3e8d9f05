//! A file with metrics, for node_exporter's textfile collector and the like.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::super::written::replace;
use super::ServerStatus;

/// Collectors look every 15 seconds, or less often.
const INTERVAL: Duration = Duration::from_secs(5);

/// A file that is written again and again.
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

    /// When it is to be written next.
    pub(in super::super) fn wakes_at(&self) -> Instant {
        self.due
    }

    /// Writes it if it is time. What fails is told once, and tried again.
    pub(in super::super) fn turn(&mut self, now: Instant, status: &dyn Fn() -> ServerStatus) {
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

    /// The server ends: metrics of a server that is gone would be taken for those of one that is idle.
    pub(in super::super) fn remove(&self) {
        // It may never have been written.
        let _ = fs::remove_file(&self.path);
    }
}
