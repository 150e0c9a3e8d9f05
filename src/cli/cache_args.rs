//! Arguments for fetching paths that are not on this host.

use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;

use super::errors::{CacheError, CliError};
use super::log;
use super::nix_conf::NixConf;
use super::numbers::{size, whole};
use crate::cache::{
    BinaryCache, CacheDir, FetchMeter, FetchPlan, FetcherProcess, HttpOptions, Keys, PartlyRemote,
    Sources, s3_credentials,
};
use crate::closure::narinfo::{CACHE_NIXOS_ORG, PublicKey};
use crate::closure::{Graph, Source, StoreLocation, root_names};
use crate::image::ImageOptions;
use crate::source::{RemotePath, RemoteTree};

/// The value of `--from` that means the substituters of nix.conf.
const SUBSTITUTERS: &str = "substituters";

/// Where to fetch paths that are not on this host.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Binary caches")]
pub struct CacheArgs {
    /// Fetch paths that are not on this host from the binary cache URL (https://, http://, file://, or
    /// s3://BUCKET?endpoint=HOST&region=NAME) when the guest reads them; may be given several times. `substituters`
    /// means the substituters of nix.conf
    #[arg(long, value_name = "URL", conflicts_with_all = ["tree", "all"])]
    from: Vec<String>,
    /// Trust signatures by this key, NAME:BASE64; may be given several times [default: the keys of nix.conf]
    #[arg(long, value_name = "KEY", requires = "from", value_parser = parse_key)]
    trusted_public_key: Vec<PublicKey>,
    /// Trust binary caches without signatures
    #[arg(long, requires = "from", conflicts_with = "trusted_public_key")]
    no_check_signatures: bool,
    /// Serve files of uncompressed NARs of the binary cache URL, one of --from, as soon as the parts that are read have been
    /// fetched, before the whole NAR can be verified; may be given several times
    #[arg(long, value_name = "URL", requires = "from")]
    trust_ranges: Vec<String>,
    #[command(flatten)]
    dir: CacheDirArgs,
    /// Limit for NARs in the cache directory, such as 20GB; NARs in use are never removed
    #[arg(long, value_name = "SIZE", default_value = "20GB", value_parser = size, requires = "from")]
    cache_size: u64,
    /// Let a read fail with an I/O error if fetching its data takes longer than this; the next read tries again
    #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = whole::<u64>(1..=86_400), requires = "from")]
    fetch_timeout: u64,
}

/// The cache directory.
#[derive(Debug, Clone, Args)]
pub struct CacheDirArgs {
    /// Keep fetched NARs in DIR [default: $CACHE_DIRECTORY, $XDG_CACHE_HOME/lazystore or ~/.cache/lazystore]
    #[arg(long, value_name = "DIR", help_heading = "Binary caches")]
    cache_dir: Option<PathBuf>,
}

/// A closure with paths that are not on this host.
pub struct RemoteClosure {
    /// The whole closure.
    pub graph: Graph,
    /// The source of the paths that are not on this host.
    pub tree: Arc<RemoteTree>,
    /// Replaces the host's store directory if that does not exist.
    pub empty_dir: PathBuf,
    /// The fetcher process.
    pub fetcher: FetcherProcess,
}

impl RemoteClosure {
    /// Moves the remote tree into `options`, and returns the graph and the fetcher process.
    pub fn attach_to(mut self, options: &mut ImageOptions) -> (Graph, Option<FetcherProcess>) {
        options.remote = Some(self.tree);
        let dir = &mut self.graph.closure.dir;
        if !dir.is_dir() {
            *dir = self.empty_dir;
        }
        (self.graph, Some(self.fetcher))
    }
}

impl CacheArgs {
    /// Determines which paths of `source` are remote and starts the fetcher process. `None` without `--from`.
    pub fn load(
        &self,
        source: &Source,
        location: &StoreLocation,
        max_open_files: usize,
        shows_progress: bool,
    ) -> Result<Option<RemoteClosure>, CliError> {
        if self.from.is_empty() {
            return Ok(None);
        }
        let sources = self.sources()?;
        let found = match source {
            Source::Roots(roots) => {
                PartlyRemote::of_roots(&root_names(roots, location)?, location, &sources)
            }
            source => PartlyRemote::of_list(Graph::load(source, location)?, location, &sources),
        };
        let PartlyRemote { graph, remote } = found.map_err(CacheError::from)?;
        let paths = remote.iter().map(|path| RemotePath {
            name: path.name.clone(),
            nar_size: path.nar_size,
        });
        let paths = paths.collect();
        let empty_dir = sources.dir.empty_dir();
        let plan = FetchPlan {
            sources,
            store_dir: location.store_dir.clone(),
            paths: remote.into(),
            limit_bytes: self.cache_size,
            meter: FetchMeter::new().map_err(|error| CacheError::Start(error.into()))?,
            shows_progress,
        };
        let (fetcher, control) = FetcherProcess::start(plan).map_err(CacheError::from)?;
        let timeout = Duration::from_secs(self.fetch_timeout);
        let store_dir = location.store_dir.clone();
        let tree = RemoteTree::new(paths, store_dir, max_open_files, control, timeout);
        Ok(Some(RemoteClosure {
            graph,
            tree: Arc::new(tree),
            empty_dir,
            fetcher,
        }))
    }

    fn sources(&self) -> Result<Sources, CliError> {
        let conf = NixConf::read();
        let mut caches = Vec::new();
        for url in &self.from {
            let urls = match url.as_str() {
                SUBSTITUTERS => conf.substituters(),
                url => vec![url.to_owned()],
            };
            for url in urls {
                let cache = BinaryCache::parse(&url, s3_credentials());
                caches.push(cache.map_err(CacheError::from)?);
            }
        }
        self.mark_trusted(&mut caches)?;
        Ok(Sources {
            dir: self.dir.open()?,
            caches: caches.into(),
            keys: self.keys(&conf)?,
            shows_progress: log::is_read_live(),
            http: HttpOptions {
                certificates: conf.certificates(),
                logins: conf.logins(),
            },
        })
    }

    fn mark_trusted(&self, caches: &mut [BinaryCache]) -> Result<(), CacheError> {
        for url in &self.trust_ranges {
            let cache = caches.iter_mut().find(|cache| cache.url() == url);
            let cache = cache.ok_or_else(|| CacheError::NotInFrom { url: url.clone() })?;
            cache.trust_parts();
        }
        Ok(())
    }

    fn keys(&self, conf: &NixConf) -> Result<Keys, CliError> {
        if self.no_check_signatures {
            return Ok(Keys::Unchecked);
        }
        let keys = match (&self.trusted_public_key, conf.trusted_public_keys()) {
            (given, _) if !given.is_empty() => given.clone(),
            (_, Some(text)) => PublicKey::parse_list(&text).map_err(CacheError::from)?,
            (_, None) => PublicKey::parse_list(CACHE_NIXOS_ORG).map_err(CacheError::from)?,
        };
        Ok(Keys::Trusted(keys.into()))
    }
}

impl CacheDirArgs {
    /// Opens the cache directory.
    pub fn open(&self) -> Result<CacheDir, CliError> {
        let path = self.path().ok_or(CacheError::NoDirectory)?;
        Ok(CacheDir::open(&path).map_err(CacheError::from)?)
    }

    /// Returns its path; `None` if neither an option nor the environment names one.
    fn path(&self) -> Option<PathBuf> {
        if let Some(dir) = &self.cache_dir {
            return Some(dir.clone());
        }
        let env = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        // A colon-separated list (systemd.exec(5)).
        if let Some(dirs) = env("CACHE_DIRECTORY") {
            let first = dirs.as_bytes().split(|byte| *byte == b':').next()?;
            return Some(PathBuf::from(std::ffi::OsStr::from_bytes(first)));
        }
        let base = env("XDG_CACHE_HOME")
            .map(PathBuf::from)
            .or_else(|| Some(PathBuf::from(env("HOME")?).join(".cache")))?;
        Some(base.join("lazystore"))
    }
}

fn parse_key(text: &str) -> Result<PublicKey, String> {
    PublicKey::parse(text).map_err(|fault| fault.to_string())
}
