//! Plans that are growing, and what is kept of dropped ones.

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use crate::erofs::layout::plan::{DirIndex, Plan};
use crate::erofs::layout::planner::Planner;
use crate::image::{ReadError, walk};
use crate::source::{Awaits, IoMode, PathTree, SourceError};

/// After a path could not be laid out, it is not walked again for this time, however often a guest reads it.
const FAILURE_REMEMBERED: Duration = Duration::from_secs(1);

/// The plan of one path.
#[derive(Debug, Default)]
pub(super) struct Cell {
    /// Set when the whole path has been walked.
    pub(super) complete: OnceLock<Plan>,
    pub(super) growing: Mutex<Growing>,
}

/// A plan that is not complete.
#[derive(Debug, Default)]
pub(super) struct Growing {
    pub(super) growth: Option<Growth>,
    /// Why and when planning failed.
    pub(super) failed: Option<(ReadError, Instant)>,
}

impl Growing {
    /// Returns the error if a walk failed within [`FAILURE_REMEMBERED`].
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

/// A growing plan.
#[derive(Debug)]
pub(super) struct Growth {
    pub(super) planner: Planner,
    /// Number of directories whose contents readers may have used.
    pub(super) seen: DirIndex,
    /// Digest of the dropped plan. The rebuilt plan must match it before it is used.
    pub(super) expected: Option<Past>,
    /// The plan must be complete before any of it is used, because the path did not match its registration before.
    pub(super) whole: bool,
}

/// What is kept of a dropped plan.
#[derive(Debug, Clone, Copy)]
pub(super) struct Past {
    /// Number of directories listed; the digest covers at most this many.
    pub(super) dirs: u32,
    pub(super) digest: u64,
    /// The path did not match its registration.
    pub(super) wrong: bool,
}

/// What a reader needs.
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

/// Another thread is growing the plan.
pub(super) struct PlanInUse;

impl Growth {
    /// Starts a plan; `past` is what is known of an earlier one.
    pub(super) fn new(planner: Planner, past: Option<Past>) -> Self {
        Self {
            planner,
            seen: 0,
            expected: past,
            whole: past.is_some_and(|past| past.wrong),
        }
    }

    /// Returns whether the plan covers `need`.
    pub(super) fn covers(&self, need: Need) -> bool {
        let need = if self.whole { Need::All } else { need };
        need.is_covered_by(&self.planner)
    }

    /// Returns whether everything that was listed has been checked.
    pub(super) fn is_usable(&self) -> bool {
        self.expected.is_none() && self.seen == self.planner.listed()
    }

    /// Returns what to keep if the plan is dropped. `None` if the plan has not yet reached what is known already.
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
    /// Describes a complete plan with this digest.
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

    /// As [`Growth::past`], for a cell.
    pub(super) fn of(cell: &Cell) -> Result<Option<Self>, PlanInUse> {
        if let Some(plan) = cell.complete.get() {
            return Ok(Some(Self::of_whole(plan)));
        }
        let growing = try_lock(&cell.growing).ok_or(PlanInUse)?;
        Ok(growing.growth.as_ref().and_then(Growth::past))
    }

    /// Walks as far as the dropped plan had got, and checks that the result is equal.
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

/// Locks without waiting. A poisoned lock is usable, because planner and sizes are only replaced or extended in ways that keep
/// them consistent.
pub(super) fn try_lock<T>(mutex: &Mutex<T>) -> Option<MutexGuard<'_, T>> {
    match mutex.try_lock() {
        Ok(guard) => Some(guard),
        Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    }
}

/// Like [`try_lock`], but waits.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
