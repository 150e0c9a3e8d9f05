//! Binary caches: store paths that are not on this host are fetched when they are needed.
//!
//! | module | what it does |
//! |---|---|
//! | `transport` | files of a cache: in a directory, over HTTP, in S3 |
//! | `keys` | which narinfos are believed |
//! | `dir` | the cache directory: what was fetched, for the next start and for other servers |
//! | `narinfos` | narinfos of single paths |
//! | `sources` | caches, keys and the directory together |
//! | `closure` | closures by narinfos |
//! | `fetch` | trees and NARs, verified |
//! | `meter` | how much was fetched, and a line on a terminal about it |
//! | `fetcher` | the process that fetches, and the one that keeps it alive |
//!
//! What is served is verified: a NAR against the hash of a narinfo that somebody vouches for. Only names, sizes and targets of
//! symlinks may come from a listing, for which nobody vouches; a path whose NAR shows another tree is an I/O error for good.

mod closure;
mod dir;
mod fetch;
mod fetcher;
mod keys;
mod meter;
mod narinfos;
mod sources;
mod transport;

pub use closure::{PartlyRemote, RemoteClosureError, WalkError};
pub use dir::{CacheDir, DirError, KeptNar, NarHash, Removed, Usage, User};
pub use fetch::{CannotFetch, Fetchable, Fetcher, Plan};
pub use fetcher::{FetcherProcess, StartError};
pub use keys::{BadNarinfo, Keys};
pub use meter::{FetchFigures, FetchMeter};
pub use sources::Sources;
pub use transport::{
    BinaryCache, FetchError, Http, HttpOptions, LocationError, Login, Retries, netrc,
    s3_credentials,
};
