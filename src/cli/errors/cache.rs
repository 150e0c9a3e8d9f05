use crate::cache::{DirError, LocationError, RemoteClosureError, StartError};
use crate::closure::narinfo::KeyFault;

/// Why binary caches are of no use.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// Not the URL of one.
    #[error(transparent)]
    Location(#[from] LocationError),
    /// Not a key.
    #[error("trusted-public-keys of nix.conf: {0}")]
    Key(#[from] KeyFault),
    /// There is nowhere to keep what is fetched.
    #[error("there is no place for the cache directory: name one with --cache-dir, or set HOME")]
    NoDirectory,
    /// It cannot be used.
    #[error("{0}: name another one with --cache-dir")]
    Dir(#[from] DirError),
    /// What is not on this host cannot be found out.
    #[error(transparent)]
    Closure(#[from] RemoteClosureError),
    /// There is no process that fetches.
    #[error(transparent)]
    Start(#[from] StartError),
}
