//! A directory's entries, as the host tells them.

use std::ops::Range;
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, FileType, RawDir, Statx};
use rustix::io::Errno;

use super::{Stamp, parallel, statx};

/// Bytes that one getdents(2) fills at most.
const DIRENT_BUFFER_LEN_BYTES: usize = 32 * 1024;

/// Entries that are worth another thread: starting one costs as much as examining some fifty of them.
const ENTRIES_PER_THREAD: usize = 1024;

/// Entries that a thread takes at once.
const ENTRIES_AT_ONCE: usize = 256;

/// Type of a file (inode(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FileKind {
    /// Bytes.
    Regular,
    /// Entries.
    Directory,
    /// A target.
    Symlink,
    /// A named pipe.
    Fifo,
    /// A Unix socket.
    Socket,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
}

impl FileKind {
    fn from_host(kind: FileType) -> Option<Self> {
        Some(match kind {
            FileType::RegularFile => Self::Regular,
            FileType::Directory => Self::Directory,
            FileType::Symlink => Self::Symlink,
            FileType::Fifo => Self::Fifo,
            FileType::Socket => Self::Socket,
            FileType::CharacterDevice => Self::CharDevice,
            FileType::BlockDevice => Self::BlockDevice,
            FileType::Unknown => return None,
        })
    }
}

/// What the host says of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// Its type.
    pub kind: FileKind,
    /// Permission bits, 0o7777 at most.
    pub permissions: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Length, for regular files.
    pub size_bytes: u64,
    /// Whole seconds of the mtime.
    pub mtime_sec: i64,
    /// Nanoseconds of the mtime.
    pub mtime_nsec: u32,
    /// Major and minor number, for devices.
    pub device: (u32, u32),
}

impl Stat {
    /// What is known of a file from its directory entry alone.
    pub fn of_kind(kind: FileKind) -> Self {
        Self {
            kind,
            permissions: 0o555,
            uid: 0,
            gid: 0,
            size_bytes: 0,
            mtime_sec: 0,
            mtime_nsec: 0,
            device: (0, 0),
        }
    }

    /// The part that must not change while the file is served.
    pub fn stamp(&self) -> Stamp {
        Stamp {
            size_bytes: self.size_bytes,
            mtime_sec: self.mtime_sec,
            mtime_nsec: self.mtime_nsec,
        }
    }
}

impl From<&Statx> for Stat {
    fn from(stat: &Statx) -> Self {
        let kind = FileType::from_raw_mode(u32::from(stat.stx_mode));
        Self {
            // statx always fills in a type; if not, a FIFO is what nobody reads from.
            kind: FileKind::from_host(kind).unwrap_or(FileKind::Fifo),
            permissions: stat.stx_mode & 0o7777,
            uid: stat.stx_uid,
            gid: stat.stx_gid,
            size_bytes: stat.stx_size,
            mtime_sec: stat.stx_mtime.tv_sec,
            mtime_nsec: stat.stx_mtime.tv_nsec,
            device: (stat.stx_rdev_major, stat.stx_rdev_minor),
        }
    }
}

/// Which file on the host it is, whatever its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Identity {
    device: (u32, u32),
    inode: u64,
}

impl From<&Statx> for Identity {
    fn from(stat: &Statx) -> Self {
        Self {
            device: (stat.stx_dev_major, stat.stx_dev_minor),
            inode: stat.stx_ino,
        }
    }
}

/// How much of each entry is asked of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// What a NAR keeps: types, sizes and executable bits, targets. Directories and symlinks cost no stat.
    Nar,
    /// Everything.
    Full,
}

/// An entry of a [`Listing`].
#[derive(Debug, Clone)]
pub struct Entry {
    /// Where its name lies in the listing's bytes.
    name: Range<usize>,
    /// Where its target lies in the listing's bytes; empty unless it is a symlink.
    target: Range<usize>,
    /// What it is.
    pub stat: Stat,
}

/// The entries of one directory, sorted by the bytes of their names, without `.` and `..`.
#[derive(Debug, Clone, Default)]
pub struct Listing {
    bytes: Vec<u8>,
    entries: Vec<Entry>,
}

impl Listing {
    /// The entries in order.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Name of an entry of this listing.
    pub fn name(&self, entry: &Entry) -> &[u8] {
        &self.bytes[entry.name.clone()]
    }

    /// Target of an entry of this listing, empty unless it is a symlink.
    pub fn target(&self, entry: &Entry) -> &[u8] {
        &self.bytes[entry.target.clone()]
    }

    /// Adds an entry; [`Listing::sort`] must follow the last one.
    pub fn push(&mut self, name: &[u8], stat: Stat, target: &[u8]) {
        let name = self.append(name);
        let target = self.append(target);
        self.entries.push(Entry { name, target, stat });
    }

    /// Puts the entries in the order of their names' unsigned bytes.
    pub fn sort(&mut self) {
        let bytes = &self.bytes;
        self.entries
            .sort_unstable_by(|a, b| bytes[a.name.clone()].cmp(&bytes[b.name.clone()]));
    }

    fn append(&mut self, bytes: &[u8]) -> Range<usize> {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(bytes);
        start..self.bytes.len()
    }

    /// Reads the directory `dir`. An error says at which entry it happened (empty: the directory).
    pub(super) fn read(dir: &OwnedFd, detail: Detail) -> Result<Self, (Vec<u8>, Errno)> {
        Self::read_on(dir, detail, threads_for)
    }

    /// As [`read`](Self::read), with as many threads as `threads` says for a number of entries.
    pub(super) fn read_on(
        dir: &OwnedFd,
        detail: Detail,
        threads: impl FnOnce(usize) -> usize,
    ) -> Result<Self, (Vec<u8>, Errno)> {
        let mut listing = Self::default();
        let kinds = listing
            .read_names(dir)
            .map_err(|errno| (Vec::new(), errno))?;
        let examine = |index: usize| listing.examine(dir, index, kinds[index], detail);
        let examine_part = |(): &mut (), part: usize| -> Vec<_> {
            let start = part * ENTRIES_AT_ONCE;
            let end = kinds.len().min(start + ENTRIES_AT_ONCE);
            (start..end).map(examine).collect()
        };
        let parts = kinds.len().div_ceil(ENTRIES_AT_ONCE);
        let found = parallel::for_each_on(threads(kinds.len()), parts, || (), examine_part);
        for (index, found) in found.into_iter().flatten().enumerate() {
            let (stat, target) =
                found.map_err(|errno| (listing.name(&listing.entries[index]).to_vec(), errno))?;
            listing.entries[index].target = listing.append(&target);
            listing.entries[index].stat = stat;
        }
        listing.sort();
        Ok(listing)
    }

    fn read_names(&mut self, dir: &OwnedFd) -> Result<Vec<FileType>, Errno> {
        let mut kinds = Vec::new();
        let mut buffer = Vec::with_capacity(DIRENT_BUFFER_LEN_BYTES);
        let mut dirents = RawDir::new(dir, buffer.spare_capacity_mut());
        while let Some(dirent) = dirents.next() {
            let dirent = dirent?;
            let name = dirent.file_name().to_bytes();
            if name != b"." && name != b".." {
                self.push(name, Stat::of_kind(FileKind::Directory), b"");
                kinds.push(dirent.file_type());
            }
        }
        Ok(kinds)
    }

    /// What entry `index` is, whose directory entry says it is a `kind`.
    fn examine(
        &self,
        dir: &OwnedFd,
        index: usize,
        kind: FileType,
        detail: Detail,
    ) -> Result<Found, Errno> {
        let name = self.name(&self.entries[index]);
        let stat = match (detail, kind) {
            (Detail::Nar, FileType::Directory) => Stat::of_kind(FileKind::Directory),
            (Detail::Nar, FileType::Symlink) => Stat::of_kind(FileKind::Symlink),
            _ => Stat::from(&statx(dir, name, AtFlags::SYMLINK_NOFOLLOW)?),
        };
        let target = match stat.kind {
            FileKind::Symlink => rustix::fs::readlinkat(dir, name, Vec::new())?.into_bytes(),
            _ => Vec::new(),
        };
        Ok((stat, target))
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
