//! The cache directory: fetched files, kept for later starts and other servers.
//!
//! | directory | file name | content |
//! |---|---|---|
//! | `narinfos` | digits of the store path | a line with the cache that it came from, a line with its voucher, then the narinfo as fetched |
//! | `trees` | NAR hash and `.claimed` | a packed tree from a listing, not verified |
//! | | `.verified` | a packed tree from a verified NAR |
//! | | `.contradicted` | how the listing and the NAR differ |
//! | `nars` | NAR hash | an uncompressed NAR, verified |
//! | `partial` | NAR hash, `-`, and a hash of the origin | a partly fetched NAR; see `partial.rs` |
//! | `locks` | NAR hash | locked while a process fetches it |
//! | `users` | any | NAR hashes that a server needs, one a line; locked while the server lives |
//! | `tmp` | any | a file being written; locked by its writer |
//!
//! A file gets its final name when it is complete, so a kill or a full disk never leaves a partial file there. A tree that was
//! handed out never changes, because guests may have cached its inode numbers.

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
pub use room::{DiskUsage, KeptNar, Removed};
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
/// An empty directory, which takes the place of the host's store if there is none.
const EMPTY: &str = "empty";

/// The header of a file in `narinfos`, before the URL of the cache.
const NARINFO_HEAD: &str = "lazystore narinfo 1 ";

/// A SHA-256 of a NAR.
pub type NarHash = [u8; 32];

/// The cache directory. Clones refer to the same directory.
#[derive(Debug, Clone)]
pub struct CacheDir {
    path: PathBuf,
}

/// A narinfo that was fetched before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredNarinfo {
    /// URL of the cache that it came from.
    pub from: String,
    /// Who vouched for it when it was fetched: a public key, or one of the fixed words of `Keys`.
    pub voucher: String,
    /// Its text.
    pub text: Vec<u8>,
}

/// The kept tree of a path.
#[derive(Debug)]
pub enum StoredTree {
    /// From a listing, not verified.
    Claimed(File),
    /// From a verified NAR.
    Verified(File),
}

impl StoredTree {
    /// Returns the packed tree, claimed or verified.
    pub fn into_file(self) -> File {
        match self {
            Self::Claimed(file) | Self::Verified(file) => file,
        }
    }
}

impl CacheDir {
    /// Opens the directory `path`. Creates it if necessary, accessible to the owner only.
    ///
    /// # Errors
    /// The directory cannot be created or written to.
    pub fn open(path: &Path) -> Result<Self, DirError> {
        let path = std::path::absolute(path).map_err(DirError::host("use", path))?;
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700);
        for part in [NARINFOS, TREES, NARS, PARTIAL, LOCKS, USERS, TMP, EMPTY] {
            let dir = path.join(part);
            builder.create(&dir).map_err(DirError::host("make", &dir))?;
        }
        let dir = Self { path };
        // Remove what killed processes left behind.
        dir.remove_stale(TMP);
        dir.remove_stale(USERS);
        // Fail now, not later, if the directory is not writable.
        dir.stage()?;
        Ok(dir)
    }

    /// Returns the path of the directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the path of an empty directory.
    pub fn empty_dir(&self) -> PathBuf {
        self.path.join(EMPTY)
    }

    /// Returns the kept narinfo of the store path whose base name begins with `digits`.
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

    /// Keeps a narinfo. Replaces an earlier one.
    ///
    /// # Errors
    /// The directory cannot be written to.
    pub fn keep_narinfo(&self, digits: &str, narinfo: &StoredNarinfo) -> Result<(), DirError> {
        let head = format!("{NARINFO_HEAD}{}\n{}\n", narinfo.from, narinfo.voucher);
        let bytes = [head.as_bytes(), &narinfo.text].concat();
        let path = self.path.join(NARINFOS).join(digits);
        // Not synced: a truncated narinfo is fetched again.
        self.write(&bytes, &path)?.keep(&path)
    }

    /// Returns the kept tree of a NAR.
    pub fn tree(&self, hash: &NarHash) -> Option<StoredTree> {
        let verified = File::open(self.tree_file(hash, "verified"));
        let claimed = || File::open(self.tree_file(hash, "claimed"));
        match verified {
            Ok(file) => Some(StoredTree::Verified(file)),
            Err(_) => claimed().ok().map(StoredTree::Claimed),
        }
    }

    /// Keeps a tree from a listing, unless a tree is kept already. The caller must hold the [lock](Self::lock) of the NAR.
    ///
    /// # Errors
    /// The directory cannot be written to.
    pub fn keep_claimed(&self, hash: &NarHash, packed: &[u8]) -> Result<(), DirError> {
        match self.tree(hash) {
            Some(_) => Ok(()),
            None => self.keep(packed, &self.tree_file(hash, "claimed")),
        }
    }

    /// Keeps the tree of a verified NAR, or reports that it contradicts the tree that was handed out. The caller must hold the
    /// [lock](Self::lock) of the NAR.
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

    /// Records that nothing of a NAR may be served, and why.
    ///
    /// # Errors
    /// The directory cannot be written to.
    pub fn contradict(&self, hash: &NarHash, reason: &str) -> Result<(), DirError> {
        self.keep(reason.as_bytes(), &self.tree_file(hash, "contradicted"))
    }

    /// Returns why nothing of a NAR may be served, if so.
    pub fn contradiction(&self, hash: &NarHash) -> Option<String> {
        fs::read_to_string(self.tree_file(hash, "contradicted")).ok()
    }

    /// Returns the digest of the tree of a verified NAR, if known.
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

    /// Opens a kept NAR of `nar_size` bytes. This counts as use, so the NAR is removed later than others.
    pub fn nar(&self, hash: &NarHash, nar_size: u64) -> Option<File> {
        let file = File::open(self.nar_file(hash)).ok()?;
        // After a power failure the file may be shorter than the NAR.
        if file.metadata().ok()?.len() != nar_size {
            return None;
        }
        touch(&file);
        Some(file)
    }

    /// Moves a verified NAR to its final name.
    ///
    /// # Errors
    /// The directory cannot be written to.
    pub fn keep_nar(&self, hash: &NarHash, staged: Staged) -> Result<(), DirError> {
        staged.keep_synced(&self.nar_file(hash))
    }

    /// Creates a file to write to.
    ///
    /// # Errors
    /// The directory cannot be written to.
    pub fn stage(&self) -> Result<Staged, DirError> {
        Staged::new(&self.path.join(TMP))
    }

    /// Waits until no other process fetches this NAR. The lock is held while the returned file is open.
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

    /// Writes the content of `path` to a staged file.
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

    /// Removes files that no process has locked: killed processes left them behind.
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

/// Returns the first line of a text, and the rest.
fn line(text: &[u8]) -> Option<(String, &[u8])> {
    let end = text.iter().position(|byte| *byte == b'\n')?;
    let line = String::from_utf8(text[..end].to_vec()).ok()?;
    Some((line, &text[end + 1..]))
}

/// Whether the tree of a NAR equals the tree that was handed out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    /// They are equal, or none was handed out.
    Same,
    /// They differ.
    Contradicted,
}

/// Sets the atime, which records the last use. The mtime stays, because readers detect changes of the file by it.
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
