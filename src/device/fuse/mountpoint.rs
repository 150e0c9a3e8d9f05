//! The parent's side: stale and live mounts, detaching.
//!
//! All it wants to know is in the mount table, so it asks the file system nothing: a process that waits for an answer of
//! its own child may wait for ever. The one exception is a mount that was there before, which must be told dead or alive.

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

/// A directory that is mounted on, and free again when this is dropped.
#[derive(Debug)]
pub struct MountPoint {
    /// Without symlinks, as in the mount table.
    dir: PathBuf,
    /// What was mounted there, none before that.
    mount: Option<Mount>,
}

impl MountPoint {
    /// Looks whether `dir` can be mounted on. Detaches what was left there by a server that died.
    ///
    /// # Errors
    /// When it is no directory, another server lives there, or the mount table cannot be read.
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
                "{}: detaching what a server that died left there",
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

    /// Notes what is mounted there now.
    ///
    /// # Errors
    /// When the mount table cannot be read.
    pub fn mounted(&mut self) -> Result<(), FuseError> {
        let mount = Mount::at(&self.dir).map_err(|source| mount_error(&self.dir, source))?;
        self.mount = mount.filter(|mount| mount.is_ours);
        Ok(())
    }

    /// The process that was to mount has ended, maybe after it mounted and before it said so. What it left is then to be
    /// unmounted. Not before its end: asking a mount that is not served yet would wait.
    pub fn left_by_worker(&mut self) {
        if self.mount.is_none() {
            let mount = Mount::at(&self.dir).ok().flatten();
            self.mount = mount.filter(|mount| mount.is_ours && !is_alive(&self.dir));
        }
    }
}

/// Detaches what servers that were killed left mounted on `dir`. The last one may still be dying: waits two seconds for it.
///
/// # Errors
/// When something stays mounted.
pub fn clear_mount(dir: &Path) -> Result<(), FuseError> {
    let deadline = Instant::now() + Duration::from_secs(2);
    loop {
        match MountPoint::prepare(dir) {
            Err(FuseError::InUse { .. }) if Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(5));
            }
            // It is gone already.
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
        // Someone may have unmounted it, and even mounted something else. Without the mount table, which takes a
        // descriptor, detach it all the same: a dead mount would stay.
        let is_ours = Mount::at(&self.dir).map_or(true, |now| now == self.mount);
        if is_ours && let Err(error) = detach(&self.dir) {
            tracing::error!("{} stays mounted: {error}", self.dir.display());
        }
    }
}

/// A line of the mount table (proc(5), `/proc/pid/mountinfo`).
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

/// Undoes `\040` and the like.
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

/// The directory without symlinks. Its last part is not looked at, if possible: a dead mount cannot be.
fn resolve(dir: &Path) -> io::Result<PathBuf> {
    let parent = match dir.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => return dir.canonicalize(),
    };
    let Some(name) = dir.file_name() else {
        return dir.canonicalize();
    };
    // Without a slash at the end, which would follow a link.
    let itself = parent.canonicalize()?.join(name);
    match fs::symlink_metadata(&itself) {
        Ok(metadata) if metadata.is_symlink() => dir.canonicalize(),
        _ => Ok(itself),
    }
}

/// Asks the file system itself, and not what the kernel remembers of it.
fn is_alive(dir: &Path) -> bool {
    let answer = statx(CWD, dir, AtFlags::STATX_FORCE_SYNC, StatxFlags::BASIC_STATS);
    !matches!(answer, Err(Errno::NOTCONN | Errno::CONNABORTED | Errno::IO))
}

/// Unmounts at once what nobody uses, and hides the rest until it is not used any more.
fn detach(dir: &Path) -> io::Result<()> {
    match unmount(dir, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        Ok(()) => Ok(()),
        Err(Errno::PERM) => detach_by_helper(dir),
        Err(errno) => Err(errno.into()),
    }
}

/// For those who are not root there is a program that is.
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
    fn a_line_of_the_mount_table_is_understood() {
        let mount = Mount::parse(LINE, Path::new("/tmp/a b")).unwrap();
        assert_eq!(
            (&mount.id[..], &mount.device[..]),
            (&b"712"[..], &b"0:65"[..])
        );
        assert!(mount.is_ours);
        assert_eq!(Mount::parse(LINE, Path::new("/tmp/a")), None);
    }

    #[test]
    fn what_is_mounted_by_others_is_not_ours() {
        for line in [
            "36 35 98:0 / /mnt rw - ext4 lazystore rw",
            "9 1 0:9 / /mnt rw - fuse.sshfs host: rw",
        ] {
            let mount = Mount::parse(line.as_bytes(), Path::new("/mnt")).unwrap();
            assert!(!mount.is_ours, "{line}");
        }
    }

    #[test]
    fn escapes_are_undone() {
        assert_eq!(unescape(b"a\\134b\\011\\0"), b"a\\b\t\\0");
    }

    #[test]
    fn a_directory_is_resolved_but_for_its_last_part() {
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
