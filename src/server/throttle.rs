//! Limits the rate of what a client can cause.

use std::time::{Duration, Instant};

/// A token bucket: `burst` tokens, and one more each interval.
#[derive(Debug)]
pub(super) struct Throttle {
    tokens: u32,
    burst: u32,
    interval: Duration,
    /// When the last token was added.
    filled: Instant,
    /// Attempts without a token since the last successful one.
    refused: u64,
}

impl Throttle {
    pub(super) fn new(burst: u32, interval: Duration, now: Instant) -> Self {
        Self {
            tokens: burst,
            burst,
            interval,
            filled: now,
            refused: 0,
        }
    }

    /// Takes a token. Returns the number of failed attempts before, or `None` if there is no token.
    pub(super) fn take(&mut self, now: Instant) -> Option<u64> {
        self.fill(now);
        if self.tokens == 0 {
            self.refused += 1;
            return None;
        }
        self.tokens -= 1;
        Some(std::mem::take(&mut self.refused))
    }

    /// If there is no token: when the next one will be added.
    pub(super) fn next(&mut self, now: Instant) -> Option<Instant> {
        self.fill(now);
        (self.tokens == 0).then(|| self.filled + self.interval)
    }

    fn fill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.filled).as_nanos();
        let came = passed / self.interval.as_nanos().max(1);
        let missing = self.burst - self.tokens;
        match u32::try_from(came) {
            Ok(came) if came < missing => {
                self.tokens += came;
                self.filled += self.interval * came;
            }
            _ => {
                self.tokens = self.burst;
                self.filled = now;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_then_one_each_interval() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut throttle = Throttle::new(3, Duration::from_millis(100), start);
        let passed: Vec<_> = (0..5).map(|_| throttle.take(at(0))).collect();
        assert_eq!(passed, [Some(0), Some(0), Some(0), None, None]);
        assert_eq!(throttle.next(at(50)), Some(at(100)));
        assert_eq!(throttle.take(at(99)), None);
        assert_eq!(throttle.take(at(250)), Some(3));
        assert_eq!(throttle.take(at(250)), Some(0));
        assert_eq!(throttle.take(at(250)), None);
        assert_eq!(throttle.next(at(250)), Some(at(300)));
        assert_eq!(throttle.next(at(300)), None);
        // A long pause gives no more than a burst.
        let passed = (0..9).filter(|_| throttle.take(at(1_000_000)).is_some());
        assert_eq!(passed.count(), 3);
    }
}
