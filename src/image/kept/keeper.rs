//! Decides when kept plans are read, written and removed.

use std::collections::HashSet;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use super::format::{self, FILE_MAX_BYTES};
use super::{PlanDir, tree};
use crate::erofs::layout::plan::Plan;
use crate::image::Image;

/// Limit for all files. A NixOS system with 230,000 files takes 6 MB.
const LIMIT_BYTES: u64 = 256 << 20;

/// After this many bytes have been written, the limit is checked.
const PRUNE_AFTER_BYTES: u64 = 16 << 20;

/// Number of paths looked up at once, so that a disk can read several files in parallel.
const PATHS_AT_ONCE: u32 = 32;

/// Reads and writes kept plans.
#[derive(Debug)]
pub(in crate::image) struct Keeper {
    dir: Arc<PlanDir>,
    /// The next region to look up in advance.
    next: u32,
    /// Number of plans found, and whether it has been logged.
    found: u32,
    is_logged: bool,
    /// Bytes written since the limit was last checked.
    written_bytes: u64,
    /// Set until writing fails.
    is_writable: bool,
    /// Regions whose kept plan was wrong.
    wrong: HashSet<u32>,
}

/// A file to write.
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
            is_logged: false,
            written_bytes: 0,
            is_writable: true,
            wrong: HashSet::new(),
        }
    }

    /// Returns the next of `count` regions whose plans to load, and starts readahead of their files. Empty after the last one.
    pub(in crate::image) fn next_regions(&mut self, image: &Image, count: u32) -> Range<u32> {
        let end = self.next.saturating_add(PATHS_AT_ONCE).min(count);
        let regions = self.next..end;
        for label in regions.clone().filter_map(|region| image.label(region)) {
            self.dir.read_ahead(&label.file_name());
        }
        self.next = end;
        if regions.is_empty() && !self.is_logged {
            self.is_logged = true;
            let dir = self.dir.path().display();
            tracing::debug!(plans = self.found, "read the plans kept in {dir}");
        }
        regions
    }

    /// Returns the kept plan of a region, if it is usable.
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

    /// Returns the file for a complete plan, or `None` if the plan is not kept.
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

    /// Writes a file. Only the first failure is logged, because failures only cost time.
    pub(in crate::image) fn save(&mut self, file: &KeptFile) {
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

    /// Removes a plan that a process has found to differ from the path, so that the next server walks the path.
    pub(in crate::image) fn forget(&mut self, image: &Image, region: u32) {
        if !self.wrong.insert(region) {
            return;
        }
        if let Some(label) = image.label(region) {
            let removed = self.dir.remove(label.file_name().as_bytes());
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
