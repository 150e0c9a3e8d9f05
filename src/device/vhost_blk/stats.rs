//! Counters that threads do not share.

use std::sync::atomic::{AtomicU64, Ordering};

use super::execute::Outcome;

/// What was served so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Requests answered, whatever the answer.
    pub requests: u64,
    /// Data bytes delivered to the guest.
    pub bytes: u64,
    /// Requests answered with an error, or not at all.
    pub errors: u64,
}

/// One thread's counters, on cache lines of their own (two: CPUs fetch them in pairs).
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct Counters {
    requests: AtomicU64,
    bytes: AtomicU64,
    errors: AtomicU64,
}

impl Counters {
    pub(super) fn count(&self, outcome: &Outcome) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        match &outcome.result {
            Ok(bytes) => self.bytes.fetch_add(*bytes, Ordering::Relaxed),
            Err(_) => self.errors.fetch_add(1, Ordering::Relaxed),
        };
    }

    /// Requests answered, whatever the answer.
    pub(super) fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    pub(super) fn add_to(&self, stats: &mut Stats) {
        stats.requests += self.requests.load(Ordering::Relaxed);
        stats.bytes += self.bytes.load(Ordering::Relaxed);
        stats.errors += self.errors.load(Ordering::Relaxed);
    }
}
