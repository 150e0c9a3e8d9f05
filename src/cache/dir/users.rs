//! NARs that servers need. They are not removed.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::Write;

use rustix::fs::{FlockOperation, flock};

use super::{CacheDir, DirError, NarHash, USERS};
use crate::closure::nix32;

/// The mark of a server. The NARs that it needs are kept while this, or a copy in another process, is open.
#[derive(Debug)]
pub struct User {
    _file: File,
}

impl CacheDir {
    /// Marks the NARs `hashes` as in use.
    ///
    /// # Errors
    /// The directory cannot be written to.
    pub fn register<'h>(
        &self,
        hashes: impl Iterator<Item = &'h NarHash>,
    ) -> Result<User, DirError> {
        let mut text = String::new();
        for hash in hashes {
            text.push_str(&nix32(hash));
            text.push('\n');
        }
        let staged = self.stage()?;
        let path = self.path.join(USERS).join(staged.name());
        let mut file = staged.file();
        file.write_all(text.as_bytes())
            .map_err(DirError::host("write", &path))?;
        // The lock follows the file to its new name.
        let file = staged.file().try_clone();
        let file = file.map_err(DirError::host("lock", &path))?;
        staged.keep(&path)?;
        Ok(User { _file: file })
    }

    /// Returns what live servers need, by file name.
    pub(super) fn in_use(&self) -> HashSet<String> {
        let entries = fs::read_dir(self.path.join(USERS)).into_iter().flatten();
        let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
        let is_locked = |path: &std::path::PathBuf| {
            let file = File::open(path);
            file.is_ok_and(|file| flock(&file, FlockOperation::NonBlockingLockShared).is_err())
        };
        let texts = paths.filter(is_locked).map(fs::read_to_string);
        let lines = texts.filter_map(Result::ok);
        lines
            .flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>())
            .collect()
    }
}
