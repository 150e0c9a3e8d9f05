//! Partly fetched NARs.
//!
//! The file holds the fetched pieces at their offsets in the NAR. After the end of the NAR comes one record per fetched piece:
//! its number and its SHA-256. A piece is used only if it matches its record, so a piece that is torn by a kill, a full disk or
//! a power failure is fetched again. The process that writes to the file holds a lock on it.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use sha2::{Digest, Sha256};

use super::{CacheDir, DirError, NarHash, PARTIAL, Staged, touch};
use crate::closure::nix32;
use crate::source::remote::protocol::{PIECE_BYTES, pieces_of};

const HASH_BYTES: usize = 32;
const RECORD_BYTES: usize = 4 + HASH_BYTES;

/// Attempts to lock a file that another server has locked, in case that server is about to end; and the pause between them.
const LOCK_TRIES: u32 = 10;
const LOCK_PAUSE: Duration = Duration::from_millis(50);

/// A NAR that is fetched in pieces.
#[derive(Debug)]
pub struct PartialNar {
    file: File,
    path: PathBuf,
    nar_size: u64,
    state: Mutex<PiecesState>,
    /// Set if the file is private to this process: removes it on drop.
    _staged: Option<Staged>,
}

#[derive(Debug)]
struct PiecesState {
    /// Indexed by piece number.
    pieces: Vec<PieceState>,
    records: u64,
    is_revoked: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PieceState {
    Missing,
    /// Recorded by an earlier process; its hash has not been checked yet.
    Recorded([u8; HASH_BYTES]),
    Here,
}

impl CacheDir {
    /// Returns whether a [`partial`](Self::partial) NAR of this origin exists.
    pub fn has_partial(&self, hash: &NarHash, origin: &str) -> bool {
        self.partial_file(hash, origin).exists()
    }

    /// Opens the NAR of `nar_size` bytes whose pieces come from `origin`, with the pieces fetched earlier. Each origin has a
    /// file of its own. If another server has locked it, the result is a new file that is private to this process.
    ///
    /// # Errors
    /// The directory cannot be written to.
    pub fn partial(
        &self,
        hash: &NarHash,
        nar_size: u64,
        origin: &str,
    ) -> Result<PartialNar, DirError> {
        let path = self.partial_file(hash, origin);
        let fault = DirError::host("write to", &path);
        if let Some(file) = locked(&path).map_err(&fault)? {
            touch(&file);
            return PartialNar::open(file, path.clone(), nar_size).map_err(fault);
        }
        let staged = self.stage()?;
        let path = staged.path().to_owned();
        let fault = DirError::host("write to", &path);
        let file = staged.file().try_clone().map_err(&fault)?;
        let nar = PartialNar::open(file, path.clone(), nar_size).map_err(fault)?;
        Ok(PartialNar {
            _staged: Some(staged),
            ..nar
        })
    }

    /// Moves a complete and verified NAR to its final name.
    ///
    /// # Errors
    /// The directory cannot be written to.
    pub fn keep_partial(&self, hash: &NarHash, nar: &PartialNar) -> Result<(), DirError> {
        let path = self.nar_file(hash);
        // Remove the records after the NAR.
        let done = nar
            .file
            .set_len(nar.nar_size)
            .and_then(|()| nar.file.sync_data())
            .and_then(|()| fs::rename(&nar.path, &path));
        done.map_err(DirError::host("write", &path))
    }

    fn partial_file(&self, hash: &NarHash, origin: &str) -> PathBuf {
        let origin = Sha256::digest(format!("{PIECE_BYTES} {origin}"));
        let name = format!("{}-{}", nix32(hash), nix32(&origin));
        self.path.join(PARTIAL).join(name)
    }
}

/// Opens or creates the file at `path` and locks it. Returns `None` if another process holds the lock.
fn locked(path: &Path) -> io::Result<Option<File>> {
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false);
    for _ in 0..LOCK_TRIES {
        let file = options.open(path)?;
        let is_locked = flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok();
        // The previous owner may have renamed or removed it in the meantime.
        let is_there = fs::metadata(path).is_ok_and(|there| {
            let own = file.metadata();
            own.is_ok_and(|own| (own.dev(), own.ino()) == (there.dev(), there.ino()))
        });
        if is_locked && is_there {
            return Ok(Some(file));
        }
        thread::sleep(LOCK_PAUSE);
    }
    Ok(None)
}

impl PartialNar {
    fn open(file: File, path: PathBuf, nar_size: u64) -> io::Result<Self> {
        let len_bytes = file.metadata()?.len();
        if len_bytes < nar_size {
            file.set_len(nar_size)?;
        }
        let records = len_bytes.saturating_sub(nar_size) / RECORD_BYTES as u64;
        let count = pieces_of(0..nar_size).len();
        let mut pieces = vec![PieceState::Missing; count];
        for index in 0..records {
            let mut record = [0; RECORD_BYTES];
            file.read_exact_at(&mut record, record_start(nar_size, index))?;
            let (number, hash) = record.split_at(4);
            let number = u32::from_le_bytes(number.try_into().map_err(io::Error::other)?);
            if let Some(piece) = pieces.get_mut(number as usize) {
                *piece = PieceState::Recorded(hash.try_into().map_err(io::Error::other)?);
            }
        }
        let state = Mutex::new(PiecesState {
            pieces,
            records,
            is_revoked: false,
        });
        Ok(Self {
            file,
            path,
            nar_size,
            state,
            _staged: None,
        })
    }

    /// Opens the file for reading only.
    ///
    /// # Errors
    /// The file was removed.
    pub fn reader(&self) -> Result<File, DirError> {
        File::open(&self.path).map_err(DirError::host("read", &self.path))
    }

    /// Returns the bytes of a piece, or `None` if there is no such piece.
    pub fn range(&self, piece: u32) -> Option<Range<u64>> {
        let start = u64::from(piece) * PIECE_BYTES;
        let end = self.nar_size.min(start.saturating_add(PIECE_BYTES));
        (start < end).then_some(start..end)
    }

    /// Returns whether the piece was fetched and is intact.
    pub fn has(&self, piece: u32) -> bool {
        let Some(PieceState::Recorded(hash)) = self.state(piece) else {
            return self.state(piece) == Some(PieceState::Here);
        };
        let is_whole = self.hash(piece).is_some_and(|found| found == hash);
        let found = if is_whole {
            PieceState::Here
        } else {
            PieceState::Missing
        };
        self.set(piece, found);
        is_whole
    }

    /// Returns whether the piece is known to be intact, without reading it.
    pub fn is_known(&self, piece: u32) -> bool {
        self.state(piece) == Some(PieceState::Here)
    }

    /// Returns the next missing piece from `first` on, wrapping around at the end.
    pub fn next_missing(&self, first: u32) -> Option<u32> {
        let state = self.lock();
        let count = u32::try_from(state.pieces.len()).unwrap_or(u32::MAX);
        let is_missing = |piece: &u32| state.pieces[*piece as usize] == PieceState::Missing;
        let (before, after) = (0..first.min(count), first.min(count)..count);
        after.chain(before).find(is_missing)
    }

    /// Returns the number of fetched pieces, and of all pieces.
    pub fn progress(&self) -> (usize, usize) {
        let state = self.lock();
        let missing = state
            .pieces
            .iter()
            .filter(|piece| **piece == PieceState::Missing);
        (state.pieces.len() - missing.count(), state.pieces.len())
    }

    /// Writes a whole piece.
    ///
    /// # Errors
    /// The disk is full, or the like.
    pub fn put(&self, piece: u32, bytes: &[u8]) -> Result<(), DirError> {
        let start = u64::from(piece) * PIECE_BYTES;
        let mut record = piece.to_le_bytes().to_vec();
        record.extend(Sha256::digest(bytes));
        let write = || {
            // Locked during both writes: a truncated file must not grow again.
            let mut state = self.lock();
            if state.is_revoked {
                return Err(io::ErrorKind::NotFound.into());
            }
            self.file.write_all_at(bytes, start)?;
            let at = record_start(self.nar_size, state.records);
            self.file.write_all_at(&record, at)?;
            state.records += 1;
            if let Some(piece) = state.pieces.get_mut(piece as usize) {
                *piece = PieceState::Here;
            }
            Ok(())
        };
        write().map_err(DirError::host("write", &self.path))
    }

    /// Truncates and removes the file: processes that have it open can read nothing more from it.
    pub fn revoke(&self) {
        let mut state = self.lock();
        state.is_revoked = true;
        state.pieces.fill(PieceState::Missing);
        if let Err(error) = self.file.set_len(0) {
            tracing::error!("cannot truncate {}: {error}", self.path.display());
        }
        let _ = fs::remove_file(&self.path);
    }

    fn hash(&self, piece: u32) -> Option<[u8; HASH_BYTES]> {
        let range = self.range(piece)?;
        let mut bytes = vec![0; usize::try_from(range.end - range.start).ok()?];
        self.file.read_exact_at(&mut bytes, range.start).ok()?;
        Some(Sha256::digest(&bytes).into())
    }

    fn state(&self, piece: u32) -> Option<PieceState> {
        self.lock().pieces.get(piece as usize).copied()
    }

    fn set(&self, piece: u32, found: PieceState) {
        if let Some(piece) = self.lock().pieces.get_mut(piece as usize) {
            *piece = found;
        }
    }

    /// Every statement leaves the state consistent, so a poisoned lock is usable.
    fn lock(&self) -> MutexGuard<'_, PiecesState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn record_start(nar_size: u64, index: u64) -> u64 {
    nar_size.saturating_add(index.saturating_mul(RECORD_BYTES as u64))
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    const SIZE: u64 = 2 * PIECE_BYTES + 100;
    const HASH: NarHash = [3; 32];

    fn dir() -> (tempfile::TempDir, CacheDir) {
        let temp = tempfile::tempdir().unwrap();
        let dir = CacheDir::open(temp.path()).unwrap();
        (temp, dir)
    }

    fn piece(number: u8, len: u64) -> Vec<u8> {
        vec![number; usize::try_from(len).unwrap()]
    }

    fn has(nar: &PartialNar) -> [bool; 3] {
        [0, 1, 2].map(|piece| nar.has(piece))
    }

    #[test]
    fn pieces_are_kept_and_make_up_the_nar() {
        let (_temp, dir) = dir();
        let nar = dir.partial(&HASH, SIZE, "here").unwrap();
        assert_eq!((has(&nar), nar.range(3)), ([false; 3], None));
        nar.put(2, &piece(2, 100)).unwrap();
        nar.put(0, &piece(0, PIECE_BYTES)).unwrap();
        drop(nar);
        assert!(!dir.has_partial(&HASH, "elsewhere"));
        let nar = dir.partial(&HASH, SIZE, "here").unwrap();
        assert!(!nar.is_known(0));
        assert_eq!((nar.next_missing(2), nar.progress()), (Some(1), (2, 3)));
        assert_eq!(has(&nar), [true, false, true]);
        nar.put(1, &piece(1, PIECE_BYTES)).unwrap();
        assert_eq!(nar.next_missing(0), None);
        dir.keep_partial(&HASH, &nar).unwrap();
        let mut whole = Vec::new();
        let mut file = dir.nar(&HASH, SIZE).unwrap();
        file.read_to_end(&mut whole).unwrap();
        let expected = [piece(0, PIECE_BYTES), piece(1, PIECE_BYTES), piece(2, 100)];
        assert!(whole == expected.concat());
    }

    #[test]
    fn torn_pieces_are_missing() {
        let (_temp, dir) = dir();
        let nar = dir.partial(&HASH, SIZE, "here").unwrap();
        for number in 0..3_u8 {
            let range = nar.range(number.into()).unwrap();
            nar.put(number.into(), &piece(9, range.end - range.start))
                .unwrap();
        }
        let path = nar.path.clone();
        drop(nar);
        let whole = fs::read(&path).unwrap();
        let size = usize::try_from(SIZE).unwrap();
        // The last record is truncated, or zeroed; or a byte of the piece is changed.
        let mut zeros = whole.clone();
        zeros[size + 2 * RECORD_BYTES..].fill(0);
        let mut other = whole.clone();
        other[size - 1] ^= 1;
        for bytes in [&whole[..whole.len() - 1], &zeros[..], &other[..]] {
            fs::write(&path, bytes).unwrap();
            let nar = dir.partial(&HASH, SIZE, "here").unwrap();
            let expected = [bytes != &zeros[..], true, false];
            assert_eq!(has(&nar), expected);
            // After it is fetched again, the piece is present.
            nar.put(2, &piece(2, 100)).unwrap();
            drop(nar);
            let nar = dir.partial(&HASH, SIZE, "here").unwrap();
            assert!(nar.has(2));
        }
        for len in [0, 5, size] {
            fs::write(&path, &whole[..len]).unwrap();
            let nar = dir.partial(&HASH, SIZE, "here").unwrap();
            assert_eq!(has(&nar), [false; 3]);
        }
    }

    #[test]
    fn servers_write_to_separate_files_and_a_revoked_file_is_empty() {
        let (_temp, dir) = dir();
        let one = dir.partial(&HASH, SIZE, "here").unwrap();
        let other = dir.partial(&HASH, SIZE, "here").unwrap();
        one.put(0, &piece(1, PIECE_BYTES)).unwrap();
        assert!(!other.has(0));
        let reader = one.reader().unwrap();
        assert!(reader.write_at(b"x", 0).is_err(), "the file is read-only");
        one.revoke();
        assert!(one.put(2, &piece(1, 100)).is_err() && !one.has(0));
        assert_eq!(reader.metadata().unwrap().len(), 0);
        assert!(!dir.has_partial(&HASH, "here"));
        assert_eq!(other.reader().unwrap().metadata().unwrap().len(), SIZE);
    }
}
