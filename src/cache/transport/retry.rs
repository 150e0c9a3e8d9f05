//! Retries of temporary failures, with a growing pause.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::thread;
use std::time::Duration;

use super::{FetchError, Retries};

/// Pause before the first retry. Doubles with each.
const FIRST_PAUSE: Duration = Duration::from_millis(200);

/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// Calls `fetch`, and retries temporary failures as often as `retries` allows.
pub(super) fn retry<T>(
    retries: Retries,
    fetch: impl Fn() -> Result<T, FetchError>,
) -> Result<T, FetchError> {
    let mut pause = FIRST_PAUSE;
    for _ in 0..retries.0 {
        match fetch() {
            Err(FetchError::Passing { reason }) => {
                tracing::debug!("{reason}: retrying");
                thread::sleep(pause.mul_f64(jitter()));
                pause = (2 * pause).min(PAUSE_MAX);
            }
            done => return done,
        }
    }
    fetch()
}

/// Returns a factor from 0.5 to 1.5, so that many clients of one server do not retry at the same time.
fn jitter() -> f64 {
    // The standard library has no other source of randomness.
    let random = RandomState::new().build_hasher().finish();
    let thousandth = u16::try_from(random % 1000).unwrap_or(0);
    0.5 + f64::from(thousandth) / 1000.0
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn only_temporary_failures_are_retried() {
        let passing = FetchError::Passing {
            reason: "busy".to_owned(),
        };
        for (error, tries) in [(passing, 3), (FetchError::NotFound, 1)] {
            let count = Cell::new(0);
            let fetch = || -> Result<(), FetchError> {
                count.set(count.get() + 1);
                Err(error.clone())
            };
            assert_eq!(retry(Retries(2), fetch), Err(error.clone()));
            assert_eq!(count.get(), tries);
        }
    }

    #[test]
    fn pauses_differ_and_are_bounded() {
        let many: Vec<f64> = (0..100).map(|_| jitter()).collect();
        assert!(many.iter().all(|jitter| (0.5..=1.5).contains(jitter)));
        assert!(many.iter().any(|jitter| *jitter != many[0]));
    }
}
