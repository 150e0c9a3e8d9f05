use crate::cache::{DirError, LocationError, RemoteClosureError, StartError};
use crate::closure::narinfo::KeyFault;

/// Why binary caches cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// A URL is not that of a binary cache.
    #[error(transparent)]
    Location(#[from] LocationError),
    /// A key in nix.conf is malformed.
    #[error("trusted-public-keys of nix.conf: {0}")]
    Key(#[from] KeyFault),
    /// A cache in --trust-ranges is not in --from.
    #[error("--trust-ranges {url}: no such binary cache in --from")]
    NotInFrom {
        /// The URL as given.
        url: String,
    },
    /// No option or variable names a cache directory.
    #[error("cannot choose a cache directory: pass one with --cache-dir, or set HOME")]
    NoDirectory,
    /// The cache directory cannot be used.
    #[error("{0}: choose another one with --cache-dir")]
    Dir(#[from] DirError),
    /// The closure cannot be determined.
    #[error(transparent)]
    Closure(#[from] RemoteClosureError),
    /// The fetcher process cannot be started.
    #[error(transparent)]
    Start(#[from] StartError),
}
