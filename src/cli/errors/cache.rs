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
    /// A trusted cache is not among those that are used.
    #[error("--trust-ranges {url}: that is none of the binary caches that --from names")]
    NotAsked {
        /// What was given.
        url: String,
    },
    /// No option or variable names a cache directory.
    #[error("there is no place for the cache directory: name one with --cache-dir, or set HOME")]
    NoDirectory,
    /// The cache directory cannot be used.
    #[error("{0}: name another one with --cache-dir")]
    Dir(#[from] DirError),
    /// The closure cannot be determined.
    #[error(transparent)]
    Closure(#[from] RemoteClosureError),
    /// The fetcher process cannot be started.
    #[error(transparent)]
    Start(#[from] StartError),
}
