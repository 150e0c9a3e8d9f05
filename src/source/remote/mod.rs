//! Store paths that are not on this host. A fetcher process provides their trees and NARs when they are first needed.
//!
//! A worker has no network and no cache directory. It asks the fetcher for *path N* over a [`Connection`] and gets a read-only
//! descriptor. First it gets the path's tree, from which it plans; the tree may be unverified. With the verified NAR comes the
//! digest of the NAR's tree. If that differs from the tree that was planned with, no byte of the path is served.
//!
//! NARs of caches that are trusted with `--trust-ranges` are fetched in pieces, into one file that the fetcher writes. The
//! fetcher truncates the file if verification fails.

mod channel;
mod pieces;
pub mod protocol;

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use lru::LruCache;
use sha2::{Digest as _, Sha256};

use super::file_cache::{FileCache, FileId};
use super::host::HostFile;
use super::nar::{NarNode, NarTree, PACKED_MAX_BYTES};
use super::{Awaits, Destination, IoMode, SourceError};
use crate::tree::{Listing, Stat};
use channel::{Channel, NoAnswer};
use pieces::Pieces;
use protocol::{Connection, Digest, FetchRequest, Fetched, PathPart};

/// Memory limit of cached trees in bytes, not counting the one in use. A tree is needed for planning, and to locate files that
/// were evicted from `places`.
const TREES_MAX_BYTES: usize = 24 << 20;

/// Number of files whose location is cached, at 64 bytes each.
const PLACES_MAX: usize = 16_384;

/// A path of a [`RemoteTree`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemotePath {
    /// Base name of the store path.
    pub name: Box<[u8]>,
    /// Length of its NAR in bytes.
    pub nar_size: u64,
}

/// Store paths provided by a fetcher.
#[derive(Debug)]
pub struct RemoteTree {
    paths: Vec<RemotePath>,
    numbers: HashMap<Box<[u8]>, u32>,
    /// For messages.
    store_dir: PathBuf,
    /// How long a read waits for the fetcher.
    limit: Duration,
    /// Sends the ends of new connections to the fetcher.
    control: Mutex<Option<Connection>>,
    channel: OnceLock<Arc<Channel>>,
    kept: Mutex<ReceivedTrees>,
    /// By path number.
    nars: FileCache<LocalNar>,
    places: FileCache<FileLocation>,
}

/// Trees and digests received by this process.
#[derive(Debug)]
struct ReceivedTrees {
    trees: LruCache<u32, Arc<NarTree>>,
    trees_bytes: usize,
    /// Digests of all trees that were planned with. A different digest is a different path.
    digests: HashMap<u32, Digest>,
}

/// The location of a file.
#[derive(Debug, Clone, Copy)]
struct FileLocation {
    /// Number of its store path.
    path: u32,
    /// Offset of its contents in the NAR.
    start: u64,
    len_bytes: u64,
}

/// A file in a NAR.
#[derive(Debug, Clone)]
pub struct NarFile {
    nar: LocalNar,
    place: FileLocation,
}

#[derive(Debug, Clone)]
enum LocalNar {
    /// Verified.
    Whole(Arc<HostFile>),
    InPieces(Arc<Pieces>),
}

impl RemoteTree {
    /// Provides `paths` of the store `store_dir`. At most `max_open_files` NARs stay open. `control` leads to the fetcher, for
    /// which a read waits at most `limit`.
    pub fn new(
        paths: Vec<RemotePath>,
        store_dir: PathBuf,
        max_open_files: usize,
        control: Connection,
        limit: Duration,
    ) -> Self {
        let numbers = (0..).zip(&paths);
        let numbers = numbers.map(|(number, path)| (path.name.clone(), number));
        Self {
            numbers: numbers.collect(),
            paths,
            store_dir,
            limit,
            control: Mutex::new(Some(control)),
            channel: OnceLock::new(),
            kept: Mutex::new(ReceivedTrees {
                trees: LruCache::unbounded(),
                trees_bytes: 0,
                digests: HashMap::new(),
            }),
            nars: FileCache::new(max_open_files),
            places: FileCache::new(PLACES_MAX),
        }
    }

    /// Opens a connection to the fetcher, for a process about to be started.
    ///
    /// # Errors
    /// No descriptors are left, or the fetcher has ended.
    pub fn connect(&self) -> io::Result<Connection> {
        let (near, far) = Connection::pair()?;
        // The fetcher must not block on a client that does not read.
        far.set_nonblocking(true)?;
        let control = self.control.lock().unwrap_or_else(PoisonError::into_inner);
        let control = control.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        control.send_connection(&far)?;
        Ok(near)
    }

    /// Makes this process send its requests over `connection`. Further calls do nothing.
    pub fn attach(&self, connection: Connection) {
        let channel = Channel::new(connection, self.limit);
        let _ = self.channel.set(Arc::new(channel));
    }

    /// Makes further connections by this process impossible. The fetcher ends when no process can make any.
    pub fn forget_control(&self) {
        *self.control.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Returns whether `name` is one of its store paths.
    pub fn has(&self, name: &[u8]) -> bool {
        self.numbers.contains_key(name)
    }

    /// Returns how many answers this process has received from the fetcher.
    pub fn arrivals(&self) -> u64 {
        self.channel.get().map_or(0, |channel| channel.arrivals())
    }

    /// Waits at most `limit` until the number of answers differs from `seen`. Returns whether it does.
    pub fn wait_for_arrival(&self, seen: u64, limit: Duration) -> bool {
        let channel = self.channel.get();
        channel.is_some_and(|channel| channel.wait_for_arrival(seen, limit))
    }

    /// Fetches the tree of the store path that contains `path`, unless it is cached.
    pub(super) fn prepare(&self, path: &[u8], mode: IoMode) -> Result<(), SourceError> {
        let (number, _) = self.split(path)?;
        self.tree(number, mode).map(drop)
    }

    /// Returns the attributes of `path`.
    pub(super) fn stat(&self, path: &[u8]) -> Result<Stat, SourceError> {
        let (number, inside) = self.split(path)?;
        let tree = self.tree(number, IoMode::Blocking)?;
        tree.stat(inside).ok_or_else(|| self.not_found(path))
    }

    /// Returns the target of the symlink at `path`; empty if it is not a symlink.
    pub(super) fn target(&self, path: &[u8]) -> Result<Vec<u8>, SourceError> {
        let (number, inside) = self.split(path)?;
        let tree = self.tree(number, IoMode::Blocking)?;
        match tree.node(inside) {
            Some(NarNode::Symlink { target }) => Ok(target.to_vec()),
            _ => Ok(Vec::new()),
        }
    }

    /// Returns the entries of the directory at `path`.
    pub(super) fn list(&self, path: &[u8]) -> Result<Listing, SourceError> {
        let (number, inside) = self.split(path)?;
        let tree = self.tree(number, IoMode::Blocking)?;
        tree.list(inside).ok_or_else(|| self.not_found(path))
    }

    /// Opens the regular file at `path()`, in a NAR that is verified or fetched in pieces. Does not call `path` if the location
    /// of `id` is cached.
    pub(super) fn open(
        &self,
        id: FileId,
        mode: IoMode,
        path: impl FnOnce() -> Vec<u8>,
    ) -> Result<NarFile, SourceError> {
        let place = match self.places.get(id) {
            Some(place) => place,
            None => {
                let place = self.place(&path(), mode)?;
                self.places.insert(id, place);
                place
            }
        };
        let nar = self.nar(place.path, mode)?;
        Ok(NarFile { nar, place })
    }

    fn place(&self, path: &[u8], mode: IoMode) -> Result<FileLocation, SourceError> {
        let (number, inside) = self.split(path)?;
        let tree = self.tree(number, mode)?;
        let Some(NarNode::Regular {
            size_bytes, offset, ..
        }) = tree.node(inside)
        else {
            return Err(self.not_found(path));
        };
        Ok(FileLocation {
            path: number,
            start: offset,
            len_bytes: size_bytes,
        })
    }

    /// Returns the full path, for messages.
    pub(super) fn display_path(&self, path: &[u8]) -> PathBuf {
        use std::os::unix::ffi::OsStrExt;
        self.store_dir.join(std::ffi::OsStr::from_bytes(path))
    }

    /// Returns the number of the store path that contains `path`, and the path inside it.
    fn split<'p>(&self, path: &'p [u8]) -> Result<(u32, &'p [u8]), SourceError> {
        let mut parts = path.splitn(2, |byte| *byte == b'/');
        let number = parts.next().and_then(|name| self.numbers.get(name));
        let number = number.ok_or_else(|| self.not_found(path))?;
        Ok((*number, parts.next().unwrap_or_default()))
    }

    fn tree(&self, number: u32, mode: IoMode) -> Result<Arc<NarTree>, SourceError> {
        if let Some(tree) = self.lock().trees.get(&number) {
            return Ok(Arc::clone(tree));
        }
        let request = FetchRequest {
            part: PathPart::Tree,
            path: number,
        };
        let Fetched::File { file, .. } = self.ask(request, mode)? else {
            return Err(self.failed(number, "the fetcher sent a tree in pieces".to_owned()));
        };
        let packed = read_packed(&file).map_err(|error| self.failed(number, error.to_string()))?;
        let nar_size = self.paths[number as usize].nar_size;
        let tree = NarTree::from_packed(&packed, nar_size);
        let tree = tree.map_err(|error| self.failed(number, error.to_string()))?;
        self.keep_tree(number, tree, Sha256::digest(&packed).into())
    }

    fn keep_tree(
        &self,
        number: u32,
        tree: NarTree,
        digest: Digest,
    ) -> Result<Arc<NarTree>, SourceError> {
        let tree = Arc::new(tree);
        let mut kept = self.lock();
        if *kept.digests.entry(number).or_insert(digest) != digest {
            return Err(self.contradicted(number));
        }
        kept.trees_bytes += tree.heap_bytes();
        if let Some(old) = kept.trees.put(number, Arc::clone(&tree)) {
            kept.trees_bytes -= old.heap_bytes();
        }
        while kept.trees_bytes > TREES_MAX_BYTES && kept.trees.len() > 1 {
            let Some((_, old)) = kept.trees.pop_lru() else {
                break;
            };
            kept.trees_bytes -= old.heap_bytes();
        }
        Ok(tree)
    }

    /// Returns the NAR of a path whose tree is known.
    fn nar(&self, number: u32, mode: IoMode) -> Result<LocalNar, SourceError> {
        let id = FileId(number.into());
        if let Some(nar) = self.nars.get(id).filter(LocalNar::is_usable) {
            return Ok(nar);
        }
        let request = FetchRequest {
            part: PathPart::Nar,
            path: number,
        };
        let found = self.ask(request, mode)?;
        let planned = self.lock().digests.get(&number).copied();
        let planned = planned.ok_or_else(|| self.contradicted(number))?;
        let nar = match found {
            Fetched::File { digest, .. } if digest != planned => {
                return Err(self.contradicted(number));
            }
            Fetched::File { file, .. } => LocalNar::Whole(self.whole(number, file)?),
            Fetched::InPieces => LocalNar::InPieces(self.pieces(number, planned)?),
        };
        self.nars.insert(id, nar.clone());
        Ok(nar)
    }

    fn whole(&self, number: u32, file: File) -> Result<Arc<HostFile>, SourceError> {
        let RemotePath { name, nar_size } = &self.paths[number as usize];
        let nar = HostFile::of_open(OwnedFd::from(file), self.display_path(name))?;
        match nar.len_bytes() == *nar_size {
            true => Ok(Arc::new(nar)),
            false => Err(self.contradicted(number)),
        }
    }

    fn pieces(&self, number: u32, digest: Digest) -> Result<Arc<Pieces>, SourceError> {
        let RemotePath { name, nar_size } = &self.paths[number as usize];
        let (channel, shown) = (self.channel(number)?, self.display_path(name));
        let pieces = Pieces::new(Arc::clone(channel), number, shown, *nar_size, digest);
        Ok(Arc::new(pieces))
    }

    fn channel(&self, number: u32) -> Result<&Arc<Channel>, SourceError> {
        let reason = || "this process is not connected to the fetcher".to_owned();
        let channel = self.channel.get();
        channel.ok_or_else(|| self.failed(number, reason()))
    }

    fn ask(&self, request: FetchRequest, mode: IoMode) -> Result<Fetched, SourceError> {
        let channel = self.channel(request.path)?;
        channel.get(request, mode).map_err(|none| match none {
            NoAnswer::NotYet => SourceError::WouldBlock(Awaits::Fetch),
            NoAnswer::Failed(reason) => self.failed(request.path, reason),
        })
    }

    fn failed(&self, number: u32, reason: String) -> SourceError {
        SourceError::Fetch {
            path: self.display_path(&self.paths[number as usize].name),
            reason: reason.into(),
        }
    }

    fn contradicted(&self, number: u32) -> SourceError {
        SourceError::Contradicted {
            path: self.display_path(&self.paths[number as usize].name),
        }
    }

    fn not_found(&self, path: &[u8]) -> SourceError {
        SourceError::Io {
            path: self.display_path(path),
            action: "find",
            errno: rustix::io::Errno::NOENT,
        }
    }

    /// Every statement leaves the state consistent, so a poisoned lock is usable.
    fn lock(&self) -> MutexGuard<'_, ReceivedTrees> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl NarFile {
    /// As [`File::read_into`](super::File::read_into).
    pub(super) fn read_into(
        &self,
        to: &mut Destination<'_>,
        offset: u64,
        len_bytes: u64,
        mode: IoMode,
    ) -> Result<(), SourceError> {
        let end = offset.checked_add(len_bytes);
        if end.is_none_or(|end| end > self.place.len_bytes) {
            return Err(SourceError::Shrank {
                path: self.nar.path().to_owned(),
            });
        }
        let start = self.place.start + offset;
        match &self.nar {
            LocalNar::Whole(file) => file.read_into(to, start, len_bytes, mode),
            LocalNar::InPieces(pieces) => pieces.read_into(to, start, len_bytes, mode),
        }
    }

    pub(super) fn read_ahead(&self, offset: u64, len_bytes: u64) -> Result<(), SourceError> {
        let start = self.place.start + offset;
        match &self.nar {
            LocalNar::Whole(file) => file.read_ahead(start, len_bytes),
            LocalNar::InPieces(pieces) => pieces.read_ahead(start, len_bytes),
        }
    }
}

impl LocalNar {
    fn path(&self) -> &Path {
        match self {
            Self::Whole(file) => file.path(),
            Self::InPieces(pieces) => pieces.shown(),
        }
    }

    /// Returns whether it is still usable without asking the fetcher again.
    fn is_usable(&self) -> bool {
        match self {
            Self::Whole(file) => file.is_usable(),
            Self::InPieces(_) => true,
        }
    }
}

/// Reads a packed tree. Other processes may share the open file, so this must not use its position.
fn read_packed(file: &File) -> io::Result<Vec<u8>> {
    let len_bytes = file.metadata()?.len().min(PACKED_MAX_BYTES as u64);
    let mut packed = vec![0; usize::try_from(len_bytes).map_err(io::Error::other)?];
    file.read_exact_at(&mut packed, 0)?;
    Ok(packed)
}
