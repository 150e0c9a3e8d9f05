//! Decides when kept files are read, written and removed.

use std::collections::{HashMap, HashSet};
use std::io;
use std::ops::Range;
use std::sync::Arc;

use super::error::Unusable;
use super::format::{self, Checksum, FILE_MAX_BYTES, KeptKind, Label};
use super::{PlanDir, tree};
use crate::erofs::layout::plan::Plan;
use crate::image::Image;

/// Limit for all files. A NixOS system with 230,000 files takes 7 MB for plans and as much for small files.
const LIMIT_BYTES: u64 = 512 << 20;

/// After this many bytes have been written, the limit is checked.
const PRUNE_AFTER_BYTES: u64 = 16 << 20;

/// Number of paths looked up at once, so that a disk can read several files in parallel.
const PATHS_AT_ONCE: u32 = 32;

/// Reads and writes kept plans.
#[derive(Debug)]
pub(in crate::image) struct PlanKeeper {
    dir: Arc<PlanDir>,
    /// What has been loaded of each kind.
    progress: [LoadProgress; KeptKind::ALL.len()],
    /// Bytes written since the limit was last checked.
    written_bytes: u64,
    /// Set until writing fails.
    is_writable: bool,
    /// Regions whose kept plan was wrong.
    wrong: HashSet<u32>,
    /// Checksums of the files of plans that are in use.
    plans: HashMap<u32, Checksum>,
}

/// How far the files of a kind have been loaded.
#[derive(Debug, Default)]
struct LoadProgress {
    /// The next region to look up in advance.
    next: u32,
    /// Number of usable files, and whether it has been logged.
    found: u32,
    is_logged: bool,
}

/// A file to write.
#[derive(Debug)]
pub(in crate::image) struct KeptFile {
    name: String,
    bytes: Vec<u8>,
}

impl PlanKeeper {
    pub(in crate::image) fn new(dir: Arc<PlanDir>) -> Self {
        Self {
            dir,
            progress: Default::default(),
            written_bytes: 0,
            is_writable: true,
            wrong: HashSet::new(),
            plans: HashMap::new(),
        }
    }

    /// Returns the next of `count` regions whose files of this kind to load, and starts readahead of these files. Empty after the
    /// last one.
    pub(in crate::image) fn next_regions(
        &mut self,
        kind: KeptKind,
        image: &Image,
        count: u32,
    ) -> Range<u32> {
        let progress = &mut self.progress[kind as usize];
        let end = progress.next.saturating_add(PATHS_AT_ONCE).min(count);
        let regions = progress.next..end;
        progress.next = end;
        if regions.is_empty() && !progress.is_logged {
            progress.is_logged = true;
            let dir = self.dir.path().display();
            tracing::debug!(paths = progress.found, "read the {kind} kept in {dir}");
        }
        for label in regions.clone().filter_map(|region| image.label(region)) {
            self.dir.read_ahead(&label.file_name(kind));
        }
        regions
    }

    /// Returns the kept plan of a region, if it is usable.
    pub(in crate::image) fn load(&mut self, image: &Image, region: u32) -> Option<Plan> {
        let label = image.label(region)?;
        let name = label.file_name(KeptKind::Plan);
        let file = self.dir.read(&name).ok()?;
        let opened = image.kept_plan(region, &label, &file);
        let (plan, checksum) = self.loaded(KeptKind::Plan, &name, opened)?;
        self.plans.insert(region, checksum);
        Some(plan)
    }

    /// Returns the contents of a region's small files, if they were kept with its plan.
    pub(in crate::image) fn load_small_files(
        &mut self,
        image: &Image,
        region: u32,
    ) -> Option<Vec<u8>> {
        let (plan, label) = (self.plans.get(&region)?, image.label(region)?);
        let name = label.file_name(KeptKind::SmallFiles);
        let file = self.dir.read(&name).ok()?;
        let opened = format::open(KeptKind::SmallFiles, &label, &file);
        let opened = opened.and_then(|(payload, _)| format::unpack_small_files(plan, payload));
        let contents = self.loaded(KeptKind::SmallFiles, &name, opened)?;
        Some(contents.to_vec())
    }

    /// Counts a usable file, or logs why the file `name` is not used.
    fn loaded<T>(&mut self, kind: KeptKind, name: &str, opened: Result<T, Unusable>) -> Option<T> {
        let instead = match kind {
            KeptKind::Plan => "path walked",
            KeptKind::SmallFiles => "small files read",
        };
        match opened {
            Ok(found) => {
                self.progress[kind as usize].found += 1;
                Some(found)
            }
            Err(why) => {
                let dir = self.dir.path().display();
                tracing::debug!("{dir}/{name} is ignored, and its {instead} again: {why}");
                None
            }
        }
    }

    /// Returns the file for a complete plan, or `None` if the plan is not kept.
    pub(in crate::image) fn file(
        &self,
        image: &Image,
        region: u32,
        plan: &Plan,
    ) -> Option<KeptFile> {
        let label = image.label(region).filter(|_| self.is_writable)?;
        kept_file(KeptKind::Plan, &label, &tree::pack(plan)?)
    }

    /// Writes the file of a plan.
    pub(in crate::image) fn save_plan(&mut self, region: u32, file: &KeptFile) {
        if let Some(checksum) = file.bytes.last_chunk() {
            self.plans.insert(region, *checksum);
        }
        self.save(file);
    }

    /// Writes the contents of a region's small files, if its plan is kept.
    pub(in crate::image) fn save_small_files(
        &mut self,
        image: &Image,
        region: u32,
        contents: &[u8],
    ) {
        let label = image.label(region).filter(|_| self.is_writable);
        let file = label
            .zip(self.plans.get(&region))
            .and_then(|(label, plan)| {
                let payload = format::pack_small_files(plan, contents);
                kept_file(KeptKind::SmallFiles, &label, &payload)
            });
        if let Some(file) = file {
            self.save(&file);
        }
    }

    /// Writes a file. Only the first failure is logged, because failures only cost time.
    fn save(&mut self, file: &KeptFile) {
        let written = self.dir.write(&file.name, &file.bytes);
        self.written_bytes += file.bytes.len() as u64;
        self.note_failure("write", written);
        if self.written_bytes >= PRUNE_AFTER_BYTES {
            self.prune();
        }
    }

    /// Removes files over the limit. Returns false if nothing was written since the last call.
    pub(in crate::image) fn prune(&mut self) -> bool {
        if self.written_bytes == 0 {
            return false;
        }
        self.written_bytes = 0;
        let pruned = self.dir.prune(LIMIT_BYTES);
        self.note_failure("remove", pruned);
        true
    }

    /// Removes the files of a path that a process has found to differ from its plan, so that the next server walks it.
    pub(in crate::image) fn forget(&mut self, image: &Image, region: u32) {
        if !self.wrong.insert(region) {
            return;
        }
        self.plans.remove(&region);
        let Some(label) = image.label(region) else {
            return;
        };
        for kind in KeptKind::ALL {
            let removed = self.dir.remove(label.file_name(kind).as_bytes());
            self.note_failure("remove", removed);
        }
    }

    fn note_failure(&mut self, action: &str, done: io::Result<()>) {
        let Err(error) = done else { return };
        let dir = self.dir.path().display();
        match error.kind() {
            // The user has configured it that way, so do not warn.
            io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => {
                tracing::debug!("cannot {action} plans in {dir}: {error}");
            }
            _ if self.is_writable => tracing::warn!(
                "no more plans are kept in {dir}, and later servers walk these paths again: cannot {action} them: {error}"
            ),
            _ => {}
        }
        self.is_writable = false;
    }
}

/// Returns a file with this payload, or `None` if it is too long.
fn kept_file(kind: KeptKind, label: &Label, payload: &[u8]) -> Option<KeptFile> {
    let bytes = format::seal(kind, label, payload);
    let fits = u64::try_from(bytes.len()).is_ok_and(|len| len <= FILE_MAX_BYTES);
    fits.then(|| KeptFile {
        name: label.file_name(kind),
        bytes,
    })
}
