//! Reads attributes and directory entries.

use std::ops::Range;
use std::os::fd::OwnedFd;
use std::time::SystemTime;

use rustix::fs::{AtFlags, FileType, OFlags, RawDir, ResolveFlags, Statx};
use rustix::io::Errno;

use super::{resolve, statx};
use crate::parallel;
use crate::tree::{Detail, DeviceNumber, FileKind, Listing, Stat};

/// Buffer size for getdents(2).
const DIRENT_BUFFER_LEN_BYTES: usize = 32 * 1024;

/// Number of entries per additional thread. Starting a thread costs as much as examining about fifty entries.
const ENTRIES_PER_THREAD: usize = 1024;

/// Number of entries that a thread takes at once.
const ENTRIES_AT_ONCE: usize = 256;

fn kind_of(kind: FileType) -> Option<FileKind> {
    Some(match kind {
        FileType::RegularFile => FileKind::Regular,
        FileType::Directory => FileKind::Directory,
        FileType::Symlink => FileKind::Symlink,
        FileType::Fifo => FileKind::Fifo,
        FileType::Socket => FileKind::Socket,
        FileType::CharacterDevice => FileKind::CharDevice,
        FileType::BlockDevice => FileKind::BlockDevice,
        FileType::Unknown => return None,
    })
}

impl From<&Statx> for Stat {
    fn from(stat: &Statx) -> Self {
        let kind = FileType::from_raw_mode(u32::from(stat.stx_mode));
        Self {
            // statx always returns a type. Otherwise use FIFO, whose contents are never read.
            kind: kind_of(kind).unwrap_or(FileKind::Fifo),
            permissions: stat.stx_mode & 0o7777,
            uid: stat.stx_uid,
            gid: stat.stx_gid,
            size_bytes: stat.stx_size,
            mtime_sec: stat.stx_mtime.tv_sec,
            mtime_nsec: stat.stx_mtime.tv_nsec,
            device: DeviceNumber {
                major: stat.stx_rdev_major,
                minor: stat.stx_rdev_minor,
            },
        }
    }
}

/// Identifies a file of the host independently of its name.
#[derive(Debug, Clone, Copy)]
pub struct Identity {
    /// Device number of the file system.
    device: DeviceNumber,
    inode: u64,
    /// ctime, which cannot be set by users.
    changed: (i64, u32),
    /// The ctime was safely in the past when it was read, so any later change has a different ctime. Needed because the
    /// kernel's clock for ctimes ticks only every few milliseconds.
    is_settled: bool,
}

/// Identifies a file across reboots of the host: a replacement has another mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// Inode number.
    pub inode: u64,
    /// Whole seconds of the ctime.
    pub ctime_sec: i64,
    /// Nanoseconds of the ctime.
    pub ctime_nsec: u32,
}

impl Identity {
    /// Returns `None` if the file is so new that a replacement could get the same ctime.
    pub fn mark(&self) -> Option<Mark> {
        let (ctime_sec, ctime_nsec) = self.changed;
        self.is_settled.then_some(Mark {
            inode: self.inode,
            ctime_sec,
            ctime_nsec,
        })
    }

    /// Returns whether this is the same file as `other`, which was found earlier. The inode number alone is not enough:
    /// overlayfs over several file systems (without `xino`) and some FUSE file systems give a directory a new number
    /// after it has left the inode cache (Linux `fs/overlayfs/inode.c`, `ovl_map_inode`). So a file with the same ctime
    /// is also accepted, since a new or renamed file has a new ctime.
    pub(super) fn is(&self, other: &Self) -> bool {
        self.device == other.device
            && (self.inode == other.inode || other.is_settled && self.changed == other.changed)
    }
}

impl From<&Statx> for Identity {
    fn from(stat: &Statx) -> Self {
        Self {
            device: DeviceNumber {
                major: stat.stx_dev_major,
                minor: stat.stx_dev_minor,
            },
            inode: stat.stx_ino,
            changed: (stat.stx_ctime.tv_sec, stat.stx_ctime.tv_nsec),
            is_settled: is_past(stat.stx_ctime.tv_sec),
        }
    }
}

/// Returns whether a Unix time is more than two seconds in the past.
fn is_past(seconds: i64) -> bool {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let now = now.ok().and_then(|now| i64::try_from(now.as_secs()).ok());
    now.is_some_and(|now| seconds.saturating_add(2) < now)
}

/// The entry at which listing a directory failed (empty: the directory itself), and the error.
pub(super) type ListError = (Vec<u8>, Errno);

/// Lists the directory `dir`.
pub(super) fn list(dir: &OwnedFd, detail: Detail) -> Result<Listing, ListError> {
    list_on(dir, detail, threads_for)
}

/// Like [`list`]. `threads` maps the number of entries to the number of threads.
pub(super) fn list_on(
    dir: &OwnedFd,
    detail: Detail,
    threads: impl FnOnce(usize) -> usize,
) -> Result<Listing, ListError> {
    let names = Names::read(dir).map_err(|errno| (Vec::new(), errno))?;
    let count = names.entries.len();
    let examine = |index: usize| names.examine(dir, index, detail);
    let examine_part = |(): &mut (), part: usize| -> Vec<_> {
        let start = part * ENTRIES_AT_ONCE;
        let end = count.min(start + ENTRIES_AT_ONCE);
        (start..end).map(examine).collect()
    };
    let parts = count.div_ceil(ENTRIES_AT_ONCE);
    let found = parallel::for_each_on(threads(count), parts, || (), examine_part);
    let mut listing = Listing::default();
    for (index, found) in found.into_iter().flatten().enumerate() {
        let name = names.name(index);
        let (stat, target) = found.map_err(|errno| (name.to_vec(), errno))?;
        listing.push(name, stat, &target);
    }
    listing.sort();
    Ok(listing)
}

/// The names in a directory and their types from getdents(2), in the order of the file system.
#[derive(Default)]
struct Names {
    bytes: Vec<u8>,
    entries: Vec<(Range<usize>, FileType)>,
}

impl Names {
    fn read(dir: &OwnedFd) -> Result<Self, Errno> {
        let mut names = Self::default();
        let mut buffer = Vec::with_capacity(DIRENT_BUFFER_LEN_BYTES);
        let mut dirents = RawDir::new(dir, buffer.spare_capacity_mut());
        while let Some(dirent) = dirents.next() {
            let dirent = dirent?;
            let name = dirent.file_name().to_bytes();
            if name != b"." && name != b".." {
                let start = names.bytes.len();
                names.bytes.extend_from_slice(name);
                let range = start..names.bytes.len();
                names.entries.push((range, dirent.file_type()));
            }
        }
        Ok(names)
    }

    fn name(&self, index: usize) -> &[u8] {
        &self.bytes[self.entries[index].0.clone()]
    }

    fn examine(&self, dir: &OwnedFd, index: usize, detail: Detail) -> Result<ExaminedChild, Errno> {
        let name = self.name(index);
        // A NAR stores no attributes of directories and symlinks, so no stat is needed.
        let stat = match (detail, self.entries[index].1) {
            (Detail::Nar, FileType::Directory) => Stat::of_kind(FileKind::Directory),
            (Detail::Nar, FileType::Symlink) => Stat::of_kind(FileKind::Symlink),
            (Detail::Full, FileType::Directory | FileType::Unknown) => examine_dir(dir, name)?,
            _ => Stat::from(&statx(dir, name, AtFlags::SYMLINK_NOFOLLOW)?),
        };
        let target = match stat.kind {
            FileKind::Symlink => rustix::fs::readlinkat(dir, name, Vec::new())?.into_bytes(),
            _ => Vec::new(),
        };
        Ok((stat, target))
    }
}

/// Returns the attributes of an entry that is a directory, or may be one if the file system does not report types. It may be a
/// mount point. A stat of what is mounted there could block on this very process, so mount points get placeholder
/// attributes.
fn examine_dir(dir: &OwnedFd, name: &[u8]) -> Result<Stat, Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW;
    match resolve(
        dir,
        name,
        flags,
        ResolveFlags::BENEATH | ResolveFlags::NO_XDEV,
    ) {
        Ok(found) => Ok(Stat::from(&statx(&found, c"", AtFlags::EMPTY_PATH)?)),
        Err(Errno::XDEV) => Ok(Stat::of_kind(FileKind::Directory)),
        Err(errno) => Err(errno),
    }
}

/// Attributes of an entry, and its target if it is a symlink.
type ExaminedChild = (Stat, Vec<u8>);

/// Returns the number of threads for a directory with this number of entries; 1 for nearly all directories.
fn threads_for(entries: usize) -> usize {
    match entries / ENTRIES_PER_THREAD {
        0..2 => 1,
        worth => worth.min(parallel::threads()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::{Detail, DeviceNumber, FileKind, FileType, Identity, Names, Stat};

    /// Regression test: with a file system that reports no types, a tree made requests to what was mounted inside.
    #[test]
    fn a_mount_point_of_unknown_type_is_a_directory_without_attributes() {
        let names = |kind| Names {
            bytes: b"proc".to_vec(),
            entries: vec![(0..4, kind)],
        };
        let root = File::open("/").unwrap().into();
        for kind in [FileType::Unknown, FileType::Directory] {
            let (stat, _) = names(kind).examine(&root, 0, Detail::Full).unwrap();
            assert_eq!(stat, Stat::of_kind(FileKind::Directory), "{kind:?}");
        }
    }

    /// Some file systems report no types.
    #[test]
    fn entries_of_unknown_type_are_examined() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), "12345").unwrap();
        std::fs::create_dir(dir.path().join("dir")).unwrap();
        std::os::unix::fs::symlink("target", dir.path().join("link")).unwrap();
        let open = File::open(dir.path()).unwrap().into();
        let known = Names::read(&open).unwrap();
        assert_eq!(known.entries.len(), 3);
        let mut unknown = Names {
            bytes: known.bytes.clone(),
            entries: known.entries.clone(),
        };
        for (_, kind) in &mut unknown.entries {
            *kind = FileType::Unknown;
        }
        for detail in [Detail::Nar, Detail::Full] {
            for index in 0..3 {
                let found = known.examine(&open, index, detail).unwrap();
                let same = unknown.examine(&open, index, detail).unwrap();
                assert_eq!((found.0.kind, &found.1), (same.0.kind, &same.1));
                let is_file = found.0.kind == FileKind::Regular;
                assert!(!is_file || found.0 == same.0);
            }
        }
    }

    /// Regression test: a store in an overlay was served with I/O errors after its directories had left the cache.
    #[test]
    fn a_directory_with_another_inode_number_and_the_same_ctime_is_the_same() {
        let identity = |inode, nsec| Identity {
            device: DeviceNumber { major: 0, minor: 7 },
            inode,
            changed: (1, nsec),
            is_settled: nsec < 3,
        };
        assert!(identity(5, 1).is(&identity(6, 1)));
        assert!(identity(5, 1).is(&identity(5, 2)));
        assert!(!identity(5, 1).is(&identity(6, 2)));
        // Both may have been created in one tick of the clock.
        assert!(!identity(5, 3).is(&identity(6, 3)));
    }
}
