//! Slows down threads with spurious wake-ups.
//!
//! A frontend can pass a kick descriptor that is always readable, such as a pipe whose other end is closed, or leave a
//! replaced descriptor registered that is never read. The event loop would then spin. Such a thread sleeps before it
//! returns to the event loop, which delays requests of that VM by up to [`SLEEP_MAX`].

use std::thread;
use std::time::Duration;

/// Number of wake-ups without work that are normal: the kicks of all queues of a thread may arrive after it has already
/// served them.
const ALLOWED: u32 = 256;

/// First and longest sleep; the time doubles in between.
const SLEEP_MIN: Duration = Duration::from_millis(1);
const SLEEP_MAX: Duration = Duration::from_millis(16);

/// Counts the spurious wake-ups of one thread.
#[derive(Debug, Default)]
pub(super) struct IdleWakes {
    /// Number of wake-ups without work since the last one with work.
    count: u32,
}

impl IdleWakes {
    /// Records a wake-up. Sleeps if too many in a row found no work.
    pub(super) fn woke(&mut self, found_work: bool) {
        if let Some(sleep) = self.count(found_work) {
            thread::sleep(sleep);
        }
    }

    fn count(&mut self, found_work: bool) -> Option<Duration> {
        self.count = if found_work {
            0
        } else {
            self.count.saturating_add(1)
        };
        let beyond = self.count.checked_sub(ALLOWED + 1)?;
        let doublings = beyond.min(SLEEP_MAX.as_millis().ilog2());
        Some(SLEEP_MIN * 2u32.pow(doublings))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_many_spurious_kicks_are_slowed_down() {
        let mut wakes = IdleWakes::default();
        assert!((0..ALLOWED).all(|_| wakes.count(false).is_none()));
        let millis = [1, 2, 4, 8, 16, 16, 16].map(Duration::from_millis);
        assert_eq!([(); 7].map(|()| wakes.count(false).unwrap()), millis);
        assert_eq!(wakes.count(true), None);
        assert_eq!(wakes.count(false), None);
    }
}
