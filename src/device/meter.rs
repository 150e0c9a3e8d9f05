//! Counts the requests, bytes, errors and latencies of a disk's clients.
//!
//! A worker's counters are in memory shared with its parent. Each thread has its own counters on its own cache lines,
//! so counting is cheap. Readers sum them up.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use zerocopy::FromZeros;

use crate::process::{ProcessError, Shared};

/// Totals of what was served.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Requests answered, including errors.
    pub requests: u64,
    /// Data bytes delivered to the guest.
    pub bytes: u64,
    /// Requests answered with an error, or not at all.
    pub errors: u64,
}

/// Number of buckets per power of two. With 8, a percentile is too large by at most an eighth.
const PARTS: u64 = 8;

/// All times below 128 ns share a bucket, and so do all times from 18 minutes.
const SHORTEST_LOG2: u32 = 7;
const BUCKETS: usize = 1 + 8 * 33;

/// A histogram of times with exponentially growing buckets.
pub type Histogram = [u64; BUCKETS];

/// The bucket of a time.
fn bucket(nanos: u64) -> usize {
    let Some(octave) = nanos
        .checked_ilog2()
        .and_then(|log2| log2.checked_sub(SHORTEST_LOG2))
    else {
        return 0;
    };
    let part = (nanos >> (octave + SHORTEST_LOG2 - PARTS.ilog2())) % PARTS;
    let index = 1 + u64::from(octave) * PARTS + part;
    usize::try_from(index).map_or(BUCKETS - 1, |index| index.min(BUCKETS - 1))
}

/// The upper bound of a bucket, in nanoseconds (inclusive).
pub fn bucket_end(bucket: usize) -> u64 {
    let Some(index) = bucket.checked_sub(1).map(|index| index as u64) else {
        return (1 << SHORTEST_LOG2) - 1;
    };
    let unit = 1 << (index / PARTS + u64::from(SHORTEST_LOG2 - PARTS.ilog2()));
    (PARTS + index % PARTS + 1) * unit - 1
}

/// One thread's counters. Aligned to two cache lines, because CPUs prefetch lines in pairs.
#[derive(Debug, FromZeros)]
#[repr(C, align(128))]
pub struct Counters {
    requests: AtomicU64,
    bytes: AtomicU64,
    errors: AtomicU64,
    /// Requests that wait for the host. Different threads may increment and decrement it for the same request, so only
    /// the sum over all threads is meaningful.
    in_flight: AtomicU64,
    plans: AtomicU64,
    times: [AtomicU64; BUCKETS],
}

impl Counters {
    /// Counts an answered request, with its number of bytes, or `None` for an error.
    pub fn count(&self, bytes: Option<u64>) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        match bytes {
            Some(bytes) => self.bytes.fetch_add(bytes, Ordering::Relaxed),
            None => self.errors.fetch_add(1, Ordering::Relaxed),
        };
    }

    /// Requests answered, including errors.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// `count` requests started to wait for the host. Requests answered from memory take microseconds and are not
    /// counted.
    pub fn took(&self, count: usize) {
        self.in_flight.fetch_add(count as u64, Ordering::Relaxed);
    }

    /// `count` requests no longer wait: they are answered or abandoned.
    pub fn left(&self, count: usize) {
        self.in_flight.fetch_sub(count as u64, Ordering::Relaxed);
    }

    /// Records the time since `start` as the latency of `count` requests.
    pub fn took_since(&self, start: Instant, count: u64) {
        let nanos = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        if let Some(times) = self.times.get(bucket(nanos)) {
            times.fetch_add(count, Ordering::Relaxed);
        }
    }

    /// Sets the number of paths whose planning this worker has started.
    pub fn set_plans(&self, plans: u64) {
        self.plans.fetch_max(plans, Ordering::Relaxed);
    }
}

/// The counters of all threads that serve one client.
#[derive(Debug, Clone)]
pub struct Meter(Arc<Shared<Counters>>);

/// The sums of a [`Meter`]'s counters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Figures {
    /// Totals.
    pub stats: Stats,
    /// Requests that wait for the host.
    pub in_flight: u64,
    /// Number of paths whose planning was started.
    pub plans: u64,
    /// Latencies of requests.
    pub times: Histogram,
}

impl Meter {
    /// Counters for `threads` threads, in memory shared with child processes.
    ///
    /// # Errors
    /// There is no memory left.
    pub fn new(threads: usize) -> Result<Self, ProcessError> {
        Ok(Self(Arc::new(Shared::new(threads.max(1))?)))
    }

    /// The counters of one thread. Threads beyond the number given to [`Meter::new`] share the last ones.
    pub fn of(&self, thread: usize) -> &Counters {
        &self.0[thread.min(self.0.len() - 1)]
    }

    /// The counters shared by short-lived threads.
    pub fn last(&self) -> &Counters {
        self.of(usize::MAX)
    }

    /// Totals of what was served.
    pub fn stats(&self) -> Stats {
        self.figures().stats
    }

    /// Sums all counters. Another process may have written arbitrary values; the sums are then meaningless, but do not
    /// overflow.
    pub fn figures(&self) -> Figures {
        let sum = |one: &dyn Fn(&Counters) -> &AtomicU64| {
            let values = self.0.iter().map(one);
            values.fold(0_u64, |sum, value| {
                sum.saturating_add(value.load(Ordering::Relaxed))
            })
        };
        let in_flight = self.0.iter().fold(0_u64, |sum, counters| {
            sum.wrapping_add(counters.in_flight.load(Ordering::Relaxed))
        });
        Figures {
            stats: Stats {
                requests: sum(&|counters| &counters.requests),
                bytes: sum(&|counters| &counters.bytes),
                errors: sum(&|counters| &counters.errors),
            },
            // The threads' counters are not read atomically, so the sum can be briefly negative.
            in_flight: u64::try_from(in_flight.cast_signed()).unwrap_or(0),
            plans: sum(&|counters| &counters.plans),
            times: std::array::from_fn(|bucket| sum(&|counters| &counters.times[bucket])),
        }
    }
}

/// Merges the histograms of several meters, for [`percentile`].
pub fn merged(figures: &[Figures]) -> Vec<(u64, u64)> {
    let sum = |bucket: usize| {
        let counts = figures.iter().map(|one| one.times[bucket]);
        counts.fold(0, u64::saturating_add)
    };
    let times = (0..BUCKETS).map(|bucket| (bucket_end(bucket), sum(bucket)));
    times.filter(|(_, count)| *count > 0).collect()
}

/// A percentile, given in thousandths. `None` if the histogram is empty.
pub fn percentile(times: &[(u64, u64)], per_mille: u64) -> Option<Duration> {
    let count = |sum: u128, (_, count): &(u64, u64)| sum + u128::from(*count);
    let all = times.iter().fold(0, count);
    let rank = (all * u128::from(per_mille)).div_ceil(1000).max(1);
    let mut seen = 0;
    let found = times.iter().find(|(_, count)| {
        seen += u128::from(*count);
        seen >= rank
    });
    found.map(|(nanos, _)| Duration::from_nanos(*nanos))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn buckets_are_contiguous() {
        for index in 0..BUCKETS - 1 {
            assert_eq!(bucket(bucket_end(index)), index);
            assert_eq!(bucket(bucket_end(index) + 1), index + 1);
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
        assert_eq!(bucket(0), 0);
    }

    proptest! {
        #[test]
        fn a_bucket_is_at_most_an_eighth_too_long(nanos in 128_u64..1 << 40) {
            let end = bucket_end(bucket(nanos));
            prop_assert!(nanos <= end && end <= nanos + nanos / 8, "{nanos} {end}");
        }
    }

    #[test]
    fn counters_of_threads_are_summed() {
        let meter = Meter::new(2).unwrap();
        meter.of(0).count(Some(10));
        meter.of(7).count(Some(5));
        meter.of(1).count(None);
        meter.of(0).took(3);
        meter.of(1).left(2);
        meter.last().set_plans(4);
        meter.last().set_plans(3);
        meter.of(0).took_since(Instant::now(), 2);
        let figures = meter.figures();
        let stats = Stats {
            requests: 3,
            bytes: 15,
            errors: 1,
        };
        assert_eq!(figures.stats, stats);
        assert_eq!((figures.in_flight, figures.plans), (1, 4));
        assert_eq!(figures.times.iter().sum::<u64>(), 2);
    }

    #[test]
    fn arbitrary_counters_do_not_overflow() {
        let meter = Meter::new(2).unwrap();
        for thread in 0..2 {
            let counters = meter.of(thread);
            counters.bytes.store(u64::MAX, Ordering::Relaxed);
            counters
                .times
                .iter()
                .for_each(|one| one.store(u64::MAX, Ordering::Relaxed));
        }
        meter.of(0).left(5);
        let figures = meter.figures();
        assert_eq!(figures.stats.bytes, u64::MAX);
        assert_eq!(figures.in_flight, 0);
        let times: Vec<_> = (0..).zip(figures.times).collect();
        assert!(percentile(&times, 990).is_some());
    }

    #[test]
    fn percentiles() {
        let times = [(10, 98), (20, 1), (30, 0), (40, 1)];
        let nanos = |per_mille| percentile(&times, per_mille).unwrap().as_nanos();
        assert_eq!(
            [0, 500, 980, 990, 999, 1000].map(nanos),
            [10, 10, 10, 20, 40, 40]
        );
        assert_eq!(percentile(&[], 500), None);
        assert_eq!(percentile(&[(1, 0)], 500), None);
    }
}
