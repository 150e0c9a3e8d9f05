//! Plans of paths: made when first needed, grown as far as needed, dropped when memory is short.
//!
//! A path that has been planned whole is read without a lock: an atomic load finds its plan. While a plan is
//! growing, its readers take turns, and readers of other paths do not notice. Plans that were dropped are
//! derived again, identically: a guest keeps inodes, and must not find another file's bytes where they say. So what
//! is left of a dropped plan is a digest, and a path that has changed since is an error until it is as it was.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use lru::LruCache;

use super::ReadError;
use super::walk::{self, layout_error};
use crate::erofs::layout::LayoutError;
use crate::erofs::layout::attributes::Attributes;
use crate::erofs::layout::bounds::Limits;
use crate::erofs::layout::plan::{DirIndex, Plan};
use crate::erofs::layout::planner::Planner;
use crate::source::{Awaits, IoMode, PathTree, SourceError};

/// A path that cannot be laid out is not walked again for so long, however often a guest asks.
const FAILURE_REMEMBERED: Duration = Duration::from_secs(1);

/// One path's plan.
#[derive(Debug, Default)]
struct Cell {
    /// Set once nothing is left to walk.
    complete: OnceLock<Plan>,
    growing: Mutex<Growing>,
}

/// A plan that is not complete.
#[derive(Debug, Default)]
struct Growing {
    growth: Option<Growth>,
    /// Why the path could not be planned, and when.
    failed: Option<(ReadError, Instant)>,
}

impl Growing {
    /// The error of a walk that failed a moment ago.
    fn check(&mut self) -> Result<(), ReadError> {
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
struct Growth {
    planner: Planner,
    /// How many of its directories readers may have seen.
    seen: DirIndex,
    /// What it must be found to be before anyone may use it: it was there before, and was dropped.
    expected: Option<Past>,
}

/// What is remembered of a plan that was dropped.
#[derive(Debug, Clone, Copy)]
struct Past {
    /// How many directories had been listed; all of them if there are fewer.
    dirs: u32,
    digest: u64,
}

#[derive(Debug, Default)]
struct CacheEntry {
    cell: ArcSwapOption<Cell>,
    /// Read since the cache last looked.
    touched: AtomicBool,
}

/// Sizes of the plans in memory, the least recently grown first.
#[derive(Debug)]
struct Sizes {
    lru: LruCache<u32, usize>,
    total_bytes: usize,
    /// Of paths whose plan was dropped.
    past: HashMap<u32, Past>,
}

/// All plans.
#[derive(Debug)]
pub(super) struct Plans {
    slots: Vec<CacheEntry>,
    attributes: Attributes,
    sizes: Mutex<Sizes>,
    limit_bytes: usize,
    /// How often a path has been begun.
    pub(super) begun: AtomicU64,
}

/// A path of which something is needed.
#[derive(Debug)]
pub(super) struct Wanted<'a> {
    /// Where it comes from.
    pub(super) tree: PathTree<'a>,
    /// Index of its region.
    pub(super) region: u32,
    /// Most blocks that it may take.
    pub(super) limits: Limits,
}

/// What a reader needs planned.
#[derive(Debug, Clone, Copy)]
pub(super) enum Need {
    /// A metadata block.
    Meta(u32),
    /// Data up to a block.
    Data(u32),
    /// The whole path.
    All,
}

impl Plans {
    /// About how much memory they take at most.
    pub(super) fn limit_bytes(&self) -> usize {
        self.limit_bytes
    }

    /// Room for the plans of `paths` paths, in about `limit_bytes`.
    pub(super) fn new(paths: usize, attributes: Attributes, limit_bytes: usize) -> Self {
        Self {
            slots: std::iter::repeat_with(CacheEntry::default)
                .take(paths)
                .collect(),
            attributes,
            sizes: Mutex::new(Sizes {
                lru: LruCache::unbounded(),
                total_bytes: 0,
                past: HashMap::new(),
            }),
            limit_bytes,
            begun: AtomicU64::new(0),
        }
    }

    /// Calls `f` with a plan that covers what is needed of a region.
    ///
    /// # Errors
    /// When the path cannot be planned so far; [`SourceError::WouldBlock`] as `mode` has it.
    pub(super) fn with<R>(
        &self,
        path: &Wanted<'_>,
        mode: IoMode,
        need: Need,
        f: impl FnOnce(&Plan) -> R,
    ) -> Result<R, ReadError> {
        let region = path.region;
        let slot = &self.slots[region as usize];
        slot.touch();
        // The most frequent case neither writes to memory that others read nor counts references.
        if let Some(plan) = slot
            .cell
            .load()
            .as_ref()
            .and_then(|cell| cell.complete.get())
        {
            return Ok(f(plan));
        }
        let cell = slot.get();
        let mut growing = match mode {
            IoMode::Local | IoMode::Blocking => lock(&cell.growing),
            IoMode::NoWait => {
                try_lock(&cell.growing).ok_or(SourceError::WouldBlock(Awaits::Lookup))?
            }
        };
        if let Some(plan) = cell.complete.get() {
            // Somebody finished it while this reader waited for its turn.
            return Ok(f(plan));
        }
        growing.check()?;
        self.grow(path, mode, need, &mut growing.growth)
            .inspect_err(|error| self.give_up(region, error, &mut growing))?;
        let is_complete = |growth: &mut Growth| growth.planner.is_complete();
        let Some(growth) = growing.growth.take_if(is_complete) else {
            let growth = growing.growth.as_ref();
            let growth = growth.ok_or_else(|| layout_error(&path.tree, LayoutError::TooBig))?;
            return Ok(f(growth.planner.plan()));
        };
        let plan = cell.complete.get_or_init(|| growth.planner.into_plan());
        drop(growing);
        self.remember(region, plan.heap_bytes());
        Ok(f(plan))
    }

    /// Drops a plan that cannot be used any further. A guest may have read from it, so what it was is kept.
    fn give_up(&self, region: u32, error: &ReadError, growing: &mut Growing) {
        let lasts = match error {
            ReadError::Layout { .. } | ReadError::Replaced { .. } => true,
            ReadError::Source(error) => matches!(
                error,
                SourceError::Replaced { .. } | SourceError::Contradicted { .. }
            ),
            ReadError::OutOfRange { .. } => false,
        };
        if !lasts {
            return;
        }
        growing.failed = Some((error.clone(), Instant::now()));
        let past = growing.growth.take().and_then(|growth| growth.past());
        lock(&self.sizes).note_past(region, past);
    }

    /// Walks on until `need` is covered.
    fn grow(
        &self,
        path: &Wanted<'_>,
        mode: IoMode,
        need: Need,
        growing: &mut Option<Growth>,
    ) -> Result<(), ReadError> {
        let covered = |growth: &Growth| growth.is_usable() && need.is_covered_by(&growth.planner);
        if growing.as_ref().is_some_and(covered) {
            return Ok(());
        }
        if mode == IoMode::NoWait {
            return Err(SourceError::WouldBlock(Awaits::Lookup).into());
        }
        let Wanted {
            tree,
            region,
            limits,
        } = path;
        tree.prepare(mode)?;
        if growing.is_none() {
            self.begun.fetch_add(1, Ordering::Relaxed);
        }
        let growth = match growing {
            Some(growth) => growth,
            None => growing.insert(Growth {
                planner: walk::start(tree, self.attributes, *limits)?,
                seen: 0,
                expected: lock(&self.sizes).past.get(region).copied(),
            }),
        };
        if let Some(past) = growth.expected {
            past.repeat(tree, &mut growth.planner)?;
            growth.expected = None;
        }
        let planner = &mut growth.planner;
        while !need.is_covered_by(planner) {
            match walk::stride(tree, planner) {
                // It got far enough before that.
                Err(ReadError::Source(_)) if need.is_covered_by(planner) => {}
                walked => walked?,
            }
        }
        // Nothing of another tree that has taken its place may be in the plan.
        tree.check()?;
        growth.seen = planner.listed();
        self.remember(*region, planner.plan().heap_bytes());
        Ok(())
    }

    /// Takes a complete plan that was made before there was a disk.
    pub(super) fn insert(&self, region: u32, plan: Plan) {
        let bytes = plan.heap_bytes();
        let cell = Cell {
            complete: OnceLock::from(plan),
            growing: Mutex::default(),
        };
        self.slots[region as usize].cell.store(Some(Arc::new(cell)));
        self.remember(region, bytes);
    }

    /// Notes the size of a plan, and drops others when all of them have become too many.
    fn remember(&self, region: u32, bytes: usize) {
        let mut sizes = lock(&self.sizes);
        let before = sizes.lru.put(region, bytes).unwrap_or(0);
        sizes.total_bytes = sizes.total_bytes + bytes - before;
        // One for each plan that was read lately, one for each that is growing.
        let mut chances = 2 * sizes.lru.len();
        while sizes.total_bytes > self.limit_bytes && sizes.lru.len() > 1 {
            let Some((oldest, bytes)) = sizes.lru.pop_lru() else {
                break;
            };
            let slot = &self.slots[oldest as usize];
            let spare = slot.touched.swap(false, Ordering::Relaxed) && chances > 0;
            if !spare && oldest != region && sizes.forget(oldest, slot) {
                sizes.total_bytes -= bytes;
                continue;
            }
            sizes.lru.put(oldest, bytes);
            if chances == 0 {
                break;
            }
            chances -= 1;
        }
    }

    /// What every plan is made with.
    #[cfg(test)]
    pub(super) fn attributes(&self) -> Attributes {
        self.attributes
    }

    /// Calls `f` while a region's plan cannot grow.
    #[cfg(test)]
    pub(super) fn hold<R>(&self, region: usize, f: impl FnOnce() -> R) -> R {
        let cell = self.slots[region].get();
        let _growing = lock(&cell.growing);
        f()
    }

    /// As if the time for which failures are remembered had passed.
    #[cfg(test)]
    pub(super) fn forget_failures(&self) {
        for slot in &self.slots {
            lock(&slot.get().growing).failed = None;
        }
    }

    /// Whether there is nothing of a region's plan in memory.
    #[cfg(test)]
    pub(super) fn is_dropped(&self, region: usize) -> bool {
        self.slots[region].cell.load().is_none()
    }

    /// Bytes of all plans in memory, about.
    #[cfg(test)]
    pub(super) fn total_bytes(&self) -> usize {
        lock(&self.sizes).total_bytes
    }
}

impl Sizes {
    /// Drops a plan and keeps what must be remembered of it. False when somebody is growing it.
    fn forget(&mut self, region: u32, slot: &CacheEntry) -> bool {
        let past = slot.cell.load().as_ref().map(|cell| Past::of(cell));
        match past {
            Some(Err(InUse)) => return false,
            Some(Ok(past)) => self.note_past(region, past),
            None => {}
        }
        slot.cell.store(None);
        true
    }

    /// Keeps what was learnt of a plan that is dropped, if anything was.
    fn note_past(&mut self, region: u32, past: Option<Past>) {
        self.past.extend(past.map(|past| (region, past)));
    }
}

impl CacheEntry {
    /// Writes at most once between two looks of the cache.
    fn touch(&self) {
        if !self.touched.load(Ordering::Relaxed) {
            self.touched.store(true, Ordering::Relaxed);
        }
    }

    /// The path's cell, which is empty at first.
    fn get(&self) -> Arc<Cell> {
        loop {
            if let Some(cell) = self.cell.load_full() {
                return cell;
            }
            let fresh = Some(Arc::new(Cell::default()));
            self.cell.compare_and_swap(&None::<Arc<Cell>>, fresh);
        }
    }
}

/// Somebody is growing the plan.
struct InUse;

impl Growth {
    /// Nothing has been listed but not checked.
    fn is_usable(&self) -> bool {
        self.expected.is_none() && self.seen == self.planner.listed()
    }

    /// None if nothing new was learnt.
    fn past(&self) -> Option<Past> {
        let dirs = self.seen;
        self.expected.is_none().then(|| Past {
            dirs,
            digest: self.planner.plan().digest(dirs),
        })
    }
}

impl Past {
    /// None when nothing new was learnt.
    fn of(cell: &Cell) -> Result<Option<Self>, InUse> {
        if let Some(plan) = cell.complete.get() {
            return Ok(Some(Self {
                dirs: u32::MAX,
                digest: plan.digest(u32::MAX),
            }));
        }
        let growing = try_lock(&cell.growing).ok_or(InUse)?;
        Ok(growing.growth.as_ref().and_then(Growth::past))
    }

    /// Walks as far as the plan had got, and makes sure that it is the same again.
    fn repeat(&self, tree: &PathTree<'_>, planner: &mut Planner) -> Result<(), ReadError> {
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
    fn is_covered_by(self, planner: &Planner) -> bool {
        match self {
            Self::Meta(block) => planner.covers_meta(block),
            Self::Data(block) => planner.covers_data(block),
            Self::All => planner.is_complete(),
        }
    }
}

/// Neither a planner nor the sizes are left half-changed by a panic elsewhere: both are only replaced or
/// extended in ways that leave them whole.
fn try_lock<T>(mutex: &Mutex<T>) -> Option<MutexGuard<'_, T>> {
    match mutex.try_lock() {
        Ok(guard) => Some(guard),
        Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    }
}

/// As [`try_lock`], and waits.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
