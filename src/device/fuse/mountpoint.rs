//! The parent's side of a mount: detects stale mounts and unmounts.
//!
//! It reads the mount table and makes no requests to the file system, because the parent could block for ever on its
//! own child. The only exception is a mount that existed before, which must be checked for being alive.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

use super::SOURCE;
use super::error::FuseError;

/// A mount point; dropping it unmounts what was mounted there.
#[derive(Debug)]
pub struct MountPoint {
    /// Path without symlinks, as in the mount table.
    dir: PathBuf,
    /// Our mount, once it exists.
    mount: Option<Mount>,
}

impl MountPoint {
    /// Checks that `dir` can be mounted on, and detaches stale mounts of dead servers.
    ///
    /// # Errors
    /// It is not a directory, another server is using it, or the mount table cannot be read.
    pub fn prepare(dir: &Path) -> Result<Self, FuseError> {
        let fault = |source| mount_error(dir, source);
        let real = resolve(dir).map_err(|error| directory_error(dir, error))?;
        while let Some(mount) = Mount::at(&real).map_err(fault)? {
            if !mount.is_ours {
                break;
            }
            if is_alive(&real) {
                return Err(FuseError::InUse { dir: dir.into() });
            }
            tracing::info!(
                "{}: detaching the mount of a server that died",
                dir.display()
            );
            detach(&real).map_err(fault)?;
        }
        match fs::metadata(&real) {
            Ok(metadata) if metadata.is_dir() => Ok(Self {
                dir: real,
                mount: None,
            }),
            Ok(_) => Err(FuseError::NotADirectory { dir: dir.into() }),
            Err(error) => Err(directory_error(dir, error)),
        }
    }

    /// Records our mount after it was made.
    ///
    /// # Errors
    /// The mount table cannot be read.
    pub fn mounted(&mut self) -> Result<(), FuseError> {
        let mount = Mount::at(&self.dir).map_err(|source| mount_error(&self.dir, source))?;
        self.mount = mount.filter(|mount| mount.is_ours);
        Ok(())
    }

    /// To be called after the worker has ended: it may have mounted without reporting it, and then that mount must be
    /// detached. Do not call it earlier, because checking a mount that is not served yet would block.
    pub fn left_by_worker(&mut self) {
        if self.mount.is_none() {
            let mount = Mount::at(&self.dir).ok().flatten();
            self.mount = mount.filter(|mount| mount.is_ours && !is_alive(&self.dir));
        }
    }
}

/// Detaches stale mounts of killed servers on `dir`. Waits up to two seconds, because the last server may still be
/// exiting.
///
/// # Errors
/// A mount remains.
pub fn clear_mount(dir: &Path) -> Result<(), FuseError> {
    let deadline = Instant::now() + Duration::from_secs(2);
    loop {
        match MountPoint::prepare(dir) {
            Err(FuseError::InUse { .. }) if Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(5));
            }
            // The directory is already gone.
            Err(FuseError::NotADirectory { .. }) => return Ok(()),
            result => return result.map(drop),
        }
    }
}

impl Drop for MountPoint {
    fn drop(&mut self) {
        if self.mount.is_none() {
            return;
        }
        // Someone else may have unmounted it or mounted something over it. If the mount table cannot be read (out of
        // descriptors), detach anyway: otherwise a dead mount would remain.
        let is_ours = Mount::at(&self.dir).map_or(true, |now| now == self.mount);
        if is_ours && let Err(error) = detach(&self.dir) {
            tracing::error!("{} stays mounted: {error}", self.dir.display());
        }
    }
}

/// An entry of the mount table (proc(5), `/proc/pid/mountinfo`).
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mount {
    id: Vec<u8>,
    device: Vec<u8>,
    is_ours: bool,
}

impl Mount {
    /// The topmost mount at `dir`.
    fn at(dir: &Path) -> io::Result<Option<Self>> {
        let table = fs::read("/proc/self/mountinfo")?;
        let mut lines = table.split(|byte| *byte == b'\n').rev();
        Ok(lines.find_map(|line| Self::parse(line, dir)))
    }

    fn parse(line: &[u8], dir: &Path) -> Option<Self> {
        let mut fields = line.split(|byte| *byte == b' ');
        let (id, _parent) = (fields.next()?, fields.next()?);
        let (device, _root) = (fields.next()?, fields.next()?);
        if unescape(fields.next()?) != dir.as_os_str().as_bytes() {
            return None;
        }
        let mut after = fields.skip_while(|field| *field != b"-").skip(1);
        let (kind, source) = (after.next()?, after.next()?);
        Some(Self {
            id: id.into(),
            device: device.into(),
            is_ours: kind.starts_with(b"fuse") && source == SOURCE.as_bytes(),
        })
    }
}

/// Decodes octal escapes such as `\040`.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, others)) = rest.split_first() {
        let octal = (first == b'\\')
            .then(|| others.first_chunk())
            .flatten()
            .and_then(octal);
        let (byte, len) = octal.map_or((first, 1), |byte| (byte, 4));
        out.push(byte);
        rest = &rest[len..];
    }
    out
}

fn octal(digits: &[u8; 3]) -> Option<u8> {
    let text = std::str::from_utf8(digits).ok()?;
    u8::from_str_radix(text, 8).ok()
}

/// Resolves symlinks in `dir`. Avoids accessing the last component if possible, since that fails for a dead mount.
fn resolve(dir: &Path) -> io::Result<PathBuf> {
    let parent = match dir.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => return dir.canonicalize(),
    };
    let Some(name) = dir.file_name() else {
        return dir.canonicalize();
    };
    // Without a trailing slash, which would follow a symlink.
    let itself = parent.canonicalize()?.join(name);
    match fs::symlink_metadata(&itself) {
        Ok(metadata) if metadata.is_symlink() => dir.canonicalize(),
        _ => Ok(itself),
    }
}

/// Whether the mount is served. Forces a request to the file system instead of using cached attributes.
fn is_alive(dir: &Path) -> bool {
    let answer = statx(CWD, dir, AtFlags::STATX_FORCE_SYNC, StatxFlags::BASIC_STATS);
    !matches!(answer, Err(Errno::NOTCONN | Errno::CONNABORTED | Errno::IO))
}

/// Unmounts lazily: the mount disappears at once, and is released when it is no longer in use.
fn detach(dir: &Path) -> io::Result<()> {
    match unmount(dir, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        Ok(()) => Ok(()),
        Err(Errno::PERM) => detach_by_helper(dir),
        Err(errno) => Err(errno.into()),
    }
}

/// Users other than root need the set-user-ID program fusermount3.
fn detach_by_helper(dir: &Path) -> io::Result<()> {
    let status = Command::new("fusermount3")
        .args(["-u", "-z", "-q", "--"])
        .arg(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()?;
    if status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!("fusermount3 -u: {status}")))
}

fn mount_error(dir: &Path, source: io::Error) -> FuseError {
    let dir = dir.to_owned();
    FuseError::Mount { dir, source }
}

fn directory_error(dir: &Path, source: io::Error) -> FuseError {
    match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
            FuseError::NotADirectory { dir: dir.into() }
        }
        _ => mount_error(dir, source),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &[u8] =
        b"712 27 0:65 / /tmp/a\\040b ro,nosuid shared:5 - fuse lazystore ro,user_id=0";

    #[test]
    fn a_line_of_the_mount_table_is_parsed() {
        let mount = Mount::parse(LINE, Path::new("/tmp/a b")).unwrap();
        assert_eq!(
            (&mount.id[..], &mount.device[..]),
            (&b"712"[..], &b"0:65"[..])
        );
        assert!(mount.is_ours);
        assert_eq!(Mount::parse(LINE, Path::new("/tmp/a")), None);
    }

    #[test]
    fn other_mounts_are_not_ours() {
        for line in [
            "36 35 98:0 / /mnt rw - ext4 lazystore rw",
            "9 1 0:9 / /mnt rw - fuse.sshfs host: rw",
        ] {
            let mount = Mount::parse(line.as_bytes(), Path::new("/mnt")).unwrap();
            assert!(!mount.is_ours, "{line}");
        }
    }

    #[test]
    fn octal_escapes_are_decoded() {
        assert_eq!(unescape(b"a\\134b\\011\\0"), b"a\\b\t\\0");
    }

    #[test]
    fn a_directory_is_resolved_except_for_its_last_component() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().canonicalize().unwrap();
        fs::create_dir(real.join("d")).unwrap();
        std::os::unix::fs::symlink("d", real.join("link")).unwrap();
        assert_eq!(resolve(&real.join("link/")).unwrap(), real.join("d"));
        assert_eq!(resolve(&real.join("d/")).unwrap(), real.join("d"));
        assert_eq!(resolve(&real.join("d/..")).unwrap(), real);
        assert_eq!(resolve(Path::new("/")).unwrap(), Path::new("/"));
    }
}
