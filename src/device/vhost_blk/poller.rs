//! Decides how long a thread polls for requests before it sleeps.
//!
//! A wake-up costs 3 to 30 µs on hardware and 100 µs or more in a nested virtual machine, on both sides: for the
//! guest's kick and for waking this thread. Polling costs CPU time. So a thread polls only if that has recently paid
//! off, and yields the CPU in between, so that a virtual CPU can run on the same core. An idle guest costs nothing.

use std::thread;
use std::time::{Duration, Instant};

/// Number of polls between two reads of the clock, which is as expensive as several polls.
const POLLS: u32 = 8;

/// By how much each answered request extends the polling window: about the cost of a wake-up. If a guest has many
/// requests in flight, longer polling pays off, because one wake-up delays all of them.
const EARNED_BY_REQUEST: Duration = Duration::from_micros(20);

/// Maximum polling window.
const EARNED_MAX: Duration = Duration::from_millis(1);

/// Further misses in a row have no effect.
const MISSES_MAX: u32 = 6;

/// The polling state of one thread.
#[derive(Debug)]
pub(in crate::device) struct Poller {
    /// The base polling window.
    base_window: Duration,
    /// The window earned by requests since the last sleep.
    earned: Duration,
    /// Total number of requests that this thread has answered.
    answered: u64,
    /// Whether polling is expected to pay off.
    is_polling: bool,
    /// Number of polling windows in a row that found nothing.
    misses: u32,
    /// Number of sleeps in a row that polling would have avoided.
    short_sleeps: u32,
    /// When the thread went to sleep.
    asleep: Option<Instant>,
}

impl Poller {
    /// Polls for about `base_window`; zero disables polling.
    pub(in crate::device) fn new(base_window: Duration) -> Self {
        Self {
            base_window,
            earned: Duration::ZERO,
            answered: 0,
            is_polling: false,
            misses: 0,
            short_sleeps: 0,
            asleep: None,
        }
    }

    /// Updates the total number of requests that the thread has answered.
    pub(in crate::device) fn answered(&mut self, total: u64) {
        let new = u32::try_from(total - self.answered).unwrap_or(u32::MAX);
        self.answered = total;
        let earned = EARNED_BY_REQUEST.saturating_mul(new);
        self.earned = self.earned.saturating_add(earned).min(EARNED_MAX);
    }

    fn window(&self) -> Duration {
        if self.base_window.is_zero() {
            return Duration::ZERO;
        }
        self.base_window.max(self.earned)
    }

    /// Polls until `has_work` returns true or the window ends; returns whether it returned true.
    pub(in crate::device) fn wait(&mut self, mut has_work: impl FnMut() -> bool) -> bool {
        if !self.is_polling {
            return false;
        }
        let begin = Instant::now();
        loop {
            if (0..POLLS).any(|_| pause_and(&mut has_work)) {
                self.misses = 0;
                return true;
            }
            if begin.elapsed() >= self.window() {
                self.missed();
                return false;
            }
            thread::yield_now();
        }
    }

    fn missed(&mut self) {
        self.is_polling = false;
        self.short_sleeps = 0;
        self.misses = (self.misses + 1).min(MISSES_MAX);
    }

    /// The thread is about to sleep.
    pub(in crate::device) fn sleeps(&mut self) {
        self.asleep = Some(Instant::now());
    }

    /// The thread was woken.
    pub(in crate::device) fn woke(&mut self) {
        if let Some(since) = self.asleep.take() {
            self.slept_for(since.elapsed());
        }
    }

    /// Enables polling after sleeps that were shorter than the window. Each miss doubles the number of such sleeps
    /// required, so that a guest whose requests come slightly too late costs little. The window itself is not increased
    /// gradually, because a guest's reaction time to an interrupt does not start small and grow.
    fn slept_for(&mut self, time: Duration) {
        let would_have_waited = self.window();
        self.earned = Duration::ZERO;
        if time > would_have_waited {
            self.short_sleeps = 0;
            return;
        }
        self.short_sleeps += 1;
        self.is_polling = self.short_sleeps >= 1 << self.misses;
    }
}

fn pause_and(has_work: &mut impl FnMut() -> bool) -> bool {
    std::hint::spin_loop();
    has_work()
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: Duration = Duration::from_micros(50);

    #[test]
    fn polls_only_after_a_short_sleep() {
        let mut poller = Poller::new(BASE);
        assert!(!poller.wait(|| panic!("nothing has paid yet")));
        poller.slept_for(Duration::from_secs(1));
        assert!(!poller.wait(|| panic!("a long sleep")));
        poller.slept_for(BASE);
        assert!(poller.wait(|| true));
        let mut polls = 0;
        assert!(!poller.wait(|| {
            polls += 1;
            false
        }));
        assert!(polls >= POLLS);
        assert!(!poller.wait(|| panic!("it did not pay")));
    }

    /// Regression test: when the window grew gradually, requests in the middle of the window were never found, because
    /// each miss reset it to the minimum.
    #[test]
    fn the_first_poll_has_the_full_length() {
        let mut poller = Poller::new(Duration::from_secs(60));
        poller.slept_for(Duration::from_secs(59));
        let begin = Instant::now();
        assert!(poller.wait(|| begin.elapsed() > Duration::from_millis(2)));
    }

    #[test]
    fn unsuccessful_polls_make_polling_rarer() {
        let mut poller = Poller::new(BASE);
        let mut sleeps_before_polling = || {
            let sleeps = (1..).find(|_| {
                poller.slept_for(BASE);
                poller.is_polling
            });
            assert!(!poller.wait(|| false));
            sleeps.unwrap()
        };
        let seen = [(); 8].map(|()| sleeps_before_polling());
        assert_eq!(seen, [1, 2, 4, 8, 16, 32, 64, 64]);
        (0..64).for_each(|_| poller.slept_for(BASE));
        assert!(poller.wait(|| true));
        assert!(!poller.wait(|| false));
        poller.slept_for(BASE);
        poller.slept_for(BASE);
        assert!(poller.wait(|| true), "a hit makes up for all misses");
    }

    #[test]
    fn requests_prolong_polling_until_the_next_sleep() {
        let mut poller = Poller::new(BASE);
        poller.answered(20);
        assert_eq!(poller.window(), 20 * EARNED_BY_REQUEST);
        poller.slept_for(20 * EARNED_BY_REQUEST);
        assert!(poller.is_polling, "polling would have paid");
        assert_eq!(poller.window(), BASE);
        poller.answered(1_000_000);
        assert_eq!(poller.window(), EARNED_MAX);
    }

    #[test]
    fn with_zero_it_never_polls() {
        let mut poller = Poller::new(Duration::ZERO);
        poller.answered(1000);
        poller.slept_for(Duration::from_nanos(1));
        assert!(!poller.wait(|| panic!("polling is off")));
    }
}
