//! Fetches uncompressed NARs piece by piece, as they are read, from caches that are trusted with `--trust-ranges`.
//!
//! Only a whole NAR can be verified. Until then one cache is trusted: its listing and the bytes it sends. Once half of the
//! pieces have been fetched, the rest is fetched too, and the complete NAR is verified like any other.

use std::collections::HashMap;
use std::io::{BufReader, Read};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sha2::{Digest as _, Sha256};

use super::{CannotFetch, Fetchable, Fetcher, RETRIES, not_verified};
use crate::cache::dir::PartialNar;
use crate::cache::transport::{BinaryCache, FetchError};
use crate::closure::narinfo::{Compression, Narinfo};
use crate::closure::{nix32, shown};
use crate::source::nar::{NarError, NarTree, PACKED_MAX_BYTES};
use crate::source::remote::protocol::{FetchRequest, Fetched, PIECE_BYTES, PathPart};

/// Shorter NARs are fetched whole.
const NAR_MIN_BYTES: u64 = 8 * PIECE_BYTES;

/// Pieces to read ahead when the previous piece has been fetched.
const AHEAD: u32 = 2;

/// How many pieces are fetched between two checks of the cache directory's size.
const ROOM_EVERY: u32 = 16;

/// How each NAR is fetched, by path number. Clones share the state.
#[derive(Debug, Clone, Default)]
pub(super) struct InPieces(Arc<Mutex<HashMap<u32, FetchMode>>>);

/// How a NAR is fetched.
#[derive(Debug, Clone)]
enum FetchMode {
    Whole,
    InPieces(Arc<Partial>),
}

/// A NAR that is fetched in pieces.
#[derive(Debug)]
pub(super) struct Partial {
    nar: PartialNar,
    /// Index of the cache.
    cache: usize,
    /// The NAR's URL there.
    url: String,
    /// The listing.
    tree: NarTree,
    is_being_verified: AtomicBool,
}

/// Why a piece cannot be provided.
enum PieceError {
    /// The cache provides no usable pieces of this NAR.
    Unusable(String),
    Failed(CannotFetch),
}

impl Fetcher {
    /// Returns the response to a request that needs no fetching and no long read, if any.
    pub(super) fn kept_partial(&self, request: FetchRequest) -> Option<Fetched> {
        let partial = self.in_pieces.partial(request.path)?;
        match request.part {
            PathPart::Nar => Some(Fetched::InPieces),
            PathPart::Piece(piece) if partial.nar.is_known(piece) => {
                partial.nar.reader().ok().map(not_verified)
            }
            _ => None,
        }
    }

    /// Returns the NAR of a path if it is to be fetched in pieces.
    pub(super) fn partial(
        &self,
        number: u32,
        path: &Fetchable,
    ) -> Result<Option<Arc<Partial>>, CannotFetch> {
        let caches = &self.plan.sources.caches;
        if path.nar_size < NAR_MIN_BYTES || !caches.iter().any(BinaryCache::trusts_parts) {
            return Ok(None);
        }
        let dir = &self.plan.sources.dir;
        let _lock = dir.lock(&path.nar_hash)?;
        if let Some(mode) = self.in_pieces.lock().get(&number) {
            return Ok(mode.partial());
        }
        if dir.nar(&path.nar_hash, path.nar_size).is_some() {
            return Ok(None);
        }
        let partial = self.begin_partial(path)?.map(Arc::new);
        let mode = partial
            .clone()
            .map_or(FetchMode::Whole, FetchMode::InPieces);
        self.in_pieces.lock().insert(number, mode);
        Ok(partial)
    }

    /// Returns `None` if the first cache that has the path is not trusted, compresses the NAR, or has a listing that differs
    /// from the tree the path was planned with.
    fn begin_partial(&self, path: &Fetchable) -> Result<Option<Partial>, CannotFetch> {
        let Some((cache, narinfo)) = self.first_with(path) else {
            return Ok(None);
        };
        let from = &self.plan.sources.caches[cache];
        if !from.trusts_parts() || narinfo.compression != Compression::None {
            return Ok(None);
        }
        let dir = &self.plan.sources.dir;
        let Some(packed) = dir.tree(&path.nar_hash).and_then(|tree| {
            let (mut packed, file) = (Vec::new(), tree.into_file());
            let read = file.take(PACKED_MAX_BYTES as u64).read_to_end(&mut packed);
            read.ok().map(|_| packed)
        }) else {
            return Ok(None);
        };
        let Ok(tree) = NarTree::from_packed(&packed, path.nar_size) else {
            return Ok(None);
        };
        let origin = format!("{} {}", from.url(), nix32(&Sha256::digest(&packed)));
        // If pieces exist already, the listing was compared with this cache's when they were fetched.
        if !dir.has_partial(&path.nar_hash, &origin)
            && self.listing_of(from, path).as_ref() != Some(&tree)
        {
            return Ok(None);
        }
        Ok(Some(Partial {
            nar: dir.partial(&path.nar_hash, path.nar_size, &origin)?,
            cache,
            url: narinfo.url,
            tree,
            is_being_verified: AtomicBool::new(false),
        }))
    }

    /// Returns the first cache that has the NAR.
    fn first_with(&self, path: &Fetchable) -> Option<(usize, Narinfo)> {
        let mut caches = self.plan.sources.caches.iter().enumerate();
        caches.find_map(|(index, cache)| Some((index, self.narinfo(cache, path).ok()?)))
    }

    /// Returns the file with the requested piece, or the whole NAR.
    pub(super) fn piece(
        &self,
        number: u32,
        path: &Fetchable,
        piece: u32,
    ) -> Result<Fetched, CannotFetch> {
        let Some(partial) = self.partial(number, path)? else {
            return self.nar(path);
        };
        match self.fetch_piece(path, &partial, piece) {
            Ok(()) => Ok(not_verified(partial.nar.reader()?)),
            Err(PieceError::Failed(error)) => Err(error),
            Err(PieceError::Unusable(reason)) => {
                let name = self.path_name(number);
                tracing::warn!("{name}: {reason}: fetching the whole NAR instead");
                self.in_pieces.lock().insert(number, FetchMode::Whole);
                partial.nar.revoke();
                self.nar(path)
            }
        }
    }

    fn fetch_piece(
        &self,
        path: &Fetchable,
        partial: &Partial,
        piece: u32,
    ) -> Result<(), PieceError> {
        if partial.nar.has(piece) {
            return Ok(());
        }
        let range = partial.nar.range(piece);
        let range = range.ok_or(PieceError::Failed(CannotFetch::NoSuchPath))?;
        let cache = &self.plan.sources.caches[partial.cache];
        let meter = &self.plan.meter;
        let fetching = meter.begin_nar(range.end - range.start);
        let bytes = cache.read_range(&self.http, &partial.url, &range, path.nar_size, RETRIES);
        let bytes = bytes.map_err(|error| match error {
            FetchError::Passing { reason } => PieceError::Failed(CannotFetch::Failed { reason }),
            error => PieceError::Unusable(error.to_string()),
        })?;
        meter.received(bytes.len());
        fetching.wrote(bytes.len());
        if !partial.tree.may_have(range.start, &bytes) {
            let reason = format!(
                "the listing that {} has of it contradicts its NAR",
                cache.url()
            );
            return Err(PieceError::Unusable(reason));
        }
        partial.nar.put(piece, &bytes)?;
        if piece.is_multiple_of(ROOM_EVERY) {
            self.keep_within_limit()?;
        }
        Ok(())
    }

    /// Returns the pieces to prefetch: the following ones, if the previous piece has been fetched.
    pub fn ahead(&self, request: FetchRequest) -> Vec<FetchRequest> {
        let Some((partial, piece)) = self.piece_of(request) else {
            return Vec::new();
        };
        let follows = piece > 0 && partial.nar.is_known(piece - 1);
        let ahead = (piece + 1..=piece.saturating_add(AHEAD)).filter(|_| follows);
        let is_missing =
            |next: &u32| partial.nar.range(*next).is_some() && !partial.nar.is_known(*next);
        ahead
            .filter(is_missing)
            .map(|next| request.other(next))
            .collect()
    }

    /// To be called after a piece was fetched. Verifies the NAR if it is complete; otherwise returns the next piece to fetch in
    /// order to complete it, if any.
    pub fn next_to_complete(&self, request: FetchRequest) -> Option<FetchRequest> {
        let (partial, piece) = self.piece_of(request)?;
        let (come, all) = partial.nar.progress();
        if let Some(next) = partial.nar.next_missing(piece) {
            return (2 * come >= all).then(|| request.other(next));
        }
        if !partial.is_being_verified.swap(true, Ordering::SeqCst) {
            let path = self.plan.paths.get(request.path as usize)?;
            match self.verify_pieces(request.path, path, &partial) {
                Ok(()) => {}
                Err(error) => tracing::error!("{}: {error}", self.path_name(request.path)),
            }
            partial.is_being_verified.store(false, Ordering::SeqCst);
        }
        None
    }

    fn piece_of(&self, request: FetchRequest) -> Option<(Arc<Partial>, u32)> {
        match request.part {
            PathPart::Piece(piece) => Some((self.in_pieces.partial(request.path)?, piece)),
            _ => None,
        }
    }

    /// Verifies the hash of the complete NAR, and compares its tree with the listing. If both match, the NAR is kept like any
    /// other. If not, nothing of the path is served any more.
    fn verify_pieces(
        &self,
        number: u32,
        path: &Fetchable,
        partial: &Partial,
    ) -> Result<(), CannotFetch> {
        let dir = &self.plan.sources.dir;
        let _lock = dir.lock(&path.nar_hash)?;
        // Pieces recorded by an earlier process may be torn, which is not the cache's fault.
        let count = u32::try_from(partial.nar.progress().1).unwrap_or(u32::MAX);
        if !(0..count).all(|piece| partial.nar.has(piece)) {
            return Ok(());
        }
        let Some(tree) = verified_tree(partial.nar.reader()?, path)? else {
            let url = self.plan.sources.caches[partial.cache].url();
            let reason = format!(
                "the parts that {url} sent are not of the NAR that was signed, so nothing of it is served: that cache is broken \
                 or malicious; lazystore cache prune forgets it"
            );
            dir.contradict(&path.nar_hash, &reason)?;
            partial.nar.revoke();
            return Err(CannotFetch::Contradicted { reason });
        };
        let settled = self.settle(path, &tree);
        match settled {
            Ok(()) => dir.keep_partial(&path.nar_hash, &partial.nar)?,
            Err(_) => partial.nar.revoke(),
        }
        self.in_pieces.lock().remove(&number);
        self.plan.meter.got_nar();
        settled?;
        tracing::debug!(
            "{}: all pieces were fetched and verified",
            shown(&path.name)
        );
        Ok(self.keep_within_limit()?)
    }
}

/// Parses the NAR and returns its tree, or `None` if its hash is wrong.
fn verified_tree(reader: impl Read, path: &Fetchable) -> Result<Option<NarTree>, CannotFetch> {
    let mut hashed = Hashed {
        // Records follow the NAR.
        reader: BufReader::with_capacity(1 << 20, reader.take(path.nar_size)),
        hash: Sha256::new(),
    };
    let tree = match NarTree::parse(&mut hashed, path.nar_size) {
        Ok(tree) => tree,
        // A failed read of the file is not the cache's fault.
        Err(error @ NarError::Read(_)) => {
            let reason = error.to_string();
            return Err(CannotFetch::Failed { reason });
        }
        Err(_) => return Ok(None),
    };
    let is_right = hashed.hash.finalize()[..] == path.nar_hash;
    Ok(is_right.then_some(tree))
}

/// Hashes the bytes read through it.
struct Hashed<R> {
    reader: R,
    hash: Sha256,
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let len = self.reader.read(buf)?;
        self.hash.update(&buf[..len]);
        Ok(len)
    }
}

impl InPieces {
    fn partial(&self, number: u32) -> Option<Arc<Partial>> {
        self.lock().get(&number)?.partial()
    }

    /// Every statement leaves the map consistent, so a poisoned lock is usable.
    fn lock(&self) -> MutexGuard<'_, HashMap<u32, FetchMode>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FetchMode {
    fn partial(&self) -> Option<Arc<Partial>> {
        match self {
            Self::Whole => None,
            Self::InPieces(partial) => Some(Arc::clone(partial)),
        }
    }
}

impl<E: Into<CannotFetch>> From<E> for PieceError {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}
