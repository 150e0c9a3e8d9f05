//! When kept plans are read, written and removed.

use std::collections::HashSet;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use super::format::{self, FILE_MAX_BYTES};
use super::{PlanDir, tree};
use crate::erofs::layout::plan::Plan;
use crate::image::Image;

/// What all files may take. A NixOS system of 230,000 files takes 6 MB.
const LIMIT_BYTES: u64 = 256 << 20;

/// When so much was written, files are removed if they are too many.
const PRUNE_AFTER_BYTES: u64 = 16 << 20;

/// Paths that are looked for at once, so that a disk can read several files at a time.
const PATHS_AT_ONCE: u32 = 32;

/// Reads and writes kept plans.
#[derive(Debug)]
pub(in crate::image) struct Keeper {
    dir: Arc<PlanDir>,
    /// The region that is looked for next, without anybody having asked.
    next: u32,
    /// How many plans were found, and whether that was told.
    found: u32,
    is_told: bool,
    /// Since files were removed last.
    written_bytes: u64,
    /// Nothing has gone wrong with writing.
    is_writable: bool,
    /// Regions whose kept plan was found to be wrong.
    wrong: HashSet<u32>,
}

/// A file to be written.
#[derive(Debug)]
pub(in crate::image) struct KeptFile {
    name: String,
    bytes: Vec<u8>,
}

impl Keeper {
    pub(in crate::image) fn new(dir: Arc<PlanDir>) -> Self {
        Self {
            dir,
            next: 0,
            found: 0,
            is_told: false,
            written_bytes: 0,
            is_writable: true,
            wrong: HashSet::new(),
        }
    }

    /// The regions whose plans are to be loaded next, of so many; the kernel begins to read them. Empty when it was all.
    pub(in crate::image) fn next_regions(&mut self, image: &Image, count: u32) -> Range<u32> {
        let end = self.next.saturating_add(PATHS_AT_ONCE).min(count);
        let regions = self.next..end;
        for label in regions.clone().filter_map(|region| image.label(region)) {
            self.dir.read_ahead(&label.file_name());
        }
        self.next = end;
        if regions.is_empty() && !self.is_told {
            self.is_told = true;
            let dir = self.dir.path().display();
            tracing::debug!(plans = self.found, "the plans kept in {dir} were read");
        }
        regions
    }

    /// The plan that was kept of a region, if there is one that can be used.
    pub(in crate::image) fn load(&mut self, image: &Image, region: u32) -> Option<Plan> {
        let label = image.label(region)?;
        let file = self.dir.read(&label.file_name()).ok()?;
        match image.kept_plan(region, &label, &file) {
            Ok(plan) => {
                self.found += 1;
                Some(plan)
            }
            Err(why) => {
                let (dir, name) = (self.dir.path().display(), label.file_name());
                tracing::debug!("{dir}/{name} is ignored, and its path walked again: {why}");
                None
            }
        }
    }

    /// What is to be kept of a complete plan; none if nothing is.
    pub(in crate::image) fn file(
        &self,
        image: &Image,
        region: u32,
        plan: &Plan,
    ) -> Option<KeptFile> {
        let label = image.label(region).filter(|_| self.is_writable)?;
        let bytes = format::seal(&label, &tree::pack(plan)?);
        let fits = u64::try_from(bytes.len()).is_ok_and(|len| len <= FILE_MAX_BYTES);
        fits.then(|| KeptFile {
            name: label.file_name(),
            bytes,
        })
    }

    /// Writes it. What fails is told once: nothing but time is lost.
    pub(in crate::image) fn save(&mut self, file: &KeptFile) {
        let written = self.dir.write(&file.name, &file.bytes);
        self.written_bytes += file.bytes.len() as u64;
        self.judge("write", written);
        if self.written_bytes >= PRUNE_AFTER_BYTES {
            self.prune();
        }
    }

    /// Removes files if they are too many; false if none was written since that was done last.
    pub(in crate::image) fn prune(&mut self) -> bool {
        if self.written_bytes == 0 {
            return false;
        }
        self.written_bytes = 0;
        let pruned = self.dir.prune(LIMIT_BYTES);
        self.judge("remove", pruned);
        true
    }

    /// A process has found that a path's plan does not say what is there. If it was kept, the next server walks the path.
    pub(in crate::image) fn forget(&mut self, image: &Image, region: u32) {
        if !self.wrong.insert(region) {
            return;
        }
        if let Some(label) = image.label(region) {
            let removed = self.dir.remove(label.file_name().as_bytes());
            self.judge("remove", removed);
        }
    }

    fn judge(&mut self, action: &str, done: io::Result<()>) {
        let Err(error) = done else { return };
        let dir = self.dir.path().display();
        match error.kind() {
            // Whoever set it up that way knows.
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
