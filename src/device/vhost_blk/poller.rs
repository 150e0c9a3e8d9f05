//! How long a thread looks for requests before it sleeps.
//!
//! A wake-up costs 3 to 30 µs on hardware and 100 µs and more in a nested virtual machine, on both sides: the guest's kick
//! and this thread's start. Looking costs a CPU. So a thread looks only while that has just paid, and gives the CPU away
//! between looks: a guest's virtual CPU that wants the same core gets it. A guest that makes no requests costs nothing.

use std::thread;
use std::time::{Duration, Instant};

/// Looks between two glances at the clock, which cost as much as several looks.
const LOOKS: u32 = 8;

/// What a request that was answered lets the thread look beyond its usual window: about what a wake-up costs. A guest with
/// many requests under way is worth waiting for longer, since one wake-up holds them all up.
const EARNED_BY_REQUEST: Duration = Duration::from_micros(20);

/// The longest look.
const EARNED_MAX: Duration = Duration::from_millis(1);

/// After so many misses in a row, another one does not make the thread more reluctant.
const MISSES_MAX: u32 = 6;

/// Decides how long one thread looks.
#[derive(Debug)]
pub(in crate::device) struct Poller {
    /// The usual window.
    most: Duration,
    /// What the requests since the last sleep have earned.
    earned: Duration,
    /// Requests that this thread has answered since it began.
    answered: u64,
    /// Whether looking is expected to pay.
    is_looking: bool,
    /// Looks in a row that found nothing.
    misses: u32,
    /// Sleeps in a row that looking would have spared.
    short_sleeps: u32,
    /// When the thread went to sleep.
    asleep: Option<Instant>,
}

impl Poller {
    /// Looks for about `most`; zero never looks.
    pub(in crate::device) fn new(most: Duration) -> Self {
        Self {
            most,
            earned: Duration::ZERO,
            answered: 0,
            is_looking: false,
            misses: 0,
            short_sleeps: 0,
            asleep: None,
        }
    }

    /// Takes note of how many requests the thread has answered so far.
    pub(in crate::device) fn answered(&mut self, total: u64) {
        let new = u32::try_from(total - self.answered).unwrap_or(u32::MAX);
        self.answered = total;
        let earned = EARNED_BY_REQUEST.saturating_mul(new);
        self.earned = self.earned.saturating_add(earned).min(EARNED_MAX);
    }

    fn window(&self) -> Duration {
        if self.most.is_zero() {
            return Duration::ZERO;
        }
        self.most.max(self.earned)
    }

    /// Looks until `look` finds something or it does not pay any more; says which.
    pub(in crate::device) fn wait(&mut self, mut look: impl FnMut() -> bool) -> bool {
        if !self.is_looking {
            return false;
        }
        let begin = Instant::now();
        loop {
            if (0..LOOKS).any(|_| pause_and(&mut look)) {
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
        self.is_looking = false;
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

    /// The whole window is worth trying after short sleeps: how long the guest takes to answer an interrupt does not grow
    /// step by step. The more looks were in vain, the more such sleeps it takes, so that a guest whose requests come a
    /// little too late costs little.
    fn slept_for(&mut self, time: Duration) {
        let would_have_waited = self.window();
        self.earned = Duration::ZERO;
        if time > would_have_waited {
            self.short_sleeps = 0;
            return;
        }
        self.short_sleeps += 1;
        self.is_looking = self.short_sleeps >= 1 << self.misses;
    }
}

fn pause_and(look: &mut impl FnMut() -> bool) -> bool {
    std::hint::spin_loop();
    look()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: Duration = Duration::from_micros(50);

    #[test]
    fn looks_only_after_a_short_sleep() {
        let mut poller = Poller::new(MOST);
        assert!(!poller.wait(|| panic!("nothing has paid yet")));
        poller.slept_for(Duration::from_secs(1));
        assert!(!poller.wait(|| panic!("a long sleep")));
        poller.slept_for(MOST);
        assert!(poller.wait(|| true));
        let mut looks = 0;
        assert!(!poller.wait(|| {
            looks += 1;
            false
        }));
        assert!(looks >= LOOKS);
        assert!(!poller.wait(|| panic!("it did not pay")));
    }

    /// Requests that come in the middle of the window were never found when the window grew from its smallest: each look
    /// in vain made it small again.
    #[test]
    fn the_first_look_is_as_long_as_any() {
        let mut poller = Poller::new(Duration::from_secs(60));
        poller.slept_for(Duration::from_secs(59));
        let begin = Instant::now();
        assert!(poller.wait(|| begin.elapsed() > Duration::from_millis(2)));
    }

    #[test]
    fn looks_in_vain_make_the_next_one_rarer() {
        let mut poller = Poller::new(MOST);
        let mut sleeps_before_look = || {
            let sleeps = (1..).find(|_| {
                poller.slept_for(MOST);
                poller.is_looking
            });
            assert!(!poller.wait(|| false));
            sleeps.unwrap()
        };
        let seen = [(); 8].map(|()| sleeps_before_look());
        assert_eq!(seen, [1, 2, 4, 8, 16, 32, 64, 64]);
        (0..64).for_each(|_| poller.slept_for(MOST));
        assert!(poller.wait(|| true));
        assert!(!poller.wait(|| false));
        poller.slept_for(MOST);
        poller.slept_for(MOST);
        assert!(poller.wait(|| true), "a hit makes up for all misses");
    }

    #[test]
    fn requests_earn_a_longer_look_until_the_next_sleep() {
        let mut poller = Poller::new(MOST);
        poller.answered(20);
        assert_eq!(poller.window(), 20 * EARNED_BY_REQUEST);
        poller.slept_for(20 * EARNED_BY_REQUEST);
        assert!(poller.is_looking, "that look would have paid");
        assert_eq!(poller.window(), MOST);
        poller.answered(1_000_000);
        assert_eq!(poller.window(), EARNED_MAX);
    }

    #[test]
    fn zero_never_looks() {
        let mut poller = Poller::new(Duration::ZERO);
        poller.answered(1000);
        poller.slept_for(Duration::from_nanos(1));
        assert!(!poller.wait(|| panic!("polling is off")));
    }
}
