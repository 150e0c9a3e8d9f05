//! At most one log line a second for each kind of trouble: a guest must not be able to fill the host's log.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Time between two lines of one kind.
const INTERVAL_MS: u64 = 1000;

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

/// When each kind was last logged.
#[derive(Debug)]
pub(super) struct LogLimit {
    start: Instant,
    kinds: [Kind; 4],
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
        }
    }

    /// Whether to log now; if so, how many lines of this kind were left out since the last one.
    pub(super) fn pass(&self, trouble: Trouble) -> Option<u64> {
        let now_ms = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.pass_at(trouble, now_ms)
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
}
