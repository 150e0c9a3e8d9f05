//! Where store paths that are not on this host come from.

use std::path::Path;
use std::sync::Arc;

use super::dir::CacheDir;
use super::keys::Keys;
use super::narinfos::Located;
use super::transport::{BinaryCache, HttpOptions};

/// Binary caches, and the directory that keeps what was fetched from them.
#[derive(Debug, Clone)]
pub struct Sources {
    /// The cache directory.
    pub dir: CacheDir,
    /// The caches, in the order in which they are asked.
    pub caches: Arc<[BinaryCache]>,
    /// Which narinfos are trusted.
    pub keys: Keys,
    /// Options of HTTP requests.
    pub http: HttpOptions,
    /// Whether to show the number of found narinfos on stderr, a terminal.
    pub shows_progress: bool,
}

impl Sources {
    /// Returns the lookup of narinfos for `store_dir`, the logical store directory.
    pub fn located<'s>(&'s self, store_dir: &'s Path) -> Located<'s> {
        Located {
            dir: &self.dir,
            keys: &self.keys,
            store_dir,
        }
    }
}
