//! How much there is, and what goes first.

use std::collections::HashSet;
use std::fs::{self, DirEntry, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use super::{CacheDir, DirError, LOCKS, NARINFOS, NARS, TREES};

/// Narinfos and trees that nobody needs are kept so long after they were last read or made.
const METADATA_KEPT: Duration = Duration::from_secs(90 * 24 * 3600);

/// What a part of the directory takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Files.
    pub files: u64,
    /// Bytes on the disk.
    pub bytes: u64,
}

/// What was removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Removed {
    /// What went.
    pub gone: Usage,
    /// What is left of NARs.
    pub left: Usage,
    /// What of that is in use.
    pub in_use: Usage,
}

/// A file that may go.
struct Candidate {
    path: PathBuf,
    name: String,
    bytes: u64,
    used: SystemTime,
}

impl CacheDir {
    /// What NARs take.
    pub fn usage(&self) -> Usage {
        let mut usage = Usage::default();
        self.files(NARS).iter().for_each(|file| usage.add(file));
        usage
    }

    /// Removes NARs, those that were used longest ago first, until no more than `limit_bytes` are left or all that is left is
    /// in use.
    ///
    /// # Errors
    /// The directory cannot be written to.
    pub fn make_room(&self, limit_bytes: u64) -> Result<Removed, DirError> {
        let _lock = self.lock_file(&self.path.join("lock"))?;
        let mut files = self.files(NARS);
        files.sort_by_key(|file| file.used);
        let mut removed = Removed::default();
        files.iter().for_each(|file| removed.left.add(file));
        if removed.left.bytes <= limit_bytes {
            return Ok(removed);
        }
        let in_use = self.in_use();
        for file in &files {
            if in_use.contains(&file.name) {
                removed.in_use.add(file);
            } else if removed.left.bytes > limit_bytes {
                fs::remove_file(&file.path).map_err(DirError::host("remove", &file.path))?;
                removed.gone.add(file);
                removed.left.files -= 1;
                removed.left.bytes -= file.bytes;
            }
        }
        Ok(removed)
    }

    /// [`make_room`](Self::make_room), and removes narinfos, trees and locks that nobody has needed for long, and all trees
    /// that their NARs contradict, unless they are in use.
    ///
    /// # Errors
    /// The directory cannot be written to.
    pub fn prune(&self, limit_bytes: u64) -> Result<Removed, DirError> {
        self.remove_left_over();
        let mut removed = self.make_room(limit_bytes)?;
        let in_use = self.in_use();
        let contradicted: HashSet<String> = self
            .files(TREES)
            .iter()
            .filter_map(|file| Some(file.name.strip_suffix(".contradicted")?.to_owned()))
            .collect();
        for part in [NARINFOS, TREES, LOCKS] {
            for file in self.files(part) {
                let stem = file.name.split('.').next().unwrap_or_default();
                let is_old = file.used.elapsed().is_ok_and(|age| age > METADATA_KEPT);
                if (is_old || contradicted.contains(stem)) && !in_use.contains(stem) {
                    fs::remove_file(&file.path).map_err(DirError::host("remove", &file.path))?;
                    removed.gone.add(&file);
                }
            }
        }
        Ok(removed)
    }

    /// Base names of all NARs.
    pub fn nar_names(&self) -> Vec<String> {
        let files = self.files(NARS).into_iter();
        files.map(|file| file.name).collect()
    }

    fn files(&self, part: &str) -> Vec<Candidate> {
        let entries = fs::read_dir(self.path.join(part)).into_iter().flatten();
        entries
            .filter_map(|entry| Candidate::new(&entry.ok()?))
            .collect()
    }
}

impl Candidate {
    fn new(entry: &DirEntry) -> Option<Self> {
        let metadata: Metadata = entry.metadata().ok()?;
        Some(Self {
            path: entry.path(),
            name: entry.file_name().into_string().ok()?,
            bytes: metadata.blocks() * 512,
            used: metadata.accessed().ok()?,
        })
    }
}

impl Usage {
    fn add(&mut self, file: &Candidate) {
        self.files += 1;
        self.bytes += file.bytes;
    }
}
