//! Disk usage, and the order of removal.

use std::collections::{HashMap, HashSet};
use std::fs::{self, DirEntry, Metadata};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};

use super::{CacheDir, DirError, LOCKS, NARINFOS, NARS, PARTIAL, TREES};
use crate::closure::{decode_hash, nix32};

/// How long unused narinfos and trees are kept after they were last read or written.
const METADATA_KEPT: Duration = Duration::from_secs(90 * 24 * 3600);

/// The disk usage of a part of the directory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskUsage {
    /// Number of files.
    pub files: u64,
    /// Bytes on the disk.
    pub bytes: u64,
}

/// What was removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Removed {
    /// The removed NARs.
    pub gone: DiskUsage,
    /// The NARs that are left.
    pub left: DiskUsage,
    /// The NARs among them that are in use.
    pub in_use: DiskUsage,
}

/// A NAR in the directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptNar {
    /// Its hash, in nix32.
    pub hash: String,
    /// Bytes on the disk.
    pub bytes: u64,
    /// When it was last used.
    pub used: SystemTime,
    /// Whether a live server may need it.
    pub is_in_use: bool,
}

/// A file that may be removed.
struct Candidate {
    path: PathBuf,
    name: String,
    bytes: u64,
    used: SystemTime,
}

impl CacheDir {
    /// Removes the least recently used NARs until at most `limit_bytes` are left or all remaining NARs are in use.
    ///
    /// # Errors
    /// The directory cannot be written to.
    pub fn make_room(&self, limit_bytes: u64) -> Result<Removed, DirError> {
        let _lock = self.lock_file(&self.path.join("lock"))?;
        let mut files = self.files(NARS);
        files.extend(self.files(PARTIAL));
        files.sort_by_key(|file| file.used);
        let mut removed = Removed::default();
        files.iter().for_each(|file| removed.left.add(file));
        if removed.left.bytes <= limit_bytes {
            return Ok(removed);
        }
        let in_use = self.in_use();
        for file in &files {
            if in_use.contains(file.stem()) {
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

    /// Like [`make_room`](Self::make_room); also removes narinfos, trees and locks that were unused for long, and all trees
    /// that their NARs contradict. Never removes what is in use.
    ///
    /// # Errors
    /// The directory cannot be written to.
    pub fn prune(&self, limit_bytes: u64) -> Result<Removed, DirError> {
        let mut removed = self.make_room(limit_bytes)?;
        let in_use = self.in_use();
        let contradicted: HashSet<String> = self
            .files(TREES)
            .iter()
            .filter_map(|file| Some(file.name.strip_suffix(".contradicted")?.to_owned()))
            .collect();
        for part in [NARINFOS, TREES, LOCKS] {
            for file in self.files(part) {
                let stem = file.stem();
                let is_old = file.used.elapsed().is_ok_and(|age| age > METADATA_KEPT);
                if (is_old || contradicted.contains(stem)) && !in_use.contains(stem) {
                    fs::remove_file(&file.path).map_err(DirError::host("remove", &file.path))?;
                    removed.gone.add(&file);
                }
            }
        }
        Ok(removed)
    }

    /// Returns all NARs, most recently used first.
    pub fn nars(&self) -> Vec<KeptNar> {
        let in_use = self.in_use();
        let mut files = self.files(NARS);
        files.sort_by_key(|file| std::cmp::Reverse(file.used));
        let nar = |file: Candidate| KeptNar {
            is_in_use: in_use.contains(&file.name),
            hash: file.name,
            bytes: file.bytes,
            used: file.used,
        };
        files.into_iter().map(nar).collect()
    }

    /// Reads a NAR and returns whether it still has its hash.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn is_intact(&self, nar: &KeptNar) -> Result<bool, DirError> {
        let path = self.path.join(NARS).join(&nar.hash);
        let fault = DirError::host("read", &path);
        let mut file = fs::File::open(&path).map_err(&fault)?;
        let mut hash = Sha256::new();
        let mut buf = vec![0; 1 << 20];
        loop {
            match file.read(&mut buf).map_err(&fault)? {
                0 => break,
                len => hash.update(&buf[..len]),
            }
        }
        Ok(nix32(&hash.finalize()) == nar.hash)
    }

    /// Removes a NAR. It is fetched again when it is needed.
    ///
    /// # Errors
    /// The directory cannot be written to.
    pub fn remove_nar(&self, nar: &KeptNar) -> Result<(), DirError> {
        let path = self.path.join(NARS).join(&nar.hash);
        fs::remove_file(&path).map_err(DirError::host("remove", &path))
    }

    /// Returns the names of the store paths with a kept narinfo, by NAR hash.
    pub fn store_paths(&self) -> HashMap<String, String> {
        let field = |text: &str, key: &str| {
            let value = text.lines().find_map(|line| line.strip_prefix(key));
            value.map(|value| value.trim().to_owned())
        };
        let named = |file: &Candidate| {
            let text = fs::read_to_string(&file.path).ok()?;
            let hash = decode_hash(field(&text, "NarHash:")?.as_bytes())?;
            Some((nix32(&hash), field(&text, "StorePath:")?))
        };
        self.files(NARINFOS).iter().filter_map(named).collect()
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

    /// Returns the NAR hash or the store path digits in the file name.
    fn stem(&self) -> &str {
        self.name.split(['.', '-']).next().unwrap_or_default()
    }
}

impl DiskUsage {
    fn add(&mut self, file: &Candidate) {
        self.files += 1;
        self.bytes += file.bytes;
    }
}
