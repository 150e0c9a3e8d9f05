//! Files in memory.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::io::Errno;

use super::SourceError;
use crate::tree::{FileKind, Listing, Stat};

/// Regular files by path. Every prefix of a path is a directory.
#[derive(Debug, Default)]
pub struct MemoryTree {
    files: BTreeMap<Vec<u8>, Arc<[u8]>>,
}

impl MemoryTree {
    /// Creates a tree with one file.
    pub fn with_file(path: &[u8], bytes: Arc<[u8]>) -> Self {
        Self {
            files: BTreeMap::from([(path.to_vec(), bytes)]),
        }
    }

    /// Returns the attributes of `path`.
    ///
    /// # Errors
    /// It does not exist.
    pub(super) fn stat(&self, path: &[u8]) -> Result<Stat, SourceError> {
        if let Some(bytes) = self.files.get(path) {
            return Ok(file_stat(bytes));
        }
        let is_dir = self.beneath(path).next().is_some();
        is_dir
            .then_some(Stat::of_kind(FileKind::Directory))
            .ok_or_else(|| not_found(path))
    }

    /// Returns the entries of the directory at `path`, sorted by name.
    ///
    /// # Errors
    /// It is not a directory.
    pub(super) fn list(&self, path: &[u8]) -> Result<Listing, SourceError> {
        let mut entries = BTreeMap::new();
        for (rest, bytes) in self.beneath(path) {
            let (name, stat) = match rest.iter().position(|byte| *byte == b'/') {
                Some(end) => (&rest[..end], Stat::of_kind(FileKind::Directory)),
                None => (rest, file_stat(bytes)),
            };
            entries.insert(name, stat);
        }
        if entries.is_empty() {
            return Err(not_found(path));
        }
        let mut listing = Listing::default();
        for (name, stat) in entries {
            listing.push(name, stat, b"");
        }
        Ok(listing)
    }

    /// Returns the contents of the file at `path`.
    ///
    /// # Errors
    /// It is not a file.
    pub(super) fn open(&self, path: &[u8]) -> Result<Arc<[u8]>, SourceError> {
        self.files.get(path).cloned().ok_or_else(|| not_found(path))
    }

    /// Returns all files below the directory `dir`, with paths relative to it.
    fn beneath<'t>(&'t self, dir: &'t [u8]) -> impl Iterator<Item = (&'t [u8], &'t Arc<[u8]>)> {
        self.files.iter().filter_map(move |(path, bytes)| {
            let rest = path.strip_prefix(dir)?.strip_prefix(b"/")?;
            Some((rest, bytes))
        })
    }
}

fn file_stat(bytes: &[u8]) -> Stat {
    Stat {
        permissions: 0o444,
        size_bytes: bytes.len() as u64,
        ..Stat::of_kind(FileKind::Regular)
    }
}

fn not_found(path: &[u8]) -> SourceError {
    SourceError::Io {
        path: PathBuf::from(String::from_utf8_lossy(path).into_owned()),
        action: "find",
        errno: Errno::NOENT,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_directories() {
        let tree = MemoryTree::with_file(b"a/b/c", b"text"[..].into());
        assert_eq!(tree.stat(b"a").unwrap().kind, FileKind::Directory);
        assert_eq!(tree.stat(b"a/b/c").unwrap().size_bytes, 4);
        for absent in [&b"a/bb"[..], b"b", b"a/b/c/d", b""] {
            assert!(tree.stat(absent).unwrap_err().is_not_found());
            assert!(tree.list(absent).is_err());
        }
        for (dir, name) in [(&b"a"[..], &b"b"[..]), (b"a/b", b"c")] {
            let listing = tree.list(dir).unwrap();
            let names: Vec<&[u8]> = listing.entries().iter().map(|e| listing.name(e)).collect();
            assert_eq!(names, [name]);
        }
        assert_eq!(&*tree.open(b"a/b/c").unwrap(), b"text");
    }
}
