//! Protects store paths from Nix's garbage collector while the server runs.
//!
//! Nix treats every store path that a link in `/proc/*/fd` of any process points to as a root (`findRuntimeRoots` in
//! Nix's `src/libstore/gc.cc`). An `O_PATH` descriptor is enough, and the kernel closes it when the process exits.
//!
//! Nix compares those links with the *logical* store directory, so this does not work for a chroot store. For those we
//! do what Nix's own processes do and write a file of temporary roots: `temproots/PID` in the state directory, with
//! NUL-terminated store paths, locked as long as it is in effect (`addTempRoot` and `findTempRoots` in the same file).
//! If the process is killed, the lock is released and the next collection removes the file.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{FlockOperation, Mode, OFlags, flock};

/// Garbage-collector roots that are in effect until this is dropped.
#[derive(Debug, Default)]
pub struct Pins {
    held: Mutex<PinnedPaths>,
    /// Path of the file of temporary roots.
    file: Option<PathBuf>,
}

#[derive(Debug, Default)]
struct PinnedPaths {
    fds: Vec<OwnedFd>,
    temporary_roots: Option<TemporaryRoots>,
}

impl Pins {
    /// Opens the first `max` of `names` in `dir`. Names that cannot be opened are skipped.
    pub fn hold<'a>(dir: &Path, names: impl Iterator<Item = &'a [u8]>, max: usize) -> Self {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        // Errors are ignored: the code that reads the store gives the better message.
        let fds = rustix::fs::open(dir, flags | OFlags::DIRECTORY, Mode::empty()).map(|dir| {
            let pin = |name: &[u8]| {
                rustix::fs::openat(&dir, name, flags | OFlags::NOFOLLOW, Mode::empty()).ok()
            };
            names.take(max).filter_map(pin).collect()
        });
        let held = PinnedPaths {
            fds: fds.unwrap_or_default(),
            temporary_roots: None,
        };
        Self {
            held: held.into(),
            file: None,
        }
    }

    /// Registers the logical store paths `paths` as temporary roots of the Nix with state directory `state_dir`.
    ///
    /// # Errors
    /// The file cannot be created or written.
    pub fn register(&mut self, state_dir: &Path, paths: &[Vec<u8>]) -> io::Result<()> {
        let roots = TemporaryRoots::write(state_dir, paths)?;
        self.file = Some(roots.path.clone());
        self.held().temporary_roots = Some(roots);
        Ok(())
    }

    /// Returns the file of temporary roots, if there is one. Dropping the pins removes it.
    pub fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// Returns the number of descriptors held.
    pub fn open_files(&self) -> usize {
        self.held().fds.len()
    }

    /// For a forked child: closes the child's copies of the descriptors. The parent's remain in effect.
    pub fn leave(&self) {
        *self.held() = PinnedPaths::default();
    }

    fn held(&self) -> MutexGuard<'_, PinnedPaths> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The file of temporary roots. Only the process that created it removes it on drop; forked children do not.
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
        // A leftover of an earlier process with our PID; that process no longer exists.
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = loop {
            let mut options = File::options();
            options.read(true).write(true).create(true).truncate(false);
            let file = options.mode(0o600).open(&path)?;
            flock(&file, FlockOperation::LockExclusive)?;
            // A collector that locked the new file before us marks it as stale by writing to it, and unlinks it. Try
            // again.
            if file.metadata()?.size() == 0 {
                break file;
            }
        };
        let roots: Vec<u8> = paths
            .iter()
            .flat_map(|path| [path, &b"\0"[..]].concat())
            .collect();
        file.write_all(&roots)?;
        // Collectors of older Nix versions block until they get a shared lock.
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
    fn temporary_roots_are_locked_and_removed_with_their_owner() {
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
