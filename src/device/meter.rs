//! What a disk's clients get, counted while it is served.
//!
//! The counters of a worker lie in memory that its parent sees too. Each thread counts for itself, on cache lines of its
//! own, so that counting costs next to nothing. A reader adds them up.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use zerocopy::FromZeros;

use crate::process::{ProcessError, Shared};

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

/// Buckets for each doubling of a time: a percentile is at most an eighth too large.
const PARTS: u64 = 8;

/// Times below 128 ns are one bucket, times from 18 minutes on another.
const SHORTEST_LOG2: u32 = 7;
const BUCKETS: usize = 1 + 8 * 33;

/// How often each time was taken, in buckets that grow with it.
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

/// The longest time of a bucket, in nanoseconds.
pub fn bucket_end(bucket: usize) -> u64 {
    let Some(index) = bucket.checked_sub(1).map(|index| index as u64) else {
        return (1 << SHORTEST_LOG2) - 1;
    };
    let unit = 1 << (index / PARTS + u64::from(SHORTEST_LOG2 - PARTS.ilog2()));
    (PARTS + index % PARTS + 1) * unit - 1
}

/// One thread's counters, on cache lines of their own (two: CPUs fetch them in pairs).
#[derive(Debug, FromZeros)]
#[repr(C, align(128))]
pub struct Counters {
    requests: AtomicU64,
    bytes: AtomicU64,
    errors: AtomicU64,
    /// Requests that wait for the host. One thread may hand over what another answers: only the sum means something.
    in_flight: AtomicU64,
    plans: AtomicU64,
    times: [AtomicU64; BUCKETS],
}

impl Counters {
    /// A request was answered: so many bytes, or with an error.
    pub fn count(&self, bytes: Option<u64>) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        match bytes {
            Some(bytes) => self.bytes.fetch_add(bytes, Ordering::Relaxed),
            None => self.errors.fetch_add(1, Ordering::Relaxed),
        };
    }

    /// Requests answered, whatever the answer.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// So many requests now wait for the host: what is in memory is answered in microseconds, and is not counted here.
    pub fn took(&self, count: usize) {
        self.in_flight.fetch_add(count as u64, Ordering::Relaxed);
    }

    /// So many requests are answered, or given up.
    pub fn left(&self, count: usize) {
        self.in_flight.fetch_sub(count as u64, Ordering::Relaxed);
    }

    /// So many answers took the time since `start`.
    pub fn took_since(&self, start: Instant, count: u64) {
        let nanos = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        if let Some(times) = self.times.get(bucket(nanos)) {
            times.fetch_add(count, Ordering::Relaxed);
        }
    }

    /// This worker has begun to plan so many paths.
    pub fn set_plans(&self, plans: u64) {
        self.plans.fetch_max(plans, Ordering::Relaxed);
    }
}

/// The counters of all threads that serve one client.
#[derive(Debug, Clone)]
pub struct Meter(Arc<Shared<Counters>>);

/// What [`Meter`] has counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Figures {
    /// What was served.
    pub stats: Stats,
    /// Requests that wait for the host.
    pub in_flight: u64,
    /// Paths whose planning was begun.
    pub plans: u64,
    /// How long answers took.
    pub times: Histogram,
}

impl Meter {
    /// Counters for so many threads, in memory that is shared with children.
    ///
    /// # Errors
    /// When there is no memory left.
    pub fn new(threads: usize) -> Result<Self, ProcessError> {
        Ok(Self(Arc::new(Shared::new(threads.max(1))?)))
    }

    /// Those of one thread; threads without any share the last ones.
    pub fn of(&self, thread: usize) -> &Counters {
        &self.0[thread.min(self.0.len() - 1)]
    }

    /// Those of threads that come and go.
    pub fn last(&self) -> &Counters {
        self.of(usize::MAX)
    }

    /// What was served so far.
    pub fn stats(&self) -> Stats {
        self.figures().stats
    }

    /// All of it. Another process may have written anything there: sums do not overflow, and mean nothing then.
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
            // The counters of threads are not read at one moment.
            in_flight: u64::try_from(in_flight.cast_signed()).unwrap_or(0),
            plans: sum(&|counters| &counters.plans),
            times: std::array::from_fn(|bucket| sum(&|counters| &counters.times[bucket])),
        }
    }
}

/// The times of several meters, for [`percentile`].
pub fn merged(figures: &[Figures]) -> Vec<(u64, u64)> {
    let sum = |bucket: usize| {
        let counts = figures.iter().map(|one| one.times[bucket]);
        counts.fold(0, u64::saturating_add)
    };
    let times = (0..BUCKETS).map(|bucket| (bucket_end(bucket), sum(bucket)));
    times.filter(|(_, count)| *count > 0).collect()
}

/// The time that so many of 1000 answers took at most; none if there were none.
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
    fn buckets_follow_each_other() {
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
    fn threads_are_added_up() {
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
    fn lies_of_a_worker_do_no_harm() {
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
