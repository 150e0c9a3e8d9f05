//! Where store paths come from that are not on this host.

use std::path::Path;
use std::sync::Arc;

use super::dir::CacheDir;
use super::keys::Keys;
use super::narinfos::Located;
use super::transport::{BinaryCache, HttpOptions};

/// Binary caches, and where what they have is kept.
#[derive(Debug, Clone)]
pub struct Sources {
    /// Keeps what was fetched.
    pub dir: CacheDir,
    /// Asked in this order.
    pub caches: Arc<[BinaryCache]>,
    /// Which narinfos are believed.
    pub keys: Keys,
    /// How to ask.
    pub http: HttpOptions,
    /// Whether stderr is a terminal, on which a line says how many narinfos have been found.
    pub shows_progress: bool,
}

impl Sources {
    /// Finds narinfos of paths in `store_dir`, the logical store directory.
    pub fn located<'s>(&'s self, store_dir: &'s Path) -> Located<'s> {
        Located {
            dir: &self.dir,
            keys: &self.keys,
            store_dir,
        }
    }
}
