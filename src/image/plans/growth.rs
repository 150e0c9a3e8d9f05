//! A plan that is growing, and what is remembered of one that was dropped.

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use crate::erofs::layout::plan::{DirIndex, Plan};
use crate::erofs::layout::planner::Planner;
use crate::image::{ReadError, walk};
use crate::source::{Awaits, IoMode, PathTree, SourceError};

/// A path that cannot be laid out is not walked again for so long, however often a guest asks.
const FAILURE_REMEMBERED: Duration = Duration::from_secs(1);

/// One path's plan.
#[derive(Debug, Default)]
pub(super) struct Cell {
    /// Set once nothing is left to walk.
    pub(super) complete: OnceLock<Plan>,
    pub(super) growing: Mutex<Growing>,
}

/// A plan that is not complete.
#[derive(Debug, Default)]
pub(super) struct Growing {
    pub(super) growth: Option<Growth>,
    /// Why the path could not be planned, and when.
    pub(super) failed: Option<(ReadError, Instant)>,
}

impl Growing {
    /// The error of a walk that failed a moment ago.
    pub(super) fn check(&mut self) -> Result<(), ReadError> {
        match &self.failed {
            Some((error, at)) if at.elapsed() < FAILURE_REMEMBERED => Err(error.clone()),
            _ => {
                self.failed = None;
                Ok(())
            }
        }
    }
}

/// A plan that is growing.
#[derive(Debug)]
pub(super) struct Growth {
    pub(super) planner: Planner,
    /// How many of its directories readers may have seen.
    pub(super) seen: DirIndex,
    /// What it must be found to be before anyone may use it: it was there before, and was dropped.
    pub(super) expected: Option<Past>,
    /// Nothing of it may be used before it is complete: another time it was not what was registered.
    pub(super) whole: bool,
}

/// What is remembered of a plan that was dropped.
#[derive(Debug, Clone, Copy)]
pub(super) struct Past {
    /// How many directories had been listed; all of them if there are fewer.
    pub(super) dirs: u32,
    pub(super) digest: u64,
    /// It was not what was registered.
    pub(super) wrong: bool,
}

/// What a reader needs planned.
#[derive(Debug, Clone, Copy)]
pub(in crate::image) enum Need {
    /// A metadata block.
    Meta(u32),
    /// Data up to a block.
    Data(u32),
    /// The whole path.
    All,
}

impl Cell {
    pub(super) fn lock(&self, mode: IoMode) -> Result<MutexGuard<'_, Growing>, SourceError> {
        match mode {
            IoMode::Local | IoMode::Blocking => Ok(lock(&self.growing)),
            IoMode::NoWait => {
                try_lock(&self.growing).ok_or(SourceError::WouldBlock(Awaits::Lookup))
            }
        }
    }
}

/// Somebody is growing the plan.
pub(super) struct InUse;

impl Growth {
    /// `past` is what was learnt of it before.
    pub(super) fn new(planner: Planner, past: Option<Past>) -> Self {
        Self {
            planner,
            seen: 0,
            expected: past,
            whole: past.is_some_and(|past| past.wrong),
        }
    }

    /// Whether what is `need`ed has been walked.
    pub(super) fn covers(&self, need: Need) -> bool {
        let need = if self.whole { Need::All } else { need };
        need.is_covered_by(&self.planner)
    }

    /// Nothing has been listed but not checked.
    pub(super) fn is_usable(&self) -> bool {
        self.expected.is_none() && self.seen == self.planner.listed()
    }

    /// None if nothing new was learnt.
    pub(super) fn past(&self) -> Option<Past> {
        let dirs = self.seen;
        self.expected.is_none().then(|| Past {
            dirs,
            digest: self.planner.plan().digest(dirs),
            wrong: self.whole,
        })
    }
}

impl Past {
    /// A complete plan of this digest.
    pub(super) fn whole(digest: u64) -> Self {
        Self {
            dirs: u32::MAX,
            digest,
            wrong: false,
        }
    }

    pub(super) fn of_whole(plan: &Plan) -> Self {
        Self::whole(plan.digest(u32::MAX))
    }

    /// None when nothing new was learnt.
    pub(super) fn of(cell: &Cell) -> Result<Option<Self>, InUse> {
        if let Some(plan) = cell.complete.get() {
            return Ok(Some(Self::of_whole(plan)));
        }
        let growing = try_lock(&cell.growing).ok_or(InUse)?;
        Ok(growing.growth.as_ref().and_then(Growth::past))
    }

    /// Walks as far as the plan had got, and makes sure that it is the same again.
    pub(super) fn repeat(
        &self,
        tree: &PathTree<'_>,
        planner: &mut Planner,
    ) -> Result<(), ReadError> {
        while planner.listed() < self.dirs && !planner.is_complete() {
            walk::step(tree, planner)?;
        }
        if planner.plan().digest(self.dirs) == self.digest {
            return Ok(());
        }
        Err(ReadError::Replaced {
            path: tree.display_path(),
        })
    }
}

impl Need {
    pub(super) fn is_covered_by(self, planner: &Planner) -> bool {
        match self {
            Self::Meta(block) => planner.covers_meta(block),
            Self::Data(block) => planner.covers_data(block),
            Self::All => planner.is_complete(),
        }
    }
}

/// Neither a planner nor the sizes are left half-changed by a panic elsewhere: both are only replaced or
/// extended in ways that leave them whole.
pub(super) fn try_lock<T>(mutex: &Mutex<T>) -> Option<MutexGuard<'_, T>> {
    match mutex.try_lock() {
        Ok(guard) => Some(guard),
        Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    }
}

/// As [`try_lock`], and waits.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
