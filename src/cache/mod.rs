//! Binary caches. Store paths that are not on this host are fetched when they are needed.
//!
//! | module | what it does |
//! |---|---|
//! | `transport` | files of a cache: in a directory, over HTTP, in S3 |
//! | `keys` | which narinfos are trusted |
//! | `dir` | the cache directory: fetched files, for later starts and other servers |
//! | `narinfos` | narinfos of single paths |
//! | `sources` | the caches, keys and cache directory together |
//! | `closure` | closures by narinfos |
//! | `fetch` | fetches and verifies trees and NARs |
//! | `meter` | counters, and a progress line on a terminal |
//! | `fetcher` | the fetcher process, and the keeper that restarts it |
//!
//! Only verified data is served: the hash of a NAR must match a narinfo that a trusted key vouches for. Names, sizes and
//! symlink targets may come from a listing, which nothing vouches for; if the NAR then has another tree, the path fails with
//! I/O errors for good.

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
pub use dir::{CacheDir, DirError, DiskUsage, KeptNar, NarHash, Removed, User};
pub use fetch::{CannotFetch, FetchPlan, Fetchable, Fetcher};
pub use fetcher::{FetcherProcess, StartError};
pub use keys::{BadNarinfo, Keys};
pub use meter::{FetchFigures, FetchMeter};
pub use sources::Sources;
pub use transport::{
    BinaryCache, FetchError, Http, HttpOptions, LocationError, Login, Retries, netrc,
    s3_credentials,
};
