//! Limits the rate of log lines per kind of problem, so that a guest cannot fill the host's log, and one broken store
//! path does not hide another.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// Minimum time between two lines of one kind, and between the first two lines about one path.
const INTERVAL_MS: u64 = 1000;

/// Maximum interval between lines about a path that stays broken. The interval doubles with each line.
const INTERVAL_MAX_MS: u64 = 64 * INTERVAL_MS;

/// Maximum number of first lines about paths per [`INTERVAL_MS`], and of repeated ones. Paths that exceed it are logged
/// later.
const PATHS_AT_ONCE: u64 = 32;

/// Kinds of problems that a guest can cause at any rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LogKind {
    /// A request failed.
    Request,
    /// A ring's indexes or elements are impossible, or it is not in memory.
    Ring,
    /// The guest could not be interrupted.
    Signal,
    /// The frontend has shared no memory.
    Memory,
}

/// Text for the end of a line about suppressed lines; empty if there were none.
pub(super) fn and_similar(dropped: u64) -> String {
    match dropped {
        0 => String::new(),
        count => format!(" ({count} more like it)"),
    }
}

/// The state of the limits.
#[derive(Debug)]
pub(super) struct LogLimit {
    start: Instant,
    kinds: [KindState; 4],
    faults: Mutex<Faults>,
}

/// The state for store paths. It has at most as many entries as the closure has paths.
#[derive(Debug, Default)]
struct Faults {
    /// By the hash of the path's name.
    paths: HashMap<u64, LoggedPath>,
    /// Start of the current interval.
    since_ms: u64,
    /// First and repeated lines in the current interval.
    firsts: u64,
    repeats: u64,
}

/// The state for one path.
#[derive(Debug, Default)]
struct LoggedPath {
    /// Earliest time of the next line, and the current interval.
    next_ms: u64,
    interval_ms: u64,
    dropped: u64,
}

#[derive(Debug, Default)]
struct KindState {
    /// Earliest time of the next line, in milliseconds since `start`.
    next_ms: AtomicU64,
    dropped: AtomicU64,
}

impl LogLimit {
    pub(super) fn new() -> Self {
        Self {
            start: Instant::now(),
            kinds: Default::default(),
            faults: Mutex::default(),
        }
    }

    /// Like [`pass`](Self::pass), for a failed request. Each store path at fault has its own limit.
    pub(super) fn pass_request(&self, culprit: Option<&OsStr>) -> Option<u64> {
        match culprit {
            None => self.pass(LogKind::Request),
            Some(path) => {
                let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
                faults.pass_at(path, self.now_ms())
            }
        }
    }

    /// Whether to log now. `Some` is the number of lines of this kind suppressed since the last one.
    pub(super) fn pass(&self, kind: LogKind) -> Option<u64> {
        self.pass_at(kind, self.now_ms())
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn pass_at(&self, kind: LogKind, now_ms: u64) -> Option<u64> {
        let [request, ring, signal, memory] = &self.kinds;
        let state = match kind {
            LogKind::Request => request,
            LogKind::Ring => ring,
            LogKind::Signal => signal,
            LogKind::Memory => memory,
        };
        let next_ms = state.next_ms.load(Ordering::Relaxed);
        let next = now_ms.saturating_add(INTERVAL_MS);
        // If several threads get here at once, only one of them logs.
        let won = now_ms >= next_ms
            && state
                .next_ms
                .compare_exchange(next_ms, next, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok();
        if won {
            Some(state.dropped.swap(0, Ordering::Relaxed))
        } else {
            state.dropped.fetch_add(1, Ordering::Relaxed);
            None
        }
    }
}

impl Faults {
    fn pass_at(&mut self, path: &OsStr, now_ms: u64) -> Option<u64> {
        let mut hasher = DefaultHasher::new();
        path.hash(&mut hasher);
        let fault = self.paths.entry(hasher.finish()).or_default();
        if now_ms >= self.since_ms + INTERVAL_MS {
            (self.since_ms, self.firsts, self.repeats) = (now_ms, 0, 0);
        }
        let lines = match fault.interval_ms {
            0 => &mut self.firsts,
            _ => &mut self.repeats,
        };
        if now_ms < fault.next_ms || *lines == PATHS_AT_ONCE {
            fault.dropped += 1;
            return None;
        }
        *lines += 1;
        fault.wait(now_ms);
        Some(std::mem::take(&mut fault.dropped))
    }
}

impl LoggedPath {
    /// Doubles the interval; resets it after a period without faults.
    fn wait(&mut self, now_ms: u64) {
        let was_quiet = now_ms > self.next_ms + self.interval_ms;
        let next = if was_quiet { 0 } else { 2 * self.interval_ms };
        self.interval_ms = next.clamp(INTERVAL_MS, INTERVAL_MAX_MS);
        self.next_ms = now_ms + self.interval_ms;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_a_second_for_each_kind() {
        let limit = LogLimit::new();
        assert_eq!(limit.pass_at(LogKind::Request, 0), Some(0));
        assert_eq!(limit.pass_at(LogKind::Request, 10), None);
        assert_eq!(limit.pass_at(LogKind::Request, 999), None);
        assert_eq!(limit.pass_at(LogKind::Ring, 999), Some(0));
        assert_eq!(limit.pass_at(LogKind::Request, 1000), Some(2));
    }

    #[test]
    fn lines_about_a_path_become_less_frequent_independently_of_others() {
        let mut faults = Faults::default();
        let (one, other) = (OsStr::new("one"), OsStr::new("other"));
        let told: Vec<u64> = (0..100_000)
            .filter(|now_ms| faults.pass_at(one, *now_ms).is_some())
            .collect();
        assert_eq!(told, [0, 1000, 3000, 7000, 15_000, 31_000, 63_000]);
        assert_eq!(faults.pass_at(other, 100_000), Some(0));
        // After a period without faults: a line at once, with the number of suppressed ones.
        assert_eq!(faults.pass_at(one, 200_000), Some(36_999));
        assert_eq!(faults.pass_at(one, 200_999), None);
        assert_eq!(faults.pass_at(one, 201_000), Some(1));
    }

    #[test]
    fn many_broken_paths_are_logged_over_time() {
        let mut faults = Faults::default();
        let names: Vec<String> = (0..100).map(|number| number.to_string()).collect();
        let mut told = std::collections::BTreeSet::new();
        let counts: Vec<usize> = (0..4000)
            .step_by(500)
            .map(|now_ms| {
                let passed = |name: &&String| faults.pass_at(OsStr::new(name), now_ms).is_some();
                told.extend(names.iter().filter(passed));
                told.len()
            })
            .collect();
        assert_eq!(counts, [32, 32, 64, 64, 96, 96, 100, 100]);
    }
}
