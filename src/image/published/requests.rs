//! What processes that serve the disk would like to have published.
//!
//! It lies in memory that all of them write to. What one that has fallen to its guest writes there makes the publisher plan
//! more of the closure's paths, or has the next server walk them again, and nothing else.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use rustix::fs::Timespec;
use rustix::thread::futex;

use crate::process::{ProcessError, Shared};

/// What is wanted of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::image) enum Wish {
    /// Its plan.
    Plan = 1,
    /// What its small files hold, too.
    SmallFiles = 2,
    /// That no later server uses this plan: it does not say what is there.
    Removal = 4,
}

/// Wishes for a path are so many bits of a word.
const BITS: u32 = 4;
const PER_WORD: u32 = u32::BITS / BITS;

/// All wishes, and a bell that is rung for each.
#[derive(Debug)]
pub(in crate::image) struct Requests {
    /// Since 1970.
    since: Duration,
    bell: Shared<AtomicU32>,
    words: Shared<AtomicU32>,
}

impl Requests {
    /// None yet, for so many paths.
    pub(in crate::image) fn new(paths: usize) -> Result<Self, ProcessError> {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        Ok(Self {
            since: since.unwrap_or_default(),
            bell: Shared::new(1)?,
            words: Shared::new(paths.div_ceil(PER_WORD as usize))?,
        })
    }

    /// When somebody could ask first: what was modified later may be other than what guests have read.
    pub(in crate::image) fn since(&self) -> Duration {
        self.since
    }

    fn word(&self, region: u32, wish: Wish) -> Option<(&AtomicU32, u32)> {
        let word = self.words.get((region / PER_WORD) as usize)?;
        Some((word, (wish as u32) << (region % PER_WORD * BITS)))
    }

    /// Asks once; later calls cost a load. Whether somebody had asked before.
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
            // Nobody may be waiting, and a lost call costs time only.
            let _ = futex::wake(bell, futex::Flags::empty(), 1);
        }
        false
    }

    pub(in crate::image) fn has(&self, region: u32, wish: Wish) -> bool {
        let found = self.word(region, wish);
        found.is_some_and(|(word, bit)| word.load(Ordering::Relaxed) & bit != 0)
    }

    /// How often it was rung, for [`wait`](Self::wait).
    pub(in crate::image) fn rung(&self) -> u32 {
        self.bell
            .first()
            .map_or(0, |bell| bell.load(Ordering::Acquire))
    }

    /// Waits until it has been rung more than `rung` times, or for so long.
    pub(in crate::image) fn wait(&self, rung: u32, limit: Option<Duration>) {
        let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
        if let Some(bell) = self.bell.first() {
            // Interrupted, late or rung: the caller looks.
            let _ = futex::wait(bell, futex::Flags::empty(), rung, limit.as_ref());
        }
    }
}
