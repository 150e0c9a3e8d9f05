//! What a VM read, from its first request to its leaving: the report of a boot.
//!
//! It is about the main disk and one VM, the first that reads more than the superblock, or about the readers of the mount. A worker that dies
//! and is replaced goes on with the same report.

mod html;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::error::ServeError;
use super::workers::{Outcome, Worker};
use super::written::replace;
use crate::device::meter::{Meter, merged, percentile};
use crate::image::{Footprint, Image, Touched};

/// First member of a report, by which it is known.
pub const FORMAT: &str = "lazystore report 1";

/// Where a report goes, and what it needs besides what is counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReportOptions {
    /// The file: a page if its name ends with `.html`, otherwise JSON.
    pub file: PathBuf,
    /// NAR sizes by the names of store paths, as far as they are known.
    pub nar_sizes: Arc<BTreeMap<Box<[u8]>, u64>>,
    /// When the program began.
    pub start: Instant,
}

/// A report.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BootReport {
    /// [`FORMAT`].
    pub format: String,
    /// Version of the program.
    pub version: String,
    /// What happened when, in this order.
    pub events: Vec<Event>,
    /// Sums.
    pub totals: Totals,
    /// All paths of the disk, in its order.
    pub paths: Vec<PathReport>,
}

/// Something that happened once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// What.
    pub name: String,
    /// When, in milliseconds since the program started.
    pub ms: f64,
}

/// Sums over all that was read.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Totals {
    /// Requests answered.
    pub requests: u64,
    /// Bytes delivered, those that were read twice included.
    pub bytes: u64,
    /// Requests answered with an error.
    pub errors: u64,
    /// Half of the answers took no longer, in microseconds.
    pub p50_us: Option<f64>,
    /// 99 of 100 answers took no longer.
    pub p99_us: Option<f64>,
    /// Paths on the disk.
    pub paths: u64,
    /// Paths that were read.
    pub touched_paths: u64,
    /// NAR sizes of all paths, as far as they are known.
    pub nar_bytes: u64,
    /// NAR sizes of the paths that were read.
    pub touched_nar_bytes: u64,
    /// Metadata that was read, each block once.
    pub meta_bytes: u64,
    /// Contents of files that were read, each block once.
    pub data_bytes: u64,
}

/// What was read of a path.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PathReport {
    /// Its name in the store; empty for a tree.
    pub name: String,
    /// Its NAR size, if that is known.
    pub nar_bytes: Option<u64>,
    /// When it was read first; none: never.
    pub first_ms: Option<f64>,
    /// When it was read last.
    pub last_ms: Option<f64>,
    /// Reads that had something of it.
    pub reads: u64,
    /// Reads that waited for the host's disk: the path was cold.
    pub waits: u64,
    /// Metadata that was read, each block once.
    pub meta_bytes: u64,
    /// Contents of files that were read, each block once.
    pub data_bytes: u64,
}

/// A report that is being made.
pub(super) struct ReportFile {
    image: Arc<Image>,
    options: ReportOptions,
    footprint: Arc<Footprint>,
    /// Of the VM's workers that have ended.
    meters: Vec<Meter>,
    /// Of the mount's workers.
    mounts: Vec<Meter>,
    events: Vec<Event>,
    is_written: bool,
}

/// Who a worker is to the footprint: VMs are counted from 1.
const MOUNT: u64 = u64::MAX;

impl ReportFile {
    pub(super) fn new(options: ReportOptions, image: Arc<Image>) -> Result<Self, ServeError> {
        let footprint = Footprint::new(image.space(), options.start)?;
        let mut report = Self {
            image,
            options,
            footprint: footprint.into(),
            meters: Vec::new(),
            mounts: Vec::new(),
            events: Vec::new(),
            is_written: false,
        };
        report.event("start", report.options.start);
        Ok(report)
    }

    /// In a worker that was just forked, for a VM or the mount: has what is read noted, if nobody else reads before.
    pub(super) fn note(self, vm: Option<u64>) {
        self.image.note_in(self.footprint, vm.unwrap_or(MOUNT));
    }

    /// A worker of the mount has been started.
    pub(super) fn mounted(&mut self, meter: Meter) {
        self.mounts.push(meter);
    }

    /// Something happened now, for the first time.
    pub(super) fn happened(&mut self, name: &str) {
        if self.events.iter().all(|event| event.name != name) {
            self.event(name, Instant::now());
        }
    }

    /// A VM's worker has ended. With the VM's leaving the report is complete.
    pub(super) fn ended(&mut self, worker: &Worker, outcome: &Outcome) {
        if self.is_written || self.footprint.reader() != Some(worker.vm) {
            return;
        }
        self.meters.push(worker.meter.clone());
        if self.events.iter().all(|event| event.name != "connected") {
            // Not when the worker told of a first message: it may have served reads before that was heard.
            self.event("connected", worker.started);
        }
        if *outcome == Outcome::Served {
            self.happened("left");
            self.write();
        } else {
            self.happened("worker replaced");
            self.footprint.give_to_next();
        }
    }

    /// Writes it, unless that was done.
    pub(super) fn write(&mut self) {
        if self.is_written {
            return;
        }
        self.is_written = true;
        let file = &self.options.file;
        let report = self.report();
        let text = match is_page(file) {
            true => html::page(&report),
            false => format!("{}\n", serde_json::json!(report)),
        };
        match replace(file, text.as_bytes()) {
            Ok(()) => tracing::info!("the report is in {}", file.display()),
            Err(error) => tracing::error!("cannot write the report {}: {error}", file.display()),
        }
    }

    fn event(&mut self, name: &str, at: Instant) {
        self.events.push(Event {
            name: name.to_owned(),
            ms: millis(at.saturating_duration_since(self.options.start)),
        });
    }

    fn report(&self) -> BootReport {
        let space = self.image.space();
        let regions = space.regions().iter();
        let touched = self.footprint.paths(space);
        let sizes = &self.options.nar_sizes;
        let size = |name: &[u8]| sizes.get(name).copied();
        let paths: Vec<PathReport> = regions
            .zip(touched)
            .map(|(region, touched)| PathReport::new(&region.name, size(&region.name), touched))
            .collect();
        let meters = match self.footprint.reader() {
            Some(MOUNT) => &self.mounts,
            _ => &self.meters,
        };
        BootReport {
            format: FORMAT.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            events: self.all_events(),
            totals: Totals::new(meters, &paths),
            paths,
        }
    }

    fn all_events(&self) -> Vec<Event> {
        let all = self.footprint.all();
        let found = [
            ("first read", all.map(|(first, _)| first)),
            ("superblock", self.footprint.superblock()),
            ("mounted", self.footprint.root()),
            ("last read", all.map(|(_, last)| last)),
        ];
        let found = found.into_iter().filter_map(|(name, at)| {
            Some(Event {
                name: name.to_owned(),
                ms: millis(at?),
            })
        });
        let mut events: Vec<Event> = self.events.iter().cloned().chain(found).collect();
        events.sort_by(|a, b| a.ms.total_cmp(&b.ms));
        events
    }
}

/// Whether a file is to be a page.
fn is_page(file: &Path) -> bool {
    file.extension()
        .is_some_and(|extension| extension == "html")
}

impl BootReport {
    /// The page of a report.
    pub fn page(&self) -> String {
        html::page(self)
    }

    /// When something happened, in milliseconds since the start.
    pub fn at(&self, name: &str) -> Option<f64> {
        let event = self.events.iter().find(|event| event.name == name);
        event.map(|event| event.ms)
    }
}

impl Totals {
    fn new(meters: &[Meter], paths: &[PathReport]) -> Self {
        let touched = || paths.iter().filter(|path| path.first_ms.is_some());
        let mut totals = Self {
            paths: paths.len() as u64,
            touched_paths: touched().count() as u64,
            nar_bytes: sum(paths.iter().filter_map(|path| path.nar_bytes)),
            touched_nar_bytes: sum(touched().filter_map(|path| path.nar_bytes)),
            meta_bytes: sum(paths.iter().map(|path| path.meta_bytes)),
            data_bytes: sum(paths.iter().map(|path| path.data_bytes)),
            ..Self::default()
        };
        let figures: Vec<_> = meters.iter().map(Meter::figures).collect();
        totals.requests = sum(figures.iter().map(|one| one.stats.requests));
        totals.bytes = sum(figures.iter().map(|one| one.stats.bytes));
        totals.errors = sum(figures.iter().map(|one| one.stats.errors));
        let times = merged(&figures);
        let micros = |per_mille| Some(percentile(&times, per_mille)?.as_secs_f64() * 1e6);
        (totals.p50_us, totals.p99_us) = (micros(500), micros(990));
        totals
    }
}

/// A worker may have written anything.
fn sum(numbers: impl Iterator<Item = u64>) -> u64 {
    numbers.fold(0, u64::saturating_add)
}

impl PathReport {
    fn new(name: &[u8], nar_bytes: Option<u64>, touched: Touched) -> Self {
        let Touched {
            when,
            reads,
            waits,
            meta_bytes,
            data_bytes,
        } = touched;
        Self {
            name: String::from_utf8_lossy(name).into_owned(),
            nar_bytes,
            first_ms: when.map(|(first, _)| millis(first)),
            last_ms: when.map(|(_, last)| millis(last)),
            reads,
            waits,
            meta_bytes,
            data_bytes,
        }
    }
}

fn millis(time: Duration) -> f64 {
    // Three digits after the point are microseconds.
    (time.as_secs_f64() * 1e6).round() / 1e3
}
