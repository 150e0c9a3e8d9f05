//! The report on what a VM read, from its first request until it disconnected.
//!
//! It covers the main disk and one VM, the first that reads more than the superblock, or the readers of the mount. If
//! the VM's worker dies, its successor continues the report.

mod html;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::error::ServeError;
use super::workers::{Worker, WorkerEnd};
use super::written::replace;
use crate::device::meter::{Meter, merged, percentile};
use crate::image::{Footprint, Image, Touched};

/// Value of the first member, which identifies a report.
pub const FORMAT: &str = "lazystore report 1";

/// The file of a report, and data for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReportOptions {
    /// The file: HTML if its name ends with `.html`, otherwise JSON.
    pub file: PathBuf,
    /// The known NAR sizes, by the names of store paths.
    pub nar_sizes: Arc<BTreeMap<Box<[u8]>, u64>>,
    /// When the program started.
    pub start: Instant,
}

/// A report.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BootReport {
    /// [`FORMAT`].
    pub format: String,
    /// Version of the program.
    pub version: String,
    /// Events, in order of time.
    pub events: Vec<Event>,
    /// Totals.
    pub totals: Totals,
    /// All paths, in their order on the disk.
    pub paths: Vec<PathReads>,
}

/// An event, which happens once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Its name.
    pub name: String,
    /// Its time, in milliseconds since the program started.
    pub ms: f64,
}

/// Totals of what was read.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Totals {
    /// Requests answered.
    pub requests: u64,
    /// Bytes delivered, including those that were read repeatedly.
    pub bytes: u64,
    /// Requests answered with an error.
    pub errors: u64,
    /// Median latency, in microseconds.
    pub p50_us: Option<f64>,
    /// 99th percentile of the latency, in microseconds.
    pub p99_us: Option<f64>,
    /// Paths on the disk.
    pub paths: u64,
    /// Paths that were read.
    pub touched_paths: u64,
    /// Sum of the known NAR sizes.
    pub nar_bytes: u64,
    /// Sum of the known NAR sizes of paths that were read.
    pub touched_nar_bytes: u64,
    /// Metadata that was read. Each block counts once.
    pub meta_bytes: u64,
    /// File data that was read. Each block counts once.
    pub data_bytes: u64,
}

/// What was read of one path.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PathReads {
    /// Its name in the store. Empty for a tree.
    pub name: String,
    /// Its NAR size, if known.
    pub nar_bytes: Option<u64>,
    /// Time of the first read. `None` if it was not read.
    pub first_ms: Option<f64>,
    /// Time of the last read.
    pub last_ms: Option<f64>,
    /// Number of reads that included part of it.
    pub reads: u64,
    /// Number of reads that had to wait for the host's disk, because the path was not cached.
    pub waits: u64,
    /// Metadata that was read. Each block counts once.
    pub meta_bytes: u64,
    /// File data that was read. Each block counts once.
    pub data_bytes: u64,
}

/// A report in progress.
pub(super) struct ReportFile {
    image: Arc<Image>,
    options: ReportOptions,
    footprint: Arc<Footprint>,
    /// Counters of the VM's workers that have ended.
    meters: Vec<Meter>,
    /// Counters of the mount's workers.
    mounts: Vec<Meter>,
    events: Vec<Event>,
    is_written: bool,
}

/// Reader number of the mount in the footprint. VMs have numbers from 1.
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

    /// In a new worker, for a VM or the mount: counts what is read, unless another worker has read before.
    pub(super) fn attach(self, vm: Option<u64>) {
        self.image.note_in(self.footprint, vm.unwrap_or(MOUNT));
    }

    /// Adds the counters of a worker of the mount.
    pub(super) fn add_mount(&mut self, meter: Meter) {
        self.mounts.push(meter);
    }

    /// Records an event with the current time, if it has not happened before.
    pub(super) fn record_event(&mut self, name: &str) {
        if self.events.iter().all(|event| event.name != name) {
            self.event(name, Instant::now());
        }
    }

    /// Handles the end of a VM's worker. If the VM has disconnected, the report is complete.
    pub(super) fn ended(&mut self, worker: &Worker, outcome: &WorkerEnd) {
        if self.is_written || self.footprint.reader() != Some(worker.vm) {
            return;
        }
        self.meters.push(worker.meter.clone());
        if self.events.iter().all(|event| event.name != "connected") {
            // Not the time of its message: it may have served reads before the parent received that.
            self.event("connected", worker.started);
        }
        if *outcome == WorkerEnd::Served {
            self.record_event("left");
            self.write();
        } else {
            self.record_event("worker replaced");
            self.footprint.give_to_next();
        }
    }

    /// Writes the report, once.
    pub(super) fn write(&mut self) {
        if self.is_written {
            return;
        }
        self.is_written = true;
        let file = &self.options.file;
        let report = self.report();
        let text = match is_html(file) {
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
        let paths: Vec<PathReads> = regions
            .zip(touched)
            .map(|(region, touched)| PathReads::new(&region.name, size(&region.name), touched))
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

/// Whether a report in this file is HTML.
fn is_html(file: &Path) -> bool {
    file.extension()
        .is_some_and(|extension| extension == "html")
}

impl BootReport {
    /// The report as HTML.
    pub fn page(&self) -> String {
        html::page(self)
    }

    /// The time of an event, in milliseconds since the start.
    pub fn at(&self, name: &str) -> Option<f64> {
        let event = self.events.iter().find(|event| event.name == name);
        event.map(|event| event.ms)
    }
}

impl Totals {
    fn new(meters: &[Meter], paths: &[PathReads]) -> Self {
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

/// Adds without overflow: a compromised worker may have written any numbers.
fn sum(numbers: impl Iterator<Item = u64>) -> u64 {
    numbers.fold(0, u64::saturating_add)
}

impl PathReads {
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
    // Rounded to microseconds.
    (time.as_secs_f64() * 1e6).round() / 1e3
}
