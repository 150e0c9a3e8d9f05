//! Store paths held against garbage collection.
//!
//! Nix takes for in use what `/proc/*/fd` of any process leads to, and all that it refers to (`findRuntimeRoots` in
//! Nix's `src/libstore/gc.cc`): a descriptor that can do nothing else (`O_PATH`) is enough, and it goes with the process.
//!
//! It compares those links with the *logical* store directory, so this does not work for a chroot store. There the way
//! is that of Nix's own processes, a file of temporary roots: `temproots/PID` in the state directory, store paths each
//! ended by a NUL, locked as long as they count (`addTempRoot` and `findTempRoots`, ibidem). One that a killed process
//! left is not locked, and the next collection removes it.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{FlockOperation, Mode, OFlags, flock};

/// Store paths are in use as long as this lives.
#[derive(Debug, Default)]
pub struct Pins {
    held: Mutex<Held>,
    /// The file with temporary roots.
    file: Option<PathBuf>,
}

#[derive(Debug, Default)]
struct Held {
    fds: Vec<OwnedFd>,
    temporary_roots: Option<TemporaryRoots>,
}

impl Pins {
    /// Opens those of `names` that exist in `dir`, `max` at most.
    pub fn hold<'a>(dir: &Path, names: impl Iterator<Item = &'a [u8]>, max: usize) -> Self {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        // The code that reads the store reports better why it cannot be opened.
        let fds = rustix::fs::open(dir, flags | OFlags::DIRECTORY, Mode::empty()).map(|dir| {
            let pin = |name: &[u8]| {
                rustix::fs::openat(&dir, name, flags | OFlags::NOFOLLOW, Mode::empty()).ok()
            };
            names.take(max).filter_map(pin).collect()
        });
        let held = Held {
            fds: fds.unwrap_or_default(),
            temporary_roots: None,
        };
        Self {
            held: held.into(),
            file: None,
        }
    }

    /// Tells the Nix whose state directory is `state_dir` that `paths`, logical store paths, are in use.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn register(&mut self, state_dir: &Path, paths: &[Vec<u8>]) -> io::Result<()> {
        let roots = TemporaryRoots::write(state_dir, paths)?;
        self.file = Some(roots.path.clone());
        self.held().temporary_roots = Some(roots);
        Ok(())
    }

    /// The file with temporary roots; it is removed when this is dropped.
    pub fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// How many descriptors are held.
    pub fn open_files(&self) -> usize {
        self.held().fds.len()
    }

    /// In a process that was forked from the one that holds them: closes what leads there, which that one holds on to.
    pub fn leave(&self) {
        *self.held() = Held::default();
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The file, which is removed by the process that made it and by no other that was forked from it.
#[derive(Debug)]
struct TemporaryRoots {
    file: File,
    path: PathBuf,
    owner: u32,
}

impl TemporaryRoots {
    fn write(state_dir: &Path, paths: &[Vec<u8>]) -> io::Result<Self> {
        let dir = state_dir.join("temproots");
        fs::create_dir_all(&dir)?;
        let owner = std::process::id();
        let path = dir.join(owner.to_string());
        // Of another process that had this number: two cannot have it.
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = loop {
            let mut options = File::options();
            options.read(true).write(true).create(true).truncate(false);
            let file = options.mode(0o600).open(&path)?;
            flock(&file, FlockOperation::LockExclusive)?;
            // A collection that took the file for a stale one has written to it, and removed it.
            if file.metadata()?.size() == 0 {
                break file;
            }
        };
        let roots: Vec<u8> = paths
            .iter()
            .flat_map(|path| [path, &b"\0"[..]].concat())
            .collect();
        file.write_all(&roots)?;
        // The collectors of older versions wait until they can share the lock.
        flock(&file, FlockOperation::LockShared)?;
        Ok(Self { file, path, owner })
    }
}

impl Drop for TemporaryRoots {
    fn drop(&mut self) {
        if std::process::id() == self.owner {
            let _ = fs::remove_file(&self.path);
            let _ = flock(&self.file, FlockOperation::Unlock);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn descriptors_lead_to_the_paths_themselves() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().canonicalize().unwrap();
        fs::write(real.join("file"), "").unwrap();
        symlink("/nowhere", real.join("link")).unwrap();
        let names: [&[u8]; 4] = [b"absent", b"file", b"link", b"file"];
        let pins = Pins::hold(&real, names.into_iter(), 3);
        let links = pins.held();
        let links = links.fds.iter().map(|fd| {
            let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
            fs::read_link(link).unwrap()
        });
        assert_eq!(
            links.collect::<Vec<_>>(),
            [real.join("file"), real.join("link")]
        );
    }

    #[test]
    fn temporary_roots_are_locked_and_go_with_their_owner() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(format!("temproots/{}", std::process::id()));
        let mut pins = Pins::default();
        pins.register(
            dir.path(),
            &[b"/nix/store/a".to_vec(), b"/nix/store/b".to_vec()],
        )
        .unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"/nix/store/a\0/nix/store/b\0");
        let other = File::open(&file).unwrap();
        assert!(flock(&other, FlockOperation::NonBlockingLockExclusive).is_err());
        flock(&other, FlockOperation::NonBlockingLockShared).unwrap();
        drop(pins);
        assert!(!file.exists());
    }
}
