//! The process that plans for all others.

mod ahead;
mod small_files;

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use zerocopy::IntoBytes;

use super::kept::{KeptKind, PlanDir, PlanKeeper};
use super::plans::Need;
use super::published::{
    DirRecord, FileRecord, Parts, PathHeader, Requests, SUSPECT, TOP, Wish, entry_at, table_bytes,
};
use super::{Image, ReadError};
use crate::erofs::encode::{self, InlineFile};
use crate::erofs::format::BLOCK_LEN_USIZE;
use crate::erofs::layout::plan::{Dir, NodeIndex, Plan};
use crate::erofs::layout::space::{ROOT_NID, Region};
use crate::process::WriteMap;
use crate::source::IoMode;
use crate::tree::FileKind;

/// Pause between two checks of the requests, so that frequent requests do not keep this process busy.
const PAUSE: Duration = Duration::from_millis(1);

/// Delay before retrying a path that could not be published; doubles each time.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_LAST: Duration = Duration::from_secs(64);

/// Publishes plans.
#[derive(Debug)]
pub struct Publisher {
    map: WriteMap,
    requests: Arc<Requests>,
    /// Used bytes of the mapping.
    used: usize,
    states: Vec<PublishState>,
    /// The path that is being planned although nobody has requested it.
    ahead: Option<ahead::PlanPosition>,
    /// Keeps plans for later servers.
    keeper: Option<PlanKeeper>,
}

/// How far a path has been published.
#[derive(Debug)]
enum PublishState {
    Begun,
    Failed {
        due: Instant,
        pause: Duration,
    },
    Published(Box<SmallFileProgress>),
    /// Nothing is left to do.
    Done,
}

/// Where a plan comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PlanOrigin {
    Walked,
    Kept,
}

/// How far the small files of a path have been read.
#[derive(Debug)]
struct SmallFileProgress {
    parts: Parts,
    /// One bit for each finished metadata block.
    whole: Vec<u64>,
    next: u32,
}

impl PublishState {
    /// Returns whether to publish the path if it is requested.
    fn is_due(&self, now: Instant) -> bool {
        match self {
            Self::Begun => true,
            Self::Failed { due, .. } => *due <= now,
            Self::Published(_) | Self::Done => false,
        }
    }

    fn due(&self) -> Option<Instant> {
        match self {
            Self::Failed { due, .. } => Some(*due),
            Self::Begun | Self::Published(_) | Self::Done => None,
        }
    }

    fn failed_again(&self) -> Self {
        let pause = match self {
            Self::Failed { pause, .. } => (*pause * 2).min(RETRY_LAST),
            _ => RETRY_FIRST,
        };
        Self::Failed {
            due: Instant::now() + pause,
            pause,
        }
    }
}

impl Publisher {
    pub(super) fn new(map: WriteMap, requests: Arc<Requests>, paths: usize) -> Self {
        Self {
            map,
            requests,
            used: table_bytes(paths),
            states: std::iter::repeat_with(|| PublishState::Begun)
                .take(paths)
                .collect(),
            ahead: None,
            keeper: None,
        }
    }

    /// Loads plans from `dir` instead of walking paths, and keeps new ones there for later servers.
    pub fn keep_in(&mut self, dir: impl Into<Arc<PlanDir>>) {
        self.keeper = Some(PlanKeeper::new(dir.into()));
    }

    /// Makes all failed paths due again.
    #[cfg(test)]
    pub(super) fn forget_failures(&mut self) {
        let failed = self.states.iter_mut();
        let failed = failed.filter(|state| matches!(state, PublishState::Failed { .. }));
        failed.for_each(|state| *state = PublishState::Begun);
    }

    /// Overwrites the memory.
    #[cfg(test)]
    pub(super) fn scribble(&self, at: usize, bytes: &[u8]) {
        self.map.write(at, bytes);
    }

    /// Keeps `contents` as those of the first path's small files.
    #[cfg(test)]
    pub(super) fn keep_as_small_files(&mut self, image: &Image, contents: &[u8]) {
        let keeper = self.keeper.as_mut().unwrap();
        keeper.save_small_files(image, 0, contents);
    }

    /// Publishes requested plans until the process ends.
    pub fn run(mut self, image: &Image) -> ! {
        loop {
            let rung = self.requests.rung();
            if !self.turn(image) {
                let limit = self
                    .next_due()
                    .map(|due| due.saturating_duration_since(Instant::now()));
                self.requests.wait(rung, limit);
                std::thread::sleep(PAUSE);
            }
        }
    }

    /// Publishes some plans. Returns false if there is nothing to do. Requested plans come first, then what was kept, then plans
    /// that a scan will request.
    pub(super) fn turn(&mut self, image: &Image) -> bool {
        self.publish_due(image)
            || self.publish_some_kept(image)
            || self.insert_some_kept(image)
            || self.plan_ahead(image)
            || self.read_some_small_files(image)
            || self.forget_wrong(image)
            || self.keeper.as_mut().is_some_and(PlanKeeper::prune)
    }

    /// Returns when the next requested path is tried again.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let requested = self
            .regions()
            .filter(|(region, _)| self.requests.has(*region, Wish::Plan));
        requested.filter_map(|(_, state)| state.due()).min()
    }

    fn regions(&self) -> impl Iterator<Item = (u32, &PublishState)> + Clone {
        (0..).zip(&self.states)
    }

    fn publish_due(&mut self, image: &Image) -> bool {
        let now = Instant::now();
        let due = self
            .regions()
            .filter(|(region, state)| state.is_due(now) && self.requests.has(*region, Wish::Plan));
        let due: Vec<u32> = due.map(|(region, _)| region).collect();
        for region in &due {
            let state = self.publish(image, *region);
            self.states[*region as usize] = state;
        }
        !due.is_empty()
    }

    /// Returns whether plans may be published that nobody has requested: the other half is left for those.
    fn has_room_for_more(&self) -> bool {
        self.used <= self.map.len_bytes() / 2
    }

    /// Publishes kept plans before a VM requests them.
    fn publish_some_kept(&mut self, image: &Image) -> bool {
        if !self.has_room_for_more() {
            return false;
        }
        let regions = self.next_kept(KeptKind::Plan, image);
        for region in regions.clone() {
            let is_begun = matches!(self.states[region as usize], PublishState::Begun);
            let state = is_begun.then(|| self.publish_kept(image, region)).flatten();
            if let Some(state) = state {
                self.states[region as usize] = state;
            }
        }
        !regions.is_empty()
    }

    /// Returns the next regions whose kept files of this kind to load; empty if there are no more.
    fn next_kept(&mut self, kind: KeptKind, image: &Image) -> Range<u32> {
        let count = u32::try_from(self.states.len()).unwrap_or(u32::MAX);
        let keeper = self.keeper.as_mut();
        keeper.map_or(0..0, |keeper| keeper.next_regions(kind, image, count))
    }

    /// Removes the kept plans that were reported as wrong.
    fn forget_wrong(&mut self, image: &Image) -> bool {
        let Some(keeper) = &mut self.keeper else {
            return false;
        };
        for region in (0..).take(self.states.len()) {
            if self.requests.has(region, Wish::Removal) {
                keeper.forget(image, region);
            }
        }
        false
    }

    fn publish(&mut self, image: &Image, region: u32) -> PublishState {
        if !image.is_of_host(region) {
            return PublishState::Done;
        }
        let kept = self.publish_kept(image, region);
        kept.unwrap_or_else(|| self.publish_walked(image, region))
    }

    /// Returns `None` if there is no usable kept plan.
    fn publish_kept(&mut self, image: &Image, region: u32) -> Option<PublishState> {
        let plan = self.keeper.as_mut()?.load(image, region)?;
        let written = self.write(&plan, image, region, PlanOrigin::Kept);
        Some(Self::published(image, region, written))
    }

    fn publish_walked(&mut self, image: &Image, region: u32) -> PublishState {
        let written = image.with_plan(IoMode::Blocking, region, Need::All, |plan| {
            if is_modified(plan, self.requests.since()) {
                return None;
            }
            let keeper = self.keeper.as_ref();
            let file = keeper.and_then(|keeper| keeper.file(image, region, plan));
            Some((self.write(plan, image, region, PlanOrigin::Walked), file))
        });
        match written {
            Ok(None) => {
                tracing::debug!(region, "a path was modified while the disk is served");
                image.plans.drop_plan(region);
                self.states[region as usize].failed_again()
            }
            Ok(Some((written, file))) => {
                if let (Some(keeper), Some(file)) = (&mut self.keeper, file) {
                    keeper.save_plan(region, &file);
                }
                Self::published(image, region, written)
            }
            Err(error) => self.fail(region, &error),
        }
    }

    /// Returns the new state of a path, given the result of [`write`](Self::write).
    fn published(image: &Image, region: u32, written: Option<SmallFileProgress>) -> PublishState {
        let Some(progress) = written else {
            tracing::debug!(region, "no room to publish another plan");
            return PublishState::Done;
        };
        // From now on this process also uses the published plan.
        image.plans.take_over(&image.wanted(region));
        PublishState::Published(Box::new(progress))
    }

    fn fail(&mut self, region: u32, error: &ReadError) -> PublishState {
        tracing::debug!("cannot publish a plan: {error}");
        if error.lasts() {
            self.map.store(entry_at(region), SUSPECT);
        }
        self.states[region as usize].failed_again()
    }

    /// Returns `None` if there is not enough room.
    fn write(
        &mut self,
        plan: &Plan,
        image: &Image,
        region: u32,
        origin: PlanOrigin,
    ) -> Option<SmallFileProgress> {
        let start = self.used;
        let header = header(plan, origin)?;
        let parts = Parts::of(start, header, self.map.len_bytes())?;
        self.map.write(start, header.as_bytes())?;
        self.map.write(parts.digests, plan.digests().as_bytes())?;
        let with_data = plan.data_from(0).iter();
        let with_data: Vec<FileRecord> = with_data
            .map(|(block, index)| record(plan, *index, *block, 0))
            .collect();
        self.map.write(parts.with_data, with_data.as_bytes())?;
        self.map.write(parts.dirs, dirs(plan).as_bytes())?;
        self.map.write(parts.names, plan.names())?;
        let whole = self.write_blocks(plan, image.space().region(region), &parts)?;
        self.used = parts.end;
        self.map.store(entry_at(region), start as u64)?;
        Some(SmallFileProgress {
            parts,
            whole,
            next: 0,
        })
    }

    /// Writes the blocks and the list of small files. Returns which blocks have no small files.
    fn write_blocks(&self, plan: &Plan, here: &Region, parts: &Parts) -> Option<Vec<u64>> {
        let mut whole = vec![0_u64; plan.meta_blocks().div_ceil(u64::BITS) as usize];
        let mut at = parts.small_files;
        for block in 0..plan.meta_blocks() {
            let mut bytes = [0; BLOCK_LEN_USIZE];
            let files = encode::metadata_block(plan, here, ROOT_NID.into(), block, &mut bytes);
            let to_record = |file: &InlineFile| {
                let offset = u16::try_from(file.offset).ok()?;
                Some(record(plan, file.node, block, offset))
            };
            let files: Vec<FileRecord> = files.iter().map(to_record).collect::<Option<_>>()?;
            self.map.write(at, files.as_bytes())?;
            at += files.as_bytes().len();
            self.map.write(block_at(parts, block), &bytes)?;
            if files.is_empty() {
                set(&mut whole, block);
            }
        }
        self.map.write(parts.whole, whole.as_bytes())?;
        (at == parts.dirs).then_some(whole)
    }
}

fn block_at(parts: &Parts, block: u32) -> usize {
    parts.blocks + block as usize * BLOCK_LEN_USIZE
}

fn set(bits: &mut [u64], block: u32) {
    bits[(block / u64::BITS) as usize] |= 1 << (block % u64::BITS);
}

fn is_set(bits: &[u64], block: u32) -> bool {
    bits[(block / u64::BITS) as usize] >> (block % u64::BITS) & 1 == 1
}

/// Returns whether a file was modified later than `since`. A temporary state of a file must not be published.
fn is_modified(plan: &Plan, since: Duration) -> bool {
    let mut files = plan.nodes().iter();
    files.any(|node| {
        let stamp = node.stamp();
        let mtime = u64::try_from(stamp.mtime_sec).map(|sec| Duration::new(sec, stamp.mtime_nsec));
        node.kind() == FileKind::Regular && mtime.is_ok_and(|mtime| mtime > since)
    })
}

fn header(plan: &Plan, origin: PlanOrigin) -> Option<PathHeader> {
    let is_small = |index: &NodeIndex| {
        let node = plan.node(*index);
        node.kind() == FileKind::Regular && plan.form(node).inline_len > 0
    };
    let files = u32::try_from(plan.len()).ok()?;
    let small_files = (0..files).filter(is_small).count();
    Some(PathHeader {
        meta_blocks: plan.meta_blocks(),
        data_blocks: plan.data_blocks(),
        files,
        dirs: u32::try_from(plan.dirs().len()).ok()?,
        with_data: u32::try_from(plan.data_from(0).len()).ok()?,
        small_files: u32::try_from(small_files).ok()?,
        name_bytes: plan.names().len() as u64,
        is_kept: u64::from(origin == PlanOrigin::Kept),
    })
}

fn record(plan: &Plan, index: NodeIndex, block: u32, offset: u16) -> FileRecord {
    let node = plan.node(index);
    let stamp = node.stamp();
    FileRecord {
        size_bytes: stamp.size_bytes,
        mtime_sec: stamp.mtime_sec,
        mtime_nsec: stamp.mtime_nsec,
        node: index,
        dir: if index == 0 { TOP } else { node.parent() },
        name: node.name_start(),
        block,
        offset,
        name_len: node.name_len(),
        is_symlink: u8::from(node.kind() == FileKind::Symlink),
    }
}

fn dirs(plan: &Plan) -> Vec<DirRecord> {
    let to_record = |dir: &Dir| {
        let node = plan.node(dir.node());
        DirRecord {
            parent: node.parent(),
            name: node.name_start(),
            name_len: node.name_len().into(),
        }
    };
    plan.dirs().iter().map(to_record).collect()
}
