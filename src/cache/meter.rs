//! Counters of the fetcher process, in memory shared with its server, and a progress line on a terminal.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use zerocopy::FromZeros;

use crate::process::{ProcessError, Shared};

/// How often the progress line is redrawn.
pub(super) const LINE_EVERY: Duration = Duration::from_millis(200);

/// The counters. They outlive the fetcher process; its successor continues them.
#[derive(Debug, FromZeros)]
#[repr(C)]
struct FetchCounters {
    fetching: AtomicU64,
    listings: AtomicU64,
    nars: AtomicU64,
    received_bytes: AtomicU64,
    nar_bytes: AtomicU64,
    expected_bytes: AtomicU64,
    failures: AtomicU64,
}

/// The counts so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FetchFigures {
    /// Store paths being fetched.
    pub fetching: u64,
    /// Listings fetched.
    pub listings: u64,
    /// NARs fetched and verified.
    pub nars: u64,
    /// Bytes of NARs received from binary caches, compressed as they were sent.
    pub received_bytes: u64,
    /// Bytes of NARs written.
    pub nar_bytes: u64,
    /// Bytes of NARs written once all current fetches are complete.
    pub expected_bytes: u64,
    /// Failed fetches.
    pub failures: u64,
}

/// The counters of a server's fetcher process.
#[derive(Debug, Clone)]
pub struct FetchMeter(Arc<Shared<FetchCounters>>);

impl FetchMeter {
    /// Creates counters in memory shared with child processes.
    ///
    /// # Errors
    /// No memory is left.
    pub fn new() -> Result<Self, ProcessError> {
        Ok(Self(Arc::new(Shared::new(1)?)))
    }

    /// Returns the counts so far. The values are not trusted: the fetcher process can write anything.
    pub fn figures(&self) -> FetchFigures {
        let load = |one: &AtomicU64| one.load(Ordering::Relaxed);
        let counters = self.counters();
        FetchFigures {
            fetching: load(&counters.fetching),
            listings: load(&counters.listings),
            nars: load(&counters.nars),
            received_bytes: load(&counters.received_bytes),
            nar_bytes: load(&counters.nar_bytes),
            expected_bytes: load(&counters.expected_bytes),
            failures: load(&counters.failures),
        }
    }

    fn counters(&self) -> &FetchCounters {
        &self.0[0]
    }

    /// Starts counting in a new process, whose predecessor may have died during fetches.
    pub(super) fn restart(&self) {
        let counters = self.counters();
        counters.fetching.store(0, Ordering::Relaxed);
        let nar_bytes = counters.nar_bytes.load(Ordering::Relaxed);
        counters.expected_bytes.store(nar_bytes, Ordering::Relaxed);
    }

    pub(super) fn got_listing(&self) {
        add(&self.counters().listings, 1);
    }

    /// Counts a NAR fetched in pieces that has been verified.
    pub(super) fn got_nar(&self) {
        add(&self.counters().nars, 1);
    }

    pub(super) fn failed(&self) {
        add(&self.counters().failures, 1);
    }

    pub(super) fn received(&self, len_bytes: usize) {
        add(&self.counters().received_bytes, len_bytes as u64);
    }

    /// Counts a NAR of `nar_size` bytes as being fetched until the result is dropped.
    pub(super) fn begin_nar(&self, nar_size: u64) -> Fetching<'_> {
        let counters = self.counters();
        add(&counters.fetching, 1);
        add(&counters.expected_bytes, nar_size);
        Fetching {
            counters,
            nar_size,
            written: AtomicU64::new(0),
        }
    }

    /// Shows the progress on a terminal while this process lives.
    pub(super) fn show(&self) {
        let meter = self.clone();
        // Without the thread only the progress line is missing.
        let _ = thread::Builder::new()
            .name("progress".to_owned())
            .spawn(move || {
                let mut line = ProgressLine::default();
                let mut before = meter.figures();
                loop {
                    thread::sleep(LINE_EVERY);
                    let now = meter.figures();
                    match now.fetching {
                        0 => {
                            line.clear();
                            before = now;
                        }
                        _ => line.show(&progress(&before, &now)),
                    }
                }
            });
    }
}

/// Describes the progress since `before`, when nothing was being fetched.
fn progress(before: &FetchFigures, now: &FetchFigures) -> String {
    let paths = match now.fetching {
        1 => "1 store path".to_owned(),
        many => format!("{many} store paths"),
    };
    format!(
        "fetching {paths}: {} of {}",
        megabytes(now.nar_bytes.saturating_sub(before.nar_bytes)),
        megabytes(now.expected_bytes.saturating_sub(before.nar_bytes)),
    )
}

/// Formats bytes in MB, rounded down to a tenth.
fn megabytes(bytes: u64) -> String {
    format!("{}.{} MB", bytes / 1_000_000, bytes / 100_000 % 10)
}

fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}

/// A NAR that is being fetched.
pub(super) struct Fetching<'m> {
    counters: &'m FetchCounters,
    nar_size: u64,
    written: AtomicU64,
}

impl Fetching<'_> {
    pub(super) fn wrote(&self, len_bytes: usize) {
        add(&self.written, len_bytes as u64);
        add(&self.counters.nar_bytes, len_bytes as u64);
    }

    pub(super) fn verified(&self) {
        add(&self.counters.nars, 1);
    }
}

impl Drop for Fetching<'_> {
    /// Corrects the expected bytes by what was written twice, after a broken connection, or not at all.
    fn drop(&mut self) {
        let written = self.written.load(Ordering::Relaxed);
        let expected = &self.counters.expected_bytes;
        expected.fetch_add(written.wrapping_sub(self.nar_size), Ordering::Relaxed);
        self.counters.fetching.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A line of a terminal that is redrawn.
#[derive(Default)]
pub(super) struct ProgressLine {
    is_shown: bool,
}

impl ProgressLine {
    pub(super) fn show(&mut self, text: &str) {
        self.is_shown = true;
        // In one write, because other processes write there too. Errors are ignored: the terminal may be gone.
        let _ = io::stderr().write_all(format!("\r\x1b[K{text}").as_bytes());
    }

    pub(super) fn clear(&mut self) {
        if std::mem::take(&mut self.is_shown) {
            let _ = io::stderr().write_all(b"\r\x1b[K");
        }
    }
}

impl Drop for ProgressLine {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fetches_are_counted_and_a_failure_leaves_nothing_expected() {
        let meter = FetchMeter::new().unwrap();
        let first = meter.begin_nar(10_000_000);
        first.wrote(10_000_000);
        first.verified();
        let second = meter.begin_nar(2_550_000);
        second.wrote(1_990_000);
        meter.received(100);
        let before = FetchFigures::default();
        assert_eq!(
            progress(&before, &meter.figures()),
            "fetching 2 store paths: 11.9 MB of 12.5 MB"
        );
        drop((first, second));
        meter.failed();
        let figures = FetchFigures {
            nars: 1,
            received_bytes: 100,
            nar_bytes: 11_990_000,
            expected_bytes: 11_990_000,
            failures: 1,
            ..before
        };
        assert_eq!(meter.figures(), figures);
    }

    #[test]
    fn a_restart_forgets_the_fetches_of_the_dead_process() {
        let meter = FetchMeter::new().unwrap();
        let fetching = meter.begin_nar(100);
        fetching.wrote(40);
        std::mem::forget(fetching);
        meter.restart();
        let figures = meter.figures();
        assert_eq!((figures.fetching, figures.expected_bytes), (0, 40));
    }
}
