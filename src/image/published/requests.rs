//! Requests of serving processes to publish plans.
//!
//! They are in memory that all these processes can write to. A compromised worker can only make the publisher plan more of the
//! closure's paths, or make the next server walk them again.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use rustix::fs::Timespec;
use rustix::thread::futex;

use crate::process::{ProcessError, Shared};

/// A request for a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::image) enum Wish {
    /// Publish its plan.
    Plan = 1,
    /// Also publish the contents of its small files.
    SmallFiles = 2,
    /// Remove its kept plan, which does not match the path, so that no later server uses it.
    Removal = 4,
}

/// Bits per path in a word.
const BITS: u32 = 4;
const PER_WORD: u32 = u32::BITS / BITS;

/// All requests, and a counter that is incremented at every new request.
#[derive(Debug)]
pub(in crate::image) struct Requests {
    /// Time of creation, since 1970.
    since: Duration,
    bell: Shared<AtomicU32>,
    words: Shared<AtomicU32>,
}

impl Requests {
    /// Creates an empty set of requests for this number of paths.
    pub(in crate::image) fn new(paths: usize) -> Result<Self, ProcessError> {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        Ok(Self {
            since: since.unwrap_or_default(),
            bell: Shared::new(1)?,
            words: Shared::new(paths.div_ceil(PER_WORD as usize))?,
        })
    }

    /// Returns the time from which on requests were possible. Files modified later may differ from what guests have read.
    pub(in crate::image) fn since(&self) -> Duration {
        self.since
    }

    fn word(&self, region: u32, wish: Wish) -> Option<(&AtomicU32, u32)> {
        let word = self.words.get((region / PER_WORD) as usize)?;
        Some((word, (wish as u32) << (region % PER_WORD * BITS)))
    }

    /// Makes a request. A repeated request costs only a load. Returns whether it was made before.
    pub(in crate::image) fn ask(&self, region: u32, wish: Wish) -> bool {
        let Some((word, bit)) = self.word(region, wish) else {
            return false;
        };
        let is_asked = |word: u32| word & bit != 0;
        if is_asked(word.load(Ordering::Relaxed)) || is_asked(word.fetch_or(bit, Ordering::Relaxed))
        {
            return true;
        }
        if let Some(bell) = self.bell.first() {
            bell.fetch_add(1, Ordering::Release);
            // An error is ignored: there may be no waiter, and a lost wake-up only costs time.
            let _ = futex::wake(bell, futex::Flags::empty(), 1);
        }
        false
    }

    pub(in crate::image) fn has(&self, region: u32, wish: Wish) -> bool {
        let found = self.word(region, wish);
        found.is_some_and(|(word, bit)| word.load(Ordering::Relaxed) & bit != 0)
    }

    /// Returns the counter, for [`wait`](Self::wait).
    pub(in crate::image) fn rung(&self) -> u32 {
        self.bell
            .first()
            .map_or(0, |bell| bell.load(Ordering::Acquire))
    }

    /// Waits until the counter differs from `rung`, or until `limit` has passed.
    pub(in crate::image) fn wait(&self, rung: u32, limit: Option<Duration>) {
        let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
        if let Some(bell) = self.bell.first() {
            // The result is ignored: in any case the caller checks the requests.
            let _ = futex::wait(bell, futex::Flags::empty(), rung, limit.as_ref());
        }
    }
}
