//! Plans of paths: created when first needed, grown as far as needed, and dropped when memory is short.
//!
//! A completely planned path is read without a lock: an atomic load finds its plan. While a plan is growing, its readers take
//! turns; readers of other paths are not affected. A dropped plan must be rebuilt identically, because a guest caches inodes
//! and must not read another file's data through them. So a digest of every dropped plan is kept, and a path that has changed
//! since returns errors until it is restored.

mod growth;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Instant;

use arc_swap::ArcSwapOption;
use lru::LruCache;

use super::ReadError;
use super::published::{Published, PublishedPath, TableEntry, Wish};
use super::walk::{self, layout_error};
use crate::erofs::layout::LayoutError;
use crate::erofs::layout::attributes::Attributes;
use crate::erofs::layout::bounds::Limits;
use crate::erofs::layout::plan::Plan;
use crate::source::{Awaits, IoMode, PathTree, SourceError};
pub(super) use growth::Need;
use growth::{Cell, Growing, Growth, Past, PlanInUse, lock};

#[derive(Debug, Default)]
struct CacheEntry {
    cell: ArcSwapOption<Cell>,
    /// Set on every read; cleared when the cache looks for plans to drop.
    touched: AtomicBool,
    /// Another process had read from the path before this one, by a plan that this process does not know.
    is_known_elsewhere: OnceLock<bool>,
    /// Once set, replaces the cell for good.
    adopted: OnceLock<PublishedPath>,
}

/// Sizes of the plans in memory, in order of growth, the least recently grown first.
#[derive(Debug)]
struct Sizes {
    lru: LruCache<u32, usize>,
    total_bytes: usize,
    /// Digests of dropped plans.
    past: HashMap<u32, Past>,
}

/// The plans of all paths.
#[derive(Debug)]
pub(super) struct Plans {
    slots: Vec<CacheEntry>,
    attributes: Attributes,
    sizes: Mutex<Sizes>,
    limit_bytes: usize,
    /// The plans published by another process.
    shared: ArcSwapOption<Published>,
    /// How often planning of a path was started.
    pub(super) begun: AtomicU64,
}

/// A path of which something is needed.
#[derive(Debug)]
pub(super) struct PathContext<'a> {
    /// Its tree in the source.
    pub(super) tree: PathTree<'a>,
    /// Index of its region.
    pub(super) region: u32,
    /// Maximum number of blocks.
    pub(super) limits: Limits,
    /// Registered length of its NAR.
    pub(super) nar_size: Option<u64>,
}

impl Plans {
    /// Returns the approximate memory limit.
    pub(super) fn limit_bytes(&self) -> usize {
        self.limit_bytes
    }

    /// Creates an empty cache for `paths` paths, of about `limit_bytes`.
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
            shared: ArcSwapOption::empty(),
            begun: AtomicU64::new(0),
        }
    }

    /// Calls `f` with a plan that covers what is needed of a region.
    ///
    /// # Errors
    /// The path cannot be planned that far; [`SourceError::WouldBlock`] according to `mode`.
    pub(super) fn with<R>(
        &self,
        path: &PathContext<'_>,
        mode: IoMode,
        need: Need,
        f: impl FnOnce(&Plan) -> R,
    ) -> Result<R, ReadError> {
        let region = path.region;
        let slot = &self.slots[region as usize];
        slot.touch();
        // The most frequent case. It writes to no shared memory and counts no references.
        if let Some(plan) = slot
            .cell
            .load()
            .as_ref()
            .and_then(|cell| cell.complete.get())
        {
            return Ok(f(plan));
        }
        let cell = slot.get();
        let mut growing = cell.lock(mode)?;
        if let Some(plan) = cell.complete.get() {
            // Another thread completed the plan while this one waited for the lock.
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

    /// Uses the plans that another process publishes from now on, also in processes forked later.
    pub(super) fn share(&self, published: Arc<Published>) {
        self.shared.store(Some(published));
    }

    /// Requests a publication for a path.
    pub(super) fn ask(&self, region: u32, wish: Wish) {
        if let Some(shared) = self.shared.load().as_ref() {
            shared.ask(region, wish);
        }
    }

    /// Returns the current published plans.
    pub(super) fn shared(&self) -> Option<Arc<Published>> {
        self.shared.load_full()
    }

    /// Returns the published plan of a path, if any. It is equal to this process's own plan as far as that was used.
    ///
    /// # Errors
    /// [`ReadError::Replaced`] if they differ; [`SourceError::WouldBlock`] according to `mode`.
    pub(super) fn published(
        &self,
        path: &PathContext<'_>,
        mode: IoMode,
    ) -> Result<Option<&PublishedPath>, ReadError> {
        let slot = &self.slots[path.region as usize];
        if let Some(adopted) = slot.adopted.get() {
            return Ok(Some(adopted));
        }
        let shared = self.shared.load();
        let Some(shared) = shared.as_ref() else {
            return Ok(None);
        };
        match shared.find(path.region) {
            TableEntry::None => {
                let had_asked = || shared.ask(path.region, Wish::Plan);
                slot.is_known_elsewhere.get_or_init(had_asked);
            }
            TableEntry::Suspect => {}
            TableEntry::Path(found) => {
                // If a guest reads path after path, the planner goes on with those that follow.
                shared.ask(path.region, Wish::Plan);
                return self.adopt(path, mode, found).map(Some);
            }
        }
        Ok(None)
    }

    /// Like [`published`](Self::published), but for the process that publishes, whose reads are no reader's.
    pub(super) fn take_over(&self, path: &PathContext<'_>) {
        let shared = self.shared.load();
        if let Some(TableEntry::Path(found)) =
            shared.as_ref().map(|shared| shared.find(path.region))
        {
            // An error only means that this process keeps its own plan.
            let _ = self.adopt(path, IoMode::Blocking, found);
        }
    }

    /// Switches to the published plan, and drops this process's own.
    fn adopt(
        &self,
        path: &PathContext<'_>,
        mode: IoMode,
        found: PublishedPath,
    ) -> Result<&PublishedPath, ReadError> {
        let (region, slot) = (path.region, &self.slots[path.region as usize]);
        let cell = slot.get();
        let mut growing = cell.lock(mode)?;
        growing.check()?;
        let own = match (cell.complete.get(), &growing.growth) {
            (Some(plan), _) => Some(Past::of_whole(plan)),
            (None, growth) => growth.as_ref().and_then(Growth::past),
        };
        let own = own.or_else(|| lock(&self.sizes).past.get(&region).copied());
        if own.is_some_and(|own| found.digest(own.dirs) != Some(own.digest)) {
            let error = ReadError::Replaced {
                path: path.tree.display_path(),
            };
            self.give_up(region, &error, &mut growing);
            found.ask(region, Wish::Removal);
            return Err(error);
        }
        let adopted = slot.adopted.get_or_init(|| found);
        growing.growth = None;
        slot.cell.store(None);
        // A reader that waits for the lock may still plan the path once more.
        let past = adopted.digest(u32::MAX).map(Past::whole);
        lock(&self.sizes).leave(region, past);
        Ok(adopted)
    }

    /// Drops a plan that is no longer usable. A guest may have read by it, so its digest is kept.
    fn give_up(&self, region: u32, error: &ReadError, growing: &mut Growing) {
        if !error.lasts() {
            return;
        }
        growing.failed = Some((error.clone(), Instant::now()));
        let past = growing.growth.take().and_then(|mut growth| {
            growth.whole |= matches!(error, ReadError::NarSize { .. });
            growth.past()
        });
        lock(&self.sizes).note_past(region, past);
    }

    /// Walks the path until `need` is covered.
    fn grow(
        &self,
        path: &PathContext<'_>,
        mode: IoMode,
        need: Need,
        growing: &mut Option<Growth>,
    ) -> Result<(), ReadError> {
        let whole = self.must_be_whole(path.region);
        if let Some(growth) = growing.as_mut() {
            growth.whole |= whole;
        }
        let covered = |growth: &Growth| growth.is_usable() && growth.covers(need);
        if growing.as_ref().is_some_and(covered) {
            return Ok(());
        }
        if mode == IoMode::NoWait {
            return Err(SourceError::WouldBlock(Awaits::Lookup).into());
        }
        let PathContext {
            tree,
            region,
            limits,
            nar_size,
        } = path;
        tree.prepare(mode)?;
        if growing.is_none() {
            self.begun.fetch_add(1, Ordering::Relaxed);
        }
        let growth = match growing {
            Some(growth) => growth,
            None => {
                let planner = walk::start(tree, self.attributes, *limits)?;
                let past = lock(&self.sizes).past.get(region).copied();
                let mut growth = Growth::new(planner, past);
                growth.whole |= whole;
                growing.insert(growth)
            }
        };
        if let Some(past) = growth.expected {
            past.repeat(tree, &mut growth.planner)?;
            growth.expected = None;
        }
        while !growth.covers(need) {
            match walk::stride(tree, &mut growth.planner) {
                // A failure after that point does not matter.
                Err(ReadError::Source(_)) if growth.covers(need) => {}
                walked => walked?,
            }
        }
        // If the tree was replaced meanwhile, the plan may contain parts of the new one.
        tree.check()?;
        let planner = &growth.planner;
        if planner.is_complete() {
            walk::check_nar_size(tree, planner.plan(), *nar_size)?;
        }
        growth.seen = planner.listed();
        self.remember(*region, planner.plan().heap_bytes());
        Ok(())
    }

    /// Returns whether the path must be walked completely and match its registration before any of it is used: because it did
    /// not match before, or because a guest may have read it by the plan of a process that has died.
    fn must_be_whole(&self, region: u32) -> bool {
        let shared = self.shared.load();
        let is_suspect = |shared: &Arc<Published>| shared.is_suspect(region);
        let slot = &self.slots[region as usize];
        shared.as_ref().is_some_and(is_suspect) || slot.is_known_elsewhere.get() == Some(&true)
    }

    /// Drops a plan that no reader has used.
    pub(super) fn drop_plan(&self, region: u32) {
        self.slots[region as usize].cell.store(None);
        lock(&self.sizes).leave(region, None);
    }

    /// Inserts a complete plan that was made while the disk was laid out.
    pub(super) fn insert(&self, region: u32, plan: Plan) {
        let bytes = plan.heap_bytes();
        let cell = Cell {
            complete: OnceLock::from(plan),
            growing: Mutex::default(),
        };
        self.slots[region as usize].cell.store(Some(Arc::new(cell)));
        self.remember(region, bytes);
    }

    /// Records the size of a plan, and drops others if the total exceeds the limit.
    fn remember(&self, region: u32, bytes: usize) {
        let mut sizes = lock(&self.sizes);
        let before = sizes.lru.put(region, bytes).unwrap_or(0);
        sizes.total_bytes = sizes.total_bytes + bytes - before;
        // Each plan may get a second chance twice: once if it was read recently, once if it is growing.
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

    #[cfg(test)]
    pub(super) fn set_limit_bytes(&mut self, limit_bytes: usize) {
        self.limit_bytes = limit_bytes;
    }

    /// Returns the attributes that all plans are made with.
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

    /// Makes remembered failures expire.
    #[cfg(test)]
    pub(super) fn forget_failures(&self) {
        for slot in &self.slots {
            lock(&slot.get().growing).failed = None;
        }
    }

    /// Returns whether no part of a region's plan is in memory.
    #[cfg(test)]
    pub(super) fn is_dropped(&self, region: usize) -> bool {
        self.slots[region].cell.load().is_none()
    }

    /// Returns the approximate size of all plans in memory.
    #[cfg(test)]
    pub(super) fn total_bytes(&self) -> usize {
        lock(&self.sizes).total_bytes
    }
}

impl Sizes {
    /// Removes the entry of a plan that is no longer in memory.
    fn leave(&mut self, region: u32, past: Option<Past>) {
        self.total_bytes -= self.lru.pop(&region).unwrap_or(0);
        self.note_past(region, past);
    }

    /// Drops a plan and keeps its digest. Returns false if the plan is growing at the moment.
    fn forget(&mut self, region: u32, slot: &CacheEntry) -> bool {
        let past = slot.cell.load().as_ref().map(|cell| Past::of(cell));
        match past {
            Some(Err(PlanInUse)) => return false,
            Some(Ok(past)) => self.note_past(region, past),
            None => {}
        }
        slot.cell.store(None);
        true
    }

    /// Keeps what is known of a dropped plan, if anything.
    fn note_past(&mut self, region: u32, past: Option<Past>) {
        self.past.extend(past.map(|past| (region, past)));
    }
}

impl CacheEntry {
    /// Writes at most once between two passes of the cache.
    fn touch(&self) {
        if !self.touched.load(Ordering::Relaxed) {
            self.touched.store(true, Ordering::Relaxed);
        }
    }

    /// Returns the path's cell, initially empty.
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
