//! Fetches trees and NARs of store paths into the cache directory.

mod pieces;
mod verified;

use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use super::dir::{DirError, NarHash, Settled, StoredTree};
use super::meter::{FetchMeter, Fetching};
use super::narinfos::{self, NoNarinfo};
use super::sources::Sources;
use super::transport::{BinaryCache, FetchError, Http, Retries};
use crate::closure::narinfo::Narinfo;
use crate::closure::shown;
use crate::source::decompress::decompress;
use crate::source::nar::{LISTING_MAX_BYTES, NarTree};
use crate::source::remote::protocol::{FetchRequest, Fetched, NOT_VERIFIED, PathPart, pieces_of};
use pieces::InPieces;
use verified::{MeteredBody, NarVerifyError, Verified};

/// Retries after a temporary failure of a server.
const RETRIES: Retries = Retries(4);

/// Attempts to fetch a NAR that is removed before it can be opened: `lazystore cache prune` spares it, but people may not.
const REMOVALS_MAX: u32 = 4;

/// A path that can be fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetchable {
    /// Base name of the store path.
    pub name: Box<[u8]>,
    /// SHA-256 of its NAR, already trusted.
    pub nar_hash: NarHash,
    /// Length of its NAR.
    pub nar_size: u64,
}

/// What to fetch, from where and to where.
#[derive(Debug, Clone)]
pub struct FetchPlan {
    /// The binary caches, and the cache directory.
    pub sources: Sources,
    /// The logical store directory.
    pub store_dir: PathBuf,
    /// The paths; their positions are their numbers.
    pub paths: Arc<[Fetchable]>,
    /// How many bytes of NARs the directory may hold.
    pub limit_bytes: u64,
    /// Counts what is fetched.
    pub meter: FetchMeter,
    /// Whether a progress line is shown on a terminal.
    pub shows_progress: bool,
}

/// Why a tree or NAR cannot be provided.
#[derive(Debug, thiserror::Error)]
pub enum CannotFetch {
    /// The cache directory failed.
    #[error(transparent)]
    Dir(#[from] DirError),
    /// No cache has it.
    #[error("no binary cache has it ({caches})")]
    Nowhere {
        /// Their URLs.
        caches: String,
    },
    /// Every cache failed.
    #[error("{reason}")]
    Failed {
        /// The first failure.
        reason: String,
    },
    /// The listing and the NAR differ.
    #[error("{reason}")]
    Contradicted {
        /// A sentence that explains it.
        reason: String,
    },
    /// The request was for a path or piece that does not exist.
    #[error("the disk has no path of this number")]
    NoSuchPath,
    /// No thread can be started.
    #[error("cannot start a thread to fetch it")]
    NoThread,
}

/// Fetches trees and NARs.
#[derive(Debug, Clone)]
pub struct Fetcher {
    plan: FetchPlan,
    http: Http,
    in_pieces: InPieces,
}

impl Fetcher {
    /// Creates a fetcher for `plan`. Reads the certificates now.
    pub fn new(plan: FetchPlan) -> Self {
        let http = Http::new(&plan.sources.http);
        Self {
            plan,
            http,
            in_pieces: InPieces::default(),
        }
    }

    /// Returns what `request` names, open for reading. Fetches it if necessary.
    ///
    /// # Errors
    /// It cannot be provided.
    pub fn get(&self, request: FetchRequest) -> Result<Fetched, CannotFetch> {
        if let Some(kept) = self.kept(request) {
            return kept;
        }
        let path = self.plan.paths.get(request.path as usize);
        let path = path.ok_or(CannotFetch::NoSuchPath)?;
        match request.part {
            PathPart::Tree => self.tree(path).map(not_verified),
            PathPart::Nar => match self.partial(request.path, path)? {
                Some(_) => Ok(Fetched::InPieces),
                None => self.nar(path),
            },
            PathPart::Piece(piece) => self.piece(request.path, path, piece),
        }
    }

    /// Returns what `request` names if it is in the cache directory, or the error if it can never be provided.
    pub fn kept(&self, request: FetchRequest) -> Option<Result<Fetched, CannotFetch>> {
        let Some(path) = self.plan.paths.get(request.path as usize) else {
            return Some(Err(CannotFetch::NoSuchPath));
        };
        if let PathPart::Piece(piece) = request.part
            && !pieces_of(0..path.nar_size).contains(&piece)
        {
            return Some(Err(CannotFetch::NoSuchPath));
        }
        if let Some(reason) = self.plan.sources.dir.contradiction(&path.nar_hash) {
            return Some(Err(CannotFetch::Contradicted { reason }));
        }
        match request.part {
            PathPart::Tree => {
                let tree = self.plan.sources.dir.tree(&path.nar_hash)?;
                Some(Ok(not_verified(tree.into_file())))
            }
            PathPart::Nar | PathPart::Piece(_) => match self.kept_partial(request) {
                None => self.kept_nar(path).transpose(),
                kept_partial => kept_partial.map(Ok),
            },
        }
    }

    fn kept_nar(&self, path: &Fetchable) -> Result<Option<Fetched>, CannotFetch> {
        let Some(file) = self.plan.sources.dir.nar(&path.nar_hash, path.nar_size) else {
            return Ok(None);
        };
        let digest = self.plan.sources.dir.verified_digest(&path.nar_hash)?;
        Ok(digest.map(|digest| Fetched::File { digest, file }))
    }

    /// Starts counting in this process, which is the fetcher from now on.
    pub(super) fn begin(&self) {
        self.plan.meter.restart();
        if self.plan.shows_progress {
            self.plan.meter.show();
        }
    }

    /// Returns the counters.
    pub(super) fn meter(&self) -> &FetchMeter {
        &self.plan.meter
    }

    /// Returns the store path of a number, for messages.
    pub fn path_name(&self, number: u32) -> String {
        let path = self.plan.paths.get(number as usize);
        let name = path.map_or_else(String::new, |path| shown(&path.name));
        format!("{}/{name}", self.plan.store_dir.display())
    }

    fn tree(&self, path: &Fetchable) -> Result<File, CannotFetch> {
        let dir = &self.plan.sources.dir;
        {
            let _lock = dir.lock(&path.nar_hash)?;
            // Another server may have fetched it meanwhile.
            let is_known = dir.tree(&path.nar_hash).is_some()
                || dir.nar(&path.nar_hash, path.nar_size).is_some();
            if !is_known && let Some(tree) = self.listing(path) {
                dir.keep_claimed(&path.nar_hash, &tree.to_packed())?;
            }
        }
        if dir.tree(&path.nar_hash).is_none() {
            self.nar(path)?;
        }
        let tree = dir.tree(&path.nar_hash).map(StoredTree::into_file);
        tree.ok_or_else(|| CannotFetch::Failed {
            reason: "its tree has been removed from the cache directory".to_owned(),
        })
    }

    /// Returns the tree from the first usable listing of a cache, if any.
    fn listing(&self, path: &Fetchable) -> Option<NarTree> {
        let mut caches = self.plan.sources.caches.iter();
        caches.find_map(|cache| self.listing_of(cache, path))
    }

    fn listing_of(&self, cache: &BinaryCache, path: &Fetchable) -> Option<NarTree> {
        let name = format!("{}.ls", narinfos::digits(&path.name));
        let json = cache.read(&self.http, &name, LISTING_MAX_BYTES, RETRIES);
        let json = json
            .inspect_err(|reason| tracing::debug!("{name} of {}: {reason}", cache.url()))
            .ok()?;
        match NarTree::from_listing(&json, path.nar_size) {
            Ok(tree) => {
                self.plan.meter.got_listing();
                Some(tree)
            }
            Err(error) => {
                let url = cache.url();
                tracing::warn!("cannot use {url}/{name}, fetching the NAR instead: {error}");
                None
            }
        }
    }

    fn nar(&self, path: &Fetchable) -> Result<Fetched, CannotFetch> {
        let dir = &self.plan.sources.dir;
        let _lock = dir.lock(&path.nar_hash)?;
        for _ in 0..REMOVALS_MAX {
            // Another server may have fetched it meanwhile.
            if let Some(kept) = self.kept_nar(path)? {
                return Ok(kept);
            }
            let tree = match dir.nar(&path.nar_hash, path.nar_size) {
                // It was verified before, but its tree was removed.
                Some(file) => read_again(&file, path)?,
                None => self.download(path)?,
            };
            self.settle(path, &tree)?;
        }
        self.kept_nar(path)?.ok_or_else(|| CannotFetch::Failed {
            reason: "another program keeps removing it from the cache directory".to_owned(),
        })
    }

    /// Compares the tree of a NAR with the tree that was handed out.
    fn settle(&self, path: &Fetchable, tree: &NarTree) -> Result<(), CannotFetch> {
        let dir = &self.plan.sources.dir;
        match dir.settle_tree(&path.nar_hash, &tree.to_packed())? {
            Settled::Same => Ok(()),
            Settled::Contradicted => {
                let caches = self.urls();
                let reason = format!(
                    "its listing contradicts its NAR, so nothing of it is served: a binary cache is broken or malicious \
                     ({caches}); lazystore cache prune forgets it"
                );
                dir.contradict(&path.nar_hash, &reason)?;
                Err(CannotFetch::Contradicted { reason })
            }
        }
    }

    /// Fetches the NAR from the first cache that has the right one, and keeps it.
    fn download(&self, path: &Fetchable) -> Result<NarTree, CannotFetch> {
        let mut reason = None;
        for cache in self.plan.sources.caches.iter() {
            match self.download_from(cache, path) {
                Ok(tree) => return Ok(tree),
                Err(CannotFetch::Failed { reason: failure }) => {
                    tracing::warn!("{}: {failure}", shown(&path.name));
                    reason.get_or_insert(failure);
                }
                Err(CannotFetch::Nowhere { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Err(match reason {
            Some(reason) => CannotFetch::Failed { reason },
            None => CannotFetch::Nowhere {
                caches: self.urls(),
            },
        })
    }

    fn download_from(&self, cache: &BinaryCache, path: &Fetchable) -> Result<NarTree, CannotFetch> {
        let started = Instant::now();
        let narinfo = self.narinfo(cache, path)?;
        let failed = |reason: String| CannotFetch::Failed {
            reason: format!("{} of {}: {reason}", narinfo.url, cache.url()),
        };
        let fetching = self.plan.meter.begin_nar(path.nar_size);
        let mut tries = RETRIES.0;
        let tree = loop {
            let opened = cache.open(&self.http, &narinfo.url, RETRIES);
            let body = match opened {
                Ok(body) => body,
                Err(FetchError::NotFound) => return Err(failed("it is not there".to_owned())),
                Err(error) => return Err(failed(error.to_string())),
            };
            match self.verify(&narinfo, path, body.reader, &fetching) {
                Ok(tree) => break tree,
                Err(NarVerifyError::Dir(error)) => return Err(error.into()),
                Err(error) if error.may_pass() && tries > 0 => tries -= 1,
                Err(error) => return Err(failed(error.to_string())),
            }
        };
        fetching.verified();
        drop(fetching);
        let (bytes, ms) = (path.nar_size, started.elapsed().as_millis());
        tracing::debug!(
            bytes,
            ms,
            "fetched {} from {}",
            shown(&path.name),
            cache.url()
        );
        self.keep_within_limit()?;
        Ok(tree)
    }

    /// Returns the narinfo of `path` in `cache`. Its NAR must be the trusted one.
    fn narinfo(&self, cache: &BinaryCache, path: &Fetchable) -> Result<Narinfo, CannotFetch> {
        let located = self.plan.sources.located(&self.plan.store_dir);
        let narinfo = located.in_cache(&self.http, cache, &path.name);
        let narinfo = narinfo.map_err(|error| match error {
            NoNarinfo::NotFound | NoNarinfo::Failed(FetchError::Denied { .. }) => {
                CannotFetch::Nowhere {
                    caches: cache.url().to_owned(),
                }
            }
            error => CannotFetch::Failed {
                reason: error.to_string(),
            },
        })?;
        if (narinfo.nar_hash, narinfo.nar_size) != (path.nar_hash, path.nar_size) {
            let reason = format!("{} has another build of it", cache.url());
            return Err(CannotFetch::Failed { reason });
        }
        Ok(narinfo)
    }

    /// Writes the NAR to the directory while parsing it, and gives it its final name if the hash is right.
    fn verify(
        &self,
        narinfo: &Narinfo,
        path: &Fetchable,
        body: impl Read + Send,
        fetching: &Fetching<'_>,
    ) -> Result<NarTree, NarVerifyError> {
        let staged = self.plan.sources.dir.stage()?;
        let body = MeteredBody {
            body,
            meter: &self.plan.meter,
        };
        let compressed = body.take(verified::compressed_max(path.nar_size));
        let reader = decompress(narinfo.compression, compressed)?;
        let mut verified = Verified::new(reader, &staged, fetching);
        let parsed = NarTree::parse(&mut verified, path.nar_size);
        let tree = verified.finish(parsed, &path.nar_hash)?;
        self.plan.sources.dir.keep_nar(&path.nar_hash, staged)?;
        Ok(tree)
    }

    fn keep_within_limit(&self) -> Result<(), DirError> {
        let removed = self.plan.sources.dir.make_room(self.plan.limit_bytes)?;
        if removed.gone.files > 0 {
            let (files, bytes) = (removed.gone.files, removed.gone.bytes);
            tracing::debug!(files, bytes, "removed the least recently used files");
        }
        Ok(())
    }

    fn urls(&self) -> String {
        let urls = self.plan.sources.caches.iter().map(BinaryCache::url);
        urls.collect::<Vec<_>>().join(", ")
    }
}

fn not_verified(file: File) -> Fetched {
    Fetched::File {
        digest: NOT_VERIFIED,
        file,
    }
}

/// Parses a NAR that was verified before.
fn read_again(file: &File, path: &Fetchable) -> Result<NarTree, CannotFetch> {
    let reader = std::io::BufReader::new(file);
    NarTree::parse(reader, path.nar_size).map_err(|error| CannotFetch::Failed {
        reason: error.to_string(),
    })
}
