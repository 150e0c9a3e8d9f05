//! The cache directory: what was fetched, kept for the next start and for other servers.
//!
//! | directory | file | what it has |
//! |---|---|---|
//! | `narinfos` | digits of the store path | a line with the cache that it came from, a line with who vouches for it, then the narinfo as it was fetched |
//! | `trees` | NAR hash and `.claimed` | a packed tree that a listing gave; nobody vouches for it |
//! | | `.verified` | a packed tree that a NAR was found to have |
//! | | `.contradicted` | why the listing and the NAR do not fit |
//! | `nars` | NAR hash | an uncompressed NAR, verified |
//! | `partial` | NAR hash, `-`, and a hash of what is believed | a NAR of which pieces have come; see `partial.rs` |
//! | `locks` | NAR hash | locked while somebody fetches it |
//! | `users` | any | NAR hashes that a server needs, one a line; locked as long as it lives |
//! | `tmp` | any | being written; locked as long as somebody does |
//!
//! A file gets its name when it is complete, so a kill or a full disk leaves nothing torn. A tree that was handed out never
//! changes: a guest may know inodes of it.

mod error;
mod partial;
mod room;
mod staged;
mod users;

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Timespec, Timestamps, flock, futimens};
use sha2::{Digest as _, Sha256};

pub use error::DirError;
pub use partial::PartialNar;
pub use room::{KeptNar, Removed, Usage};
pub use staged::Staged;
pub use users::User;

use crate::closure::narinfo::NARINFO_MAX_BYTES;
use crate::closure::nix32;
use crate::source::nar::PACKED_MAX_BYTES;
use crate::source::remote::protocol::Digest;

const NARINFOS: &str = "narinfos";
const TREES: &str = "trees";
const NARS: &str = "nars";
const PARTIAL: &str = "partial";
const LOCKS: &str = "locks";
const USERS: &str = "users";
const TMP: &str = "tmp";
/// Stands for the store of a host that has none.
const EMPTY: &str = "empty";

/// What a file of `narinfos` begins with, before the URL of the cache.
const NARINFO_HEAD: &str = "lazystore narinfo 1 ";

/// A SHA-256 of a NAR.
pub type NarHash = [u8; 32];

/// The cache directory. Clones are the same.
#[derive(Debug, Clone)]
pub struct CacheDir {
    path: PathBuf,
}

/// A narinfo that was fetched before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredNarinfo {
    /// URL of the cache that it came from.
    pub from: String,
    /// Who vouched for it when it was fetched: a public key, or what `Keys` have instead.
    pub voucher: String,
    /// Its text.
    pub text: Vec<u8>,
}

/// What there is of a path's tree.
#[derive(Debug)]
pub enum StoredTree {
    /// A listing says so.
    Claimed(File),
    /// Its NAR has it.
    Verified(File),
}

impl StoredTree {
    /// The packed tree, claimed or verified.
    pub fn into_file(self) -> File {
        match self {
            Self::Claimed(file) | Self::Verified(file) => file,
        }
    }
}

impl CacheDir {
    /// Opens the directory `path`, which is made if it is not there, for its owner alone.
    ///
    /// # Errors
    /// It cannot be made or written to.
    pub fn open(path: &Path) -> Result<Self, DirError> {
        let path = std::path::absolute(path).map_err(DirError::host("use", path))?;
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700);
        for part in [NARINFOS, TREES, NARS, PARTIAL, LOCKS, USERS, TMP, EMPTY] {
            let dir = path.join(part);
            builder.create(&dir).map_err(DirError::host("make", &dir))?;
        }
        let dir = Self { path };
        // What processes that were killed have left.
        dir.remove_stale(TMP);
        dir.remove_stale(USERS);
        // Finds out now that it cannot be written to.
        dir.stage()?;
        Ok(dir)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// An empty directory.
    pub fn empty_dir(&self) -> PathBuf {
        self.path.join(EMPTY)
    }

    /// The narinfo of the store path whose base name begins with `digits`, if it was fetched before.
    pub fn narinfo(&self, digits: &str) -> Option<StoredNarinfo> {
        let mut bytes = Vec::new();
        let limit = NARINFO_MAX_BYTES as u64 + 4096;
        let file = File::open(self.path.join(NARINFOS).join(digits)).ok()?;
        file.take(limit).read_to_end(&mut bytes).ok()?;
        let text = bytes.strip_prefix(NARINFO_HEAD.as_bytes())?;
        let (from, text) = line(text)?;
        let (voucher, text) = line(text)?;
        Some(StoredNarinfo {
            from,
            voucher,
            text: text.to_vec(),
        })
    }

    /// Keeps a narinfo, instead of another one perhaps.
    ///
    /// # Errors
    /// The directory cannot be written to.
    pub fn keep_narinfo(&self, digits: &str, narinfo: &StoredNarinfo) -> Result<(), DirError> {
        let head = format!("{NARINFO_HEAD}{}\n{}\n", narinfo.from, narinfo.voucher);
        let bytes = [head.as_bytes(), &narinfo.text].concat();
        let path = self.path.join(NARINFOS).join(digits);
        // If it were cut short it would be fetched again.
        self.write(&bytes, &path)?.keep(&path)
    }

    /// The tree of a NAR, if there is one.
    pub fn tree(&self, hash: &NarHash) -> Option<StoredTree> {
        let verified = File::open(self.tree_file(hash, "verified"));
        let claimed = || File::open(self.tree_file(hash, "claimed"));
        match verified {
            Ok(file) => Some(StoredTree::Verified(file)),
            Err(_) => claimed().ok().map(StoredTree::Claimed),
        }
    }

    /// Keeps what a listing says, unless something is known already. The NAR must be [locked](Self::lock).
    ///
    /// # Errors
    /// The directory cannot be written to.
    pub fn keep_claimed(&self, hash: &NarHash, packed: &[u8]) -> Result<(), DirError> {
        match self.tree(hash) {
            Some(_) => Ok(()),
            None => self.keep(packed, &self.tree_file(hash, "claimed")),
        }
    }

    /// Keeps the tree that a NAR was found to have, or says that it contradicts the one that was handed out. The NAR must be
    /// [locked](Self::lock).
    ///
    /// # Errors
    /// The directory cannot be written to or read.
    pub fn settle_tree(&self, hash: &NarHash, packed: &[u8]) -> Result<Settled, DirError> {
        let claimed = self.tree_file(hash, "claimed");
        let verified = self.tree_file(hash, "verified");
        match self.tree(hash) {
            None => self.keep(packed, &verified)?,
            Some(tree) => {
                let mut before = Vec::new();
                tree.into_file()
                    .read_to_end(&mut before)
                    .map_err(DirError::host("read", &claimed))?;
                if before != packed {
                    return Ok(Settled::Contradicted);
                }
                match fs::rename(&claimed, &verified) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        return Err(DirError::host("rename", &claimed)(error));
                    }
                    _ => {}
                }
            }
        }
        Ok(Settled::Same)
    }

    /// Remembers that nothing of a NAR must be served, and why.
    ///
    /// # Errors
    /// The directory cannot be written to.
    pub fn contradict(&self, hash: &NarHash, reason: &str) -> Result<(), DirError> {
        self.keep(reason.as_bytes(), &self.tree_file(hash, "contradicted"))
    }

    /// Why nothing of a NAR must be served, if so.
    pub fn contradiction(&self, hash: &NarHash) -> Option<String> {
        fs::read_to_string(self.tree_file(hash, "contradicted")).ok()
    }

    /// Digest of the tree that a NAR was found to have, if that is known.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn verified_digest(&self, hash: &NarHash) -> Result<Option<Digest>, DirError> {
        let Some(StoredTree::Verified(file)) = self.tree(hash) else {
            return Ok(None);
        };
        let mut packed = Vec::new();
        file.take(PACKED_MAX_BYTES as u64)
            .read_to_end(&mut packed)
            .map_err(DirError::host("read", &self.tree_file(hash, "verified")))?;
        Ok(Some(Sha256::digest(&packed).into()))
    }

    /// A NAR of `nar_size` bytes, open, if it is there. Opening it makes it the last one to be removed.
    pub fn nar(&self, hash: &NarHash, nar_size: u64) -> Option<File> {
        let file = File::open(self.nar_file(hash)).ok()?;
        // After a power failure there may be a name without all of its bytes.
        if file.metadata().ok()?.len() != nar_size {
            return None;
        }
        touch(&file);
        Some(file)
    }

    /// Gives a NAR that was verified its name.
    ///
    /// # Errors
    /// The directory cannot be written to.
    pub fn keep_nar(&self, hash: &NarHash, staged: Staged) -> Result<(), DirError> {
        staged.keep_synced(&self.nar_file(hash))
    }

    /// A file to write to.
    ///
    /// # Errors
    /// The directory cannot be written to.
    pub fn stage(&self) -> Result<Staged, DirError> {
        Staged::new(&self.path.join(TMP))
    }

    /// Waits until nobody else fetches this NAR, and keeps others from it as long as the file is open.
    ///
    /// # Errors
    /// The directory cannot be written to.
    pub fn lock(&self, hash: &NarHash) -> Result<File, DirError> {
        self.lock_file(&self.path.join(LOCKS).join(nix32(hash)))
    }

    fn lock_file(&self, path: &Path) -> Result<File, DirError> {
        let file = File::create(path).map_err(DirError::host("open", path))?;
        loop {
            match flock(&file, FlockOperation::LockExclusive) {
                Ok(()) => return Ok(file),
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(DirError::host("lock", path)(errno.into())),
            }
        }
    }

    fn keep(&self, bytes: &[u8], path: &Path) -> Result<(), DirError> {
        self.write(bytes, path)?.keep_synced(path)
    }

    /// What is to be at `path`, without its name.
    fn write(&self, bytes: &[u8], path: &Path) -> Result<Staged, DirError> {
        let staged = self.stage()?;
        let written = staged.file().write_all_at(bytes, 0);
        written.map_err(DirError::host("write", path))?;
        Ok(staged)
    }

    fn tree_file(&self, hash: &NarHash, state: &str) -> PathBuf {
        self.path
            .join(TREES)
            .join(format!("{}.{state}", nix32(hash)))
    }

    fn nar_file(&self, hash: &NarHash) -> PathBuf {
        self.path.join(NARS).join(nix32(hash))
    }

    /// Removes what a process that was killed has left: nobody locks it.
    fn remove_stale(&self, part: &str) {
        let Ok(entries) = fs::read_dir(self.path.join(part)) else {
            return;
        };
        for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
            let unused = File::open(&path)
                .is_ok_and(|file| flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok());
            if unused {
                let _ = fs::remove_file(&path);
            }
        }
    }
}

/// The first line of a text, and the rest.
fn line(text: &[u8]) -> Option<(String, &[u8])> {
    let end = text.iter().position(|byte| *byte == b'\n')?;
    let line = String::from_utf8(text[..end].to_vec()).ok()?;
    Some((line, &text[end + 1..]))
}

/// Whether a NAR has the tree that was handed out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    /// It has, or none was handed out.
    Same,
    /// It has another one.
    Contradicted,
}

/// Sets the time of the last use. Not the mtime, by which readers tell that a file has changed.
fn touch(file: &File) {
    let keep = Timespec {
        tv_sec: 0,
        tv_nsec: libc::UTIME_OMIT,
    };
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: libc::UTIME_NOW,
    };
    let times = Timestamps {
        last_access: now,
        last_modification: keep,
    };
    let _ = futimens(file.as_fd(), &times);
}
