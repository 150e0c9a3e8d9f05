//! Plans of paths: made when first needed, grown as far as needed, dropped when memory is short.
//!
//! A path that has been planned whole is read without a lock: an atomic load finds its plan. While a plan is
//! growing, its readers take turns, and readers of other paths do not notice. Plans that were dropped are
//! derived again, identically.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};

use arc_swap::ArcSwapOption;
use lru::LruCache;

use super::{Image, ReadError};
use crate::erofs::layout::LayoutError;
use crate::erofs::layout::attributes::Attributes;
use crate::erofs::layout::plan::Plan;
use crate::erofs::layout::planner::Planner;
use crate::store::{FileKind, Patience, Stat, Store, StoreError};

/// One path's plan.
#[derive(Debug, Default)]
struct Cell {
    /// Set once nothing is left to walk.
    complete: OnceLock<Plan>,
    growing: Mutex<Option<Planner>>,
}

#[derive(Debug, Default)]
struct Slot {
    cell: ArcSwapOption<Cell>,
    /// Read since the cache last looked.
    touched: AtomicBool,
}

/// Sizes of the plans in memory, the least recently grown first.
#[derive(Debug)]
struct Sizes {
    lru: LruCache<u32, usize>,
    total_bytes: usize,
}

/// All plans.
#[derive(Debug)]
pub(super) struct Plans {
    slots: Vec<Slot>,
    attributes: Attributes,
    sizes: Mutex<Sizes>,
    limit_bytes: usize,
    /// How often a path has been begun.
    #[cfg(test)]
    pub(super) begun: std::sync::atomic::AtomicUsize,
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
    /// Room for the plans of `paths` paths, in about `limit_bytes`.
    pub(super) fn new(paths: usize, attributes: Attributes, limit_bytes: usize) -> Self {
        Self {
            slots: std::iter::repeat_with(Slot::default).take(paths).collect(),
            attributes,
            sizes: Mutex::new(Sizes {
                lru: LruCache::unbounded(),
                total_bytes: 0,
            }),
            limit_bytes,
            #[cfg(test)]
            begun: Default::default(),
        }
    }

    /// Calls `f` with a plan that covers what is needed of a region.
    ///
    /// # Errors
    /// When the path cannot be planned so far; [`StoreError::WouldBlock`] as `patience` has it.
    pub(super) fn with<R>(
        &self,
        image: &Image,
        patience: Patience,
        region: u32,
        need: Need,
        f: impl FnOnce(&Plan) -> R,
    ) -> Result<R, ReadError> {
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
        let mut growing = match patience {
            Patience::Wait => lock(&cell.growing),
            Patience::Now => try_lock(&cell.growing).ok_or(StoreError::WouldBlock)?,
        };
        if let Some(plan) = cell.complete.get() {
            // Somebody finished it while this reader waited for its turn.
            return Ok(f(plan));
        }
        self.grow(image, patience, region, need, &mut growing)
            .inspect_err(|error| {
                if matches!(error, ReadError::Layout { .. }) {
                    *growing = None;
                }
            })?;
        let Some(planner) = growing.take_if(|planner| planner.is_complete()) else {
            let planner = growing.as_ref().ok_or_else(|| unplanned(image, region))?;
            return Ok(f(planner.plan()));
        };
        let plan = cell.complete.get_or_init(|| planner.into_plan());
        drop(growing);
        self.remember(region, plan.heap_bytes());
        Ok(f(plan))
    }

    /// Walks on until `need` is covered.
    fn grow(
        &self,
        image: &Image,
        patience: Patience,
        region: u32,
        need: Need,
        growing: &mut Option<Planner>,
    ) -> Result<(), ReadError> {
        if patience == Patience::Now {
            let covered = growing
                .as_ref()
                .is_some_and(|grown| need.is_covered_by(grown));
            return covered.then_some(()).ok_or(StoreError::WouldBlock.into());
        }
        let here = image.space.region(region);
        #[cfg(test)]
        if growing.is_none() {
            self.begun.fetch_add(1, Ordering::Relaxed);
        }
        let planner = match growing {
            Some(planner) => planner,
            None => growing.insert(start(
                &image.store,
                &here.name,
                self.attributes,
                here.limits(),
            )?),
        };
        if need.is_covered_by(planner) {
            return Ok(());
        }
        while !need.is_covered_by(planner) {
            step(&image.store, planner, &here.name)?;
        }
        self.remember(region, planner.plan().heap_bytes());
        Ok(())
    }

    /// Keeps a complete plan for good: it could not be made again.
    pub(super) fn keep(&self, region: usize, plan: Plan) {
        let cell = Cell {
            complete: OnceLock::from(plan),
            growing: Mutex::default(),
        };
        self.slots[region].cell.store(Some(Arc::new(cell)));
    }

    /// Takes a complete plan that was made before there was a disk.
    pub(super) fn insert(&self, region: usize, plan: Plan) {
        let bytes = plan.heap_bytes();
        self.keep(region, plan);
        if let Ok(region) = u32::try_from(region) {
            self.remember(region, bytes);
        }
    }

    /// Notes the size of a plan, and drops others when all of them have become too many.
    fn remember(&self, region: u32, bytes: usize) {
        let mut sizes = lock(&self.sizes);
        let before = sizes.lru.put(region, bytes).unwrap_or(0);
        sizes.total_bytes = sizes.total_bytes + bytes - before;
        let mut chances = sizes.lru.len();
        while sizes.total_bytes > self.limit_bytes && sizes.lru.len() > 1 {
            let Some((oldest, bytes)) = sizes.lru.pop_lru() else {
                break;
            };
            let slot = &self.slots[oldest as usize];
            let spare = oldest == region || slot.touched.swap(false, Ordering::Relaxed);
            if spare && chances > 0 {
                chances -= 1;
                sizes.lru.put(oldest, bytes);
            } else {
                sizes.total_bytes -= bytes;
                slot.cell.store(None);
            }
        }
    }

    /// Calls `f` while a region's plan cannot grow.
    #[cfg(test)]
    pub(super) fn hold<R>(&self, region: usize, f: impl FnOnce() -> R) -> R {
        let cell = self.slots[region].get();
        let _growing = lock(&cell.growing);
        f()
    }

    /// Bytes of all plans in memory, about.
    #[cfg(test)]
    pub(super) fn total_bytes(&self) -> usize {
        lock(&self.sizes).total_bytes
    }
}

impl Slot {
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

impl Need {
    fn is_covered_by(self, planner: &Planner) -> bool {
        match self {
            Self::Meta(block) => planner.covers_meta(block),
            Self::Data(block) => planner.covers_data(block),
            Self::All => planner.is_complete(),
        }
    }
}

fn unplanned(image: &Image, region: u32) -> ReadError {
    layout_error(
        &image.store,
        &image.space.region(region).name,
        LayoutError::TooBig,
    )
}

/// Begins the plan of the path `name`.
fn start(
    store: &Store,
    name: &[u8],
    attributes: Attributes,
    limits: (u32, u32),
) -> Result<Planner, ReadError> {
    let (stat, target) = if name.is_empty() {
        (store.stat(name)?, Vec::new())
    } else {
        top_node(store, name)?
    };
    Planner::new(name, attributes, limits, &stat, &target)
        .map_err(|source| layout_error(store, name, source))
}

fn top_node(store: &Store, name: &[u8]) -> Result<(Stat, Vec<u8>), ReadError> {
    let stat = store.stat(name)?;
    let target = match stat.kind {
        FileKind::Symlink => store.read_link(name)?,
        _ => Vec::new(),
    };
    Ok((stat, target))
}

/// Lists one more directory.
fn step(store: &Store, planner: &mut Planner, name: &[u8]) -> Result<(), ReadError> {
    let Some(dir) = planner.next_dir() else {
        return Ok(());
    };
    let path = planner.plan().path(dir);
    let listing = store.list(&path, planner.plan().attributes().detail())?;
    planner
        .push(&listing)
        .map_err(|source| layout_error(store, name, source))
}

/// Plans the path `name` whole, however big it is.
pub(super) fn plan_whole(
    store: &Store,
    name: &[u8],
    attributes: Attributes,
) -> Result<Plan, ReadError> {
    let mut planner = start(store, name, attributes, (u32::MAX, u32::MAX))?;
    while !planner.is_complete() {
        step(store, &mut planner, name)?;
    }
    Ok(planner.into_plan())
}

fn layout_error(store: &Store, name: &[u8], source: LayoutError) -> ReadError {
    ReadError::Layout {
        path: store.host_path(name).display().to_string(),
        source,
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
