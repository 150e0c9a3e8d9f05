//! Few log lines for each kind of trouble: a guest must not be able to fill the host's log, nor one fault of the store
//! to hide another.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// Time between two lines of one kind, and between the first two about one path.
const INTERVAL_MS: u64 = 1000;

/// Longest time between two lines about a path that stays broken: each wait is twice the one before.
const INTERVAL_MAX_MS: u64 = 64 * INTERVAL_MS;

/// Most first lines about paths in one [`INTERVAL_MS`], and most further ones, however many are broken. Paths that are
/// left out get their line later.
const PATHS_AT_ONCE: u64 = 32;

/// Kinds of trouble that a guest can cause as often as it likes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trouble {
    /// A request failed.
    Request,
    /// A ring's indexes or elements are impossible, or it is not in memory.
    Ring,
    /// The guest could not be interrupted.
    Signal,
    /// No memory is shared.
    Memory,
}

/// What a line says of those that were left out before it: nothing if there were none.
pub(super) fn more_like_it(dropped: u64) -> String {
    match dropped {
        0 => String::new(),
        count => format!(" ({count} more like it)"),
    }
}

/// When each kind was last logged.
#[derive(Debug)]
pub(super) struct LogLimit {
    start: Instant,
    kinds: [Kind; 4],
    faults: Mutex<Faults>,
}

/// What was logged of the store's paths; no more of them than the closure has.
#[derive(Debug, Default)]
struct Faults {
    /// By the hash of the path's name.
    paths: HashMap<u64, Fault>,
    /// When the counts of lines started again.
    since_ms: u64,
    /// First lines since then, and further ones.
    firsts: u64,
    repeats: u64,
}

/// What was logged of one path.
#[derive(Debug, Default)]
struct Fault {
    /// Earliest next line, and how long it was waited for.
    next_ms: u64,
    interval_ms: u64,
    dropped: u64,
}

#[derive(Debug, Default)]
struct Kind {
    /// Earliest next line, in milliseconds since `start`.
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

    /// As [`pass`](Self::pass), for a request that failed: each path of the store at fault has lines of its own.
    pub(super) fn pass_request(&self, culprit: Option<&OsStr>) -> Option<u64> {
        match culprit {
            None => self.pass(Trouble::Request),
            Some(path) => {
                let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
                faults.pass_at(path, self.now_ms())
            }
        }
    }

    /// Whether to log now; if so, how many lines of this kind were left out since the last one.
    pub(super) fn pass(&self, trouble: Trouble) -> Option<u64> {
        self.pass_at(trouble, self.now_ms())
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn pass_at(&self, trouble: Trouble, now_ms: u64) -> Option<u64> {
        let [request, ring, signal, memory] = &self.kinds;
        let kind = match trouble {
            Trouble::Request => request,
            Trouble::Ring => ring,
            Trouble::Signal => signal,
            Trouble::Memory => memory,
        };
        let next_ms = kind.next_ms.load(Ordering::Relaxed);
        let next = now_ms.saturating_add(INTERVAL_MS);
        // Several threads may come here at once: one of them wins.
        let won = now_ms >= next_ms
            && kind
                .next_ms
                .compare_exchange(next_ms, next, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok();
        if won {
            Some(kind.dropped.swap(0, Ordering::Relaxed))
        } else {
            kind.dropped.fetch_add(1, Ordering::Relaxed);
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

impl Fault {
    /// Twice as long as last time; from the start again after a time without trouble.
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
        assert_eq!(limit.pass_at(Trouble::Request, 0), Some(0));
        assert_eq!(limit.pass_at(Trouble::Request, 10), None);
        assert_eq!(limit.pass_at(Trouble::Request, 999), None);
        assert_eq!(limit.pass_at(Trouble::Ring, 999), Some(0));
        assert_eq!(limit.pass_at(Trouble::Request, 1000), Some(2));
    }

    #[test]
    fn each_path_has_its_own_lines_and_they_become_fewer() {
        let mut faults = Faults::default();
        let (one, other) = (OsStr::new("one"), OsStr::new("other"));
        let told: Vec<u64> = (0..100_000)
            .filter(|now_ms| faults.pass_at(one, *now_ms).is_some())
            .collect();
        assert_eq!(told, [0, 1000, 3000, 7000, 15_000, 31_000, 63_000]);
        assert_eq!(faults.pass_at(other, 100_000), Some(0));
        // Quiet for long enough: a line at once, and how many were left out.
        assert_eq!(faults.pass_at(one, 200_000), Some(36_999));
        assert_eq!(faults.pass_at(one, 200_999), None);
        assert_eq!(faults.pass_at(one, 201_000), Some(1));
    }

    #[test]
    fn many_paths_at_once_are_told_of_one_after_another() {
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
