//! Store paths that are not on this host: a fetcher process has their trees and NARs, and hands them over when they are
//! first needed.
//!
//! A process that serves has no network and no cache directory. It asks the fetcher for *path N* over a [`Connection`] and
//! gets a descriptor that can only be read. First it gets the path's tree, by which it is planned; nobody may vouch for
//! that. With the NAR, which was verified, comes the digest of the tree that it was found to have: another one than was
//! planned with means that the tree was a lie, and then no byte of the path is served.
//!
//! A NAR of a cache that is trusted for parts of it comes in pieces, which lie in one file that the fetcher writes. It cuts the
//! file when they turn out to be wrong.

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
use protocol::{Connection, Digest, Found, Part, Wanted};

/// How much memory trees may take, in bytes, apart from the one in use. A plan is made from one; files whose place has been
/// forgotten are looked up in it.
const TREES_MAX_BYTES: usize = 24 << 20;

/// How many files' places are remembered, in 64 bytes each.
const PLACES_MAX: usize = 16_384;

/// A path of a [`RemoteTree`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemotePath {
    /// Base name of the store path.
    pub name: Box<[u8]>,
    /// Length of its NAR in bytes.
    pub nar_size: u64,
}

/// Store paths that a fetcher has.
#[derive(Debug)]
pub struct RemoteTree {
    paths: Vec<RemotePath>,
    numbers: HashMap<Box<[u8]>, u32>,
    /// For messages.
    store_dir: PathBuf,
    /// How long a read waits for the fetcher.
    limit: Duration,
    /// Takes ends of new connections to the fetcher.
    control: Mutex<Option<Connection>>,
    channel: OnceLock<Arc<Channel>>,
    kept: Mutex<Kept>,
    /// By their numbers.
    nars: FileCache<Nar>,
    places: FileCache<Place>,
}

/// What this process has got.
#[derive(Debug)]
struct Kept {
    trees: LruCache<u32, Arc<NarTree>>,
    trees_bytes: usize,
    /// Digests of all trees that were ever planned with: another one is another path.
    digests: HashMap<u32, Digest>,
}

/// Where a file is.
#[derive(Debug, Clone, Copy)]
struct Place {
    /// Number of its store path.
    path: u32,
    /// Where its bytes begin in the NAR.
    start: u64,
    len_bytes: u64,
}

/// A file in a NAR.
#[derive(Debug, Clone)]
pub struct NarFile {
    nar: Nar,
    place: Place,
}

#[derive(Debug, Clone)]
enum Nar {
    /// Verified.
    Whole(Arc<HostFile>),
    InPieces(Arc<Pieces>),
}

impl RemoteTree {
    /// The paths `paths` of the store `store_dir`, of which at most `max_open_files` NARs stay open. `control` leads to the
    /// fetcher; a read waits for it as long as `limit`.
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
            kept: Mutex::new(Kept {
                trees: LruCache::unbounded(),
                trees_bytes: 0,
                digests: HashMap::new(),
            }),
            nars: FileCache::new(max_open_files),
            places: FileCache::new(PLACES_MAX),
        }
    }

    /// A new connection to the fetcher, for a process that is about to be started.
    ///
    /// # Errors
    /// No descriptors are left, or the fetcher has ended.
    pub fn connect(&self) -> io::Result<Connection> {
        let (near, far) = Connection::pair()?;
        // The fetcher does not wait for one who does not read.
        far.set_nonblocking(true)?;
        let control = self.control.lock().unwrap_or_else(PoisonError::into_inner);
        let control = control.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        control.hand_over(&far)?;
        Ok(near)
    }

    /// From now on this process asks over `connection`. A second call does nothing.
    pub fn attach(&self, connection: Connection) {
        let channel = Channel::new(connection, self.limit);
        let _ = self.channel.set(Arc::new(channel));
    }

    /// From now on this process can make no further connections. The fetcher ends when no process can.
    pub fn forget_control(&self) {
        *self.control.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Whether it has the store path `name`.
    pub fn has(&self, name: &[u8]) -> bool {
        self.numbers.contains_key(name)
    }

    /// How many answers of the fetcher this process has had.
    pub fn arrivals(&self) -> u64 {
        self.channel.get().map_or(0, |channel| channel.arrivals())
    }

    /// Waits until there have been other than `seen` answers, `limit` at most; says whether there have.
    pub fn wait_for_arrival(&self, seen: u64, limit: Duration) -> bool {
        let channel = self.channel.get();
        channel.is_some_and(|channel| channel.wait_for_arrival(seen, limit))
    }

    /// Makes sure that the tree of the store path that `path` is in is at hand.
    pub(super) fn prepare(&self, path: &[u8], mode: IoMode) -> Result<(), SourceError> {
        let (number, _) = self.split(path)?;
        self.tree(number, mode).map(drop)
    }

    /// What lies at `path`.
    pub(super) fn stat(&self, path: &[u8]) -> Result<Stat, SourceError> {
        let (number, inside) = self.split(path)?;
        let tree = self.tree(number, IoMode::Blocking)?;
        tree.stat(inside).ok_or_else(|| self.not_found(path))
    }

    /// The target of the symlink at `path`; empty if it is none.
    pub(super) fn target(&self, path: &[u8]) -> Result<Vec<u8>, SourceError> {
        let (number, inside) = self.split(path)?;
        let tree = self.tree(number, IoMode::Blocking)?;
        match tree.node(inside) {
            Some(NarNode::Symlink { target }) => Ok(target.to_vec()),
            _ => Ok(Vec::new()),
        }
    }

    /// The entries of the directory at `path`.
    pub(super) fn list(&self, path: &[u8]) -> Result<Listing, SourceError> {
        let (number, inside) = self.split(path)?;
        let tree = self.tree(number, IoMode::Blocking)?;
        tree.list(inside).ok_or_else(|| self.not_found(path))
    }

    /// The regular file at `path()`, whose NAR has been verified, or comes in pieces; found without its path if `id` was asked for lately.
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

    fn place(&self, path: &[u8], mode: IoMode) -> Result<Place, SourceError> {
        let (number, inside) = self.split(path)?;
        let tree = self.tree(number, mode)?;
        let Some(NarNode::Regular {
            size_bytes, offset, ..
        }) = tree.node(inside)
        else {
            return Err(self.not_found(path));
        };
        Ok(Place {
            path: number,
            start: offset,
            len_bytes: size_bytes,
        })
    }

    /// Its path for messages.
    pub(super) fn display_path(&self, path: &[u8]) -> PathBuf {
        use std::os::unix::ffi::OsStrExt;
        self.store_dir.join(std::ffi::OsStr::from_bytes(path))
    }

    /// The number of the store path that `path` is in, and the rest.
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
        let wanted = Wanted {
            part: Part::Tree,
            path: number,
        };
        let Found::File { file, .. } = self.ask(wanted, mode)? else {
            return Err(self.failed(number, "a tree does not come in pieces".to_owned()));
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

    /// The NAR of a path whose tree is known.
    fn nar(&self, number: u32, mode: IoMode) -> Result<Nar, SourceError> {
        let id = FileId(number.into());
        if let Some(nar) = self.nars.get(id).filter(Nar::is_usable) {
            return Ok(nar);
        }
        let wanted = Wanted {
            part: Part::Nar,
            path: number,
        };
        let found = self.ask(wanted, mode)?;
        let planned = self.lock().digests.get(&number).copied();
        let planned = planned.ok_or_else(|| self.contradicted(number))?;
        let nar = match found {
            Found::File { digest, .. } if digest != planned => {
                return Err(self.contradicted(number));
            }
            Found::File { file, .. } => Nar::Whole(self.whole(number, file)?),
            Found::InPieces => Nar::InPieces(self.pieces(number, planned)?),
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
        let reason = || "this process cannot ask for it to be fetched".to_owned();
        let channel = self.channel.get();
        channel.ok_or_else(|| self.failed(number, reason()))
    }

    fn ask(&self, wanted: Wanted, mode: IoMode) -> Result<Found, SourceError> {
        let channel = self.channel(wanted.path)?;
        channel.get(wanted, mode).map_err(|none| match none {
            NoAnswer::NotYet => SourceError::WouldBlock(Awaits::Fetch),
            NoAnswer::Failed(reason) => self.failed(wanted.path, reason),
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

    /// What is kept is whole between any two statements.
    fn lock(&self) -> MutexGuard<'_, Kept> {
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
            Nar::Whole(file) => file.read_into(to, start, len_bytes, mode),
            Nar::InPieces(pieces) => pieces.read_into(to, start, len_bytes, mode),
        }
    }

    pub(super) fn read_ahead(&self, offset: u64, len_bytes: u64) -> Result<(), SourceError> {
        let start = self.place.start + offset;
        match &self.nar {
            Nar::Whole(file) => file.read_ahead(start, len_bytes),
            Nar::InPieces(pieces) => pieces.read_ahead(start, len_bytes),
        }
    }
}

impl Nar {
    fn path(&self) -> &Path {
        match self {
            Self::Whole(file) => file.path(),
            Self::InPieces(pieces) => pieces.shown(),
        }
    }

    /// Whether it need not be asked for again.
    fn is_usable(&self) -> bool {
        match self {
            Self::Whole(file) => file.is_usable(),
            Self::InPieces(_) => true,
        }
    }
}

/// A packed tree. Other processes may hold the same open file, so its position must not matter.
fn read_packed(file: &File) -> io::Result<Vec<u8>> {
    let len_bytes = file.metadata()?.len().min(PACKED_MAX_BYTES as u64);
    let mut packed = vec![0; usize::try_from(len_bytes).map_err(io::Error::other)?];
    file.read_exact_at(&mut packed, 0)?;
    Ok(packed)
}
