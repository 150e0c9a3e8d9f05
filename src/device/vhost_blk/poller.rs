//! How long a thread looks for requests before it sleeps.
//!
//! Being woken costs the guest 15 to 30 µs, looking costs a CPU. So a thread looks only while that has just paid, and
//! gives the CPU away between looks: a guest's virtual CPU that wants the same core gets it.

use std::thread;
use std::time::{Duration, Instant};

/// First window after a sleep that was so short that looking would have paid.
const FIRST: Duration = Duration::from_micros(10);

/// Looks between two glances at the clock, which cost as much as several looks.
const LOOKS: u32 = 8;

/// Decides how long one thread looks.
#[derive(Debug)]
pub(in crate::device) struct Poller {
    most: Duration,
    /// How long to look next time.
    window: Duration,
    /// When the thread went to sleep.
    asleep: Option<Instant>,
}

impl Poller {
    /// Looks for at most `most`; zero never looks.
    pub(in crate::device) fn new(most: Duration) -> Self {
        Self {
            most,
            window: Duration::ZERO,
            asleep: None,
        }
    }

    /// Looks until `look` finds something or it does not pay any more; says which.
    pub(in crate::device) fn wait(&mut self, mut look: impl FnMut() -> bool) -> bool {
        if self.window.is_zero() {
            return false;
        }
        let begin = Instant::now();
        loop {
            if (0..LOOKS).any(|_| pause_and(&mut look)) {
                self.window = self.most;
                return true;
            }
            if begin.elapsed() >= self.window {
                self.window = Duration::ZERO;
                return false;
            }
            thread::yield_now();
        }
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

    fn slept_for(&mut self, time: Duration) {
        if time <= self.most {
            self.window = (2 * self.window).max(FIRST).min(self.most);
        }
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
    fn looks_only_after_a_short_sleep_and_gives_up_at_once() {
        let mut poller = Poller::new(MOST);
        assert!(!poller.wait(|| panic!("nothing has paid yet")));
        poller.slept_for(Duration::from_secs(1));
        assert!(!poller.wait(|| panic!("a long sleep")));
        poller.slept_for(MOST);
        assert_eq!(poller.window, FIRST);
        poller.slept_for(MOST);
        assert_eq!(poller.window, 2 * FIRST);
        assert!(poller.wait(|| true));
        assert_eq!(poller.window, MOST);
        let mut looks = 0;
        assert!(!poller.wait(|| {
            looks += 1;
            false
        }));
        assert!(looks >= LOOKS);
        assert!(!poller.wait(|| panic!("it did not pay")));
    }

    #[test]
    fn zero_never_looks() {
        let mut poller = Poller::new(Duration::ZERO);
        poller.slept_for(Duration::ZERO);
        assert!(!poller.wait(|| panic!("polling is off")));
    }
}
