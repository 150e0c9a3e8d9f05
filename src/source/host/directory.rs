//! Attributes and directory entries, as the host tells them.

use std::ops::Range;
use std::os::fd::OwnedFd;
use std::time::SystemTime;

use rustix::fs::{AtFlags, FileType, OFlags, RawDir, ResolveFlags, Statx};
use rustix::io::Errno;

use super::{resolve, statx};
use crate::parallel;
use crate::tree::{Detail, DeviceNumber, FileKind, Listing, Stat};

/// Bytes that one getdents(2) fills at most.
const DIRENT_BUFFER_LEN_BYTES: usize = 32 * 1024;

/// Entries that are worth another thread: starting one costs as much as examining some fifty of them.
const ENTRIES_PER_THREAD: usize = 1024;

/// Entries that a thread takes at once.
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
            // statx always fills in a type; if not, a FIFO is what nobody reads from.
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

/// Which file on the host it is, whatever its name.
#[derive(Debug, Clone, Copy)]
pub struct Identity {
    /// The file system's.
    device: DeviceNumber,
    inode: u64,
    /// ctime, which nobody can set.
    changed: (i64, u32),
    /// The ctime was that of another moment when this was asked for, so a later change shows in it. The kernel's clock for
    /// it ticks every few milliseconds only.
    is_settled: bool,
}

impl Identity {
    /// Whether this is still `other`, which was found before. An inode number may change without a new file: overlayfs over several file systems
    /// (without `xino`) and some FUSE file systems give a directory another one when it has left the cache (Linux
    /// `fs/overlayfs/inode.c`, `ovl_map_inode`). A new file has a new ctime, and so has one that was renamed.
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

/// Whether so many seconds after 1970 were over two seconds ago.
fn is_past(seconds: i64) -> bool {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let now = now.ok().and_then(|now| i64::try_from(now.as_secs()).ok());
    now.is_some_and(|now| seconds.saturating_add(2) < now)
}

/// The name of the entry at which a directory could not be read (empty: the directory itself), and why.
pub(super) type ListError = (Vec<u8>, Errno);

/// Reads the directory `dir`.
pub(super) fn list(dir: &OwnedFd, detail: Detail) -> Result<Listing, ListError> {
    list_on(dir, detail, threads_for)
}

/// As [`list`], with as many threads as `threads` says for a number of entries.
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

/// The names in a directory, and the types that its entries say, in the order of the file system.
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

    fn examine(&self, dir: &OwnedFd, index: usize, detail: Detail) -> Result<Found, Errno> {
        let name = self.name(index);
        // Directories and symlinks in a NAR have no attributes, so they cost no stat.
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

/// What is a directory, or may be one where the file system does not tell types, may be a mount point. To ask what is
/// mounted there for attributes could wait for this very process, so such a directory has none of its own.
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

/// What an entry is, and where it leads if it is a symlink.
type Found = (Stat, Vec<u8>);

/// Threads for a directory of so many entries: one for nearly all of them.
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

    /// A file system that tells no types made a tree ask what was mounted inside.
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

    /// A store in an overlay was served with I/O errors once its directories had left the cache.
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
        // Both may have been made in one tick of the clock.
        assert!(!identity(5, 3).is(&identity(6, 3)));
    }
}
