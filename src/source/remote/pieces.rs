//! A NAR fetched in pieces from a trusted cache, and not verified until it is complete.

use std::fs::File;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::channel::{Channel, NoAnswer};
use super::protocol::{Digest, FetchRequest, Fetched, NOT_VERIFIED, PathPart, pieces_of};
use crate::source::host::HostFile;
use crate::source::{Awaits, Destination, IoMode, SourceError};

/// The pieces of a NAR that this process may read.
#[derive(Debug)]
pub(super) struct Pieces {
    channel: Arc<Channel>,
    /// Number of the store path, and its name for messages.
    path: u32,
    shown: PathBuf,
    nar_size: u64,
    /// Digest of the tree that the path was planned with.
    digest: Digest,
    held: Mutex<HeldPieces>,
}

/// The file, and which of its pieces are available.
#[derive(Debug, Default)]
struct HeldPieces {
    file: Option<Arc<HostFile>>,
    /// Indexed by piece number.
    here: Vec<bool>,
}

impl Pieces {
    /// Requests pieces over `channel`. `shown` is for messages, `digest` is that of the tree that the path was planned with.
    pub(super) fn new(
        channel: Arc<Channel>,
        path: u32,
        shown: PathBuf,
        nar_size: u64,
        digest: Digest,
    ) -> Self {
        Self {
            channel,
            path,
            shown,
            nar_size,
            digest,
            held: Mutex::default(),
        }
    }

    /// Returns the store path, for messages.
    pub(super) fn shown(&self) -> &Path {
        &self.shown
    }

    /// Reads the bytes `offset..offset + len_bytes` of the NAR into `to`.
    pub(super) fn read_into(
        &self,
        to: &mut Destination<'_>,
        offset: u64,
        len_bytes: u64,
        mode: IoMode,
    ) -> Result<(), SourceError> {
        if len_bytes == 0 {
            return Ok(());
        }
        let file = self.file_with(offset, len_bytes, mode)?;
        file.read_into(to, offset, len_bytes, mode)
    }

    /// Has a range fetched and read into the page cache. Waits for the fetch, but not for the read.
    pub(super) fn read_ahead(&self, offset: u64, len_bytes: u64) -> Result<(), SourceError> {
        if len_bytes == 0 {
            return Ok(());
        }
        let file = self.file_with(offset, len_bytes, IoMode::Blocking)?;
        file.read_ahead(offset, len_bytes)
    }

    /// Returns a file with the bytes `offset..offset + len_bytes` of the NAR, which must not be empty.
    fn file_with(
        &self,
        offset: u64,
        len_bytes: u64,
        mode: IoMode,
    ) -> Result<Arc<HostFile>, SourceError> {
        let pieces = pieces_of(offset..offset.saturating_add(len_bytes));
        loop {
            // A separate statement, because the lock would be held in the arms of the match.
            let found = self.lock().with(pieces.clone(), self.nar_size);
            match found {
                Ok(file) => return Ok(file),
                Err(missing) => self.fetch(&missing, mode)?,
            }
        }
    }

    /// Requests all missing pieces, and waits for the first according to `mode`.
    fn fetch(&self, missing: &[u32], mode: IoMode) -> Result<(), SourceError> {
        let [first, others @ ..] = missing else {
            return Ok(());
        };
        for piece in others {
            match self.ask(*piece, IoMode::Local) {
                Err(SourceError::WouldBlock(_)) => {}
                done => done?,
            }
        }
        self.ask(*first, mode)
    }

    fn ask(&self, piece: u32, mode: IoMode) -> Result<(), SourceError> {
        let request = FetchRequest {
            part: PathPart::Piece(piece),
            path: self.path,
        };
        match self.channel.get(request, mode) {
            Ok(Fetched::File { digest, file }) => self.take(piece, digest, file),
            // An answer to another request; the next read asks again.
            Ok(Fetched::InPieces) => Err(self.failed("the fetcher answered another request")),
            Err(NoAnswer::NotYet) => Err(SourceError::WouldBlock(Awaits::Fetch)),
            Err(NoAnswer::Failed(reason)) => Err(self.failed(&reason)),
        }
    }

    /// Stores a file with `piece`, or with the whole NAR.
    fn take(&self, piece: u32, digest: Digest, file: File) -> Result<(), SourceError> {
        let file = HostFile::of_open(OwnedFd::from(file), self.shown.clone())?;
        if digest == NOT_VERIFIED {
            self.lock().take_piece(piece, file.while_written());
            return Ok(());
        }
        if digest != self.digest || file.len_bytes() != self.nar_size {
            let path = self.shown.clone();
            return Err(SourceError::Contradicted { path });
        }
        let count = pieces_of(0..self.nar_size).len();
        *self.lock() = HeldPieces {
            file: Some(Arc::new(file)),
            here: vec![true; count],
        };
        Ok(())
    }

    fn failed(&self, reason: &str) -> SourceError {
        SourceError::Fetch {
            path: self.shown.clone(),
            reason: reason.into(),
        }
    }

    /// Every statement leaves the state consistent, so a poisoned lock is usable.
    fn lock(&self) -> MutexGuard<'_, HeldPieces> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl HeldPieces {
    /// Returns the file if it has all of `pieces`, otherwise the missing ones. A file shorter than the NAR has been revoked.
    fn with(&mut self, pieces: Range<u32>, nar_size: u64) -> Result<Arc<HostFile>, Vec<u32>> {
        let is_good = |file: &&Arc<HostFile>| {
            let is_whole = file.now().is_some_and(|(_, len)| len >= nar_size);
            file.is_usable() && is_whole
        };
        let Some(file) = self.file.as_ref().filter(is_good) else {
            *self = Self::default();
            return Err(pieces.collect());
        };
        let is_here = |piece: &u32| self.here.get(*piece as usize) == Some(&true);
        let missing: Vec<u32> = pieces.filter(|piece| !is_here(piece)).collect();
        match missing.is_empty() {
            true => Ok(Arc::clone(file)),
            false => Err(missing),
        }
    }

    /// A new fetcher may use another file. The pieces known so far are not in that file, so they are forgotten.
    fn take_piece(&mut self, piece: u32, file: HostFile) {
        let identity = |file: &HostFile| file.now().map(|(identity, _)| identity);
        let held = self.file.as_deref().and_then(identity);
        if held.is_none() || held != identity(&file) {
            *self = Self {
                file: Some(Arc::new(file)),
                here: Vec::new(),
            };
        }
        let index = piece as usize;
        if self.here.len() <= index {
            self.here.resize(index + 1, false);
        }
        self.here[index] = true;
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;
    use std::time::Duration;

    use super::*;
    use crate::source::remote::protocol::{Answer, Connection, PIECE_BYTES};

    const SIZE: u64 = 3 * PIECE_BYTES + 5;
    const DIGEST: Digest = [7; 32];

    fn pieces(connection: Connection) -> Arc<Pieces> {
        let channel = Arc::new(Channel::new(connection, Duration::from_secs(5)));
        Arc::new(Pieces::new(channel, 4, "path".into(), SIZE, DIGEST))
    }

    fn file(byte: u8) -> File {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&vec![byte; usize::try_from(SIZE).unwrap()], 0)
            .unwrap();
        file
    }

    /// Reads across the boundary of two pieces.
    fn read(pieces: &Pieces, mode: IoMode) -> Result<[u8; 2], SourceError> {
        let mut bytes = [0; 2];
        let mut to = Destination::from(&mut bytes[..]);
        let read = pieces.read_into(&mut to, PIECE_BYTES - 1, 2, mode);
        drop(to);
        read.map(|()| bytes)
    }

    fn requests(far: &Connection, count: usize) -> Vec<FetchRequest> {
        let next = |_| far.next_request().unwrap().unwrap();
        let mut all: Vec<FetchRequest> = (0..count).map(next).collect();
        all.sort_by_key(|request| match request.part {
            PathPart::Piece(piece) => piece,
            _ => u32::MAX,
        });
        all
    }

    fn answer(far: &Connection, request: FetchRequest, digest: Digest, file: &File) {
        let file = file.try_clone().unwrap();
        let found = Fetched::File { digest, file };
        far.answer(&Answer::Here { request, found }).unwrap();
    }

    #[test]
    fn pieces_are_read_from_one_file_when_all_have_arrived() {
        let (near, far) = Connection::pair().unwrap();
        let pieces = pieces(near);
        let waits = read(&pieces, IoMode::Local);
        assert!(matches!(waits, Err(SourceError::WouldBlock(Awaits::Fetch))));
        // Both are requested before the first is waited for.
        let requested = requests(&far, 2);
        assert_eq!(requested[0].part, PathPart::Piece(0));
        let (old, new) = (file(1), file(2));
        let reader = {
            let pieces = Arc::clone(&pieces);
            std::thread::spawn(move || read(&pieces, IoMode::Blocking).unwrap())
        };
        answer(&far, requested[0], NOT_VERIFIED, &old);
        // From another fetcher, whose file does not have the earlier pieces.
        answer(&far, requested[1], NOT_VERIFIED, &new);
        loop {
            let again = far.next_request().unwrap().unwrap();
            answer(&far, again, NOT_VERIFIED, &new);
            if again.part == requested[0].part {
                break;
            }
        }
        assert_eq!(reader.join().unwrap(), [2, 2]);
        assert_eq!(read(&pieces, IoMode::Local).unwrap(), [2, 2]);
        // A truncated file must not be read any more.
        new.set_len(0).unwrap();
        assert!(read(&pieces, IoMode::Local).is_err());
    }

    #[test]
    fn a_whole_nar_replaces_all_pieces_if_its_tree_matches() {
        for (digest, is_right) in [(DIGEST, true), ([8; 32], false)] {
            let (near, far) = Connection::pair().unwrap();
            let pieces = pieces(near);
            let whole = file(3);
            let reader = {
                let pieces = Arc::clone(&pieces);
                std::thread::spawn(move || read(&pieces, IoMode::Blocking))
            };
            requests(&far, 2)
                .into_iter()
                .for_each(|request| answer(&far, request, digest, &whole));
            match reader.join().unwrap() {
                Ok(bytes) => assert!(is_right && bytes == [3, 3]),
                Err(error) => {
                    assert!(!is_right && matches!(error, SourceError::Contradicted { .. }));
                }
            }
        }
    }
}
