//! File trees as values: kinds, attributes and listings. No I/O.

mod listing;

pub use listing::{Entry, Listing};

/// Type of a file (inode(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FileKind {
    /// A regular file.
    Regular,
    /// A directory.
    Directory,
    /// A symbolic link.
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

/// Major and minor number of a device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct DeviceNumber {
    /// Selects the driver.
    pub major: u32,
    /// Selects one of the driver's devices.
    pub minor: u32,
}

/// The attributes of a file that the disk reproduces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// File type.
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
    /// Device number, for character and block devices.
    pub device: DeviceNumber,
}

impl Stat {
    /// Placeholder attributes for a file of which only the directory entry was read.
    pub fn of_kind(kind: FileKind) -> Self {
        Self {
            kind,
            permissions: 0o555,
            uid: 0,
            gid: 0,
            size_bytes: 0,
            mtime_sec: 0,
            mtime_nsec: 0,
            device: DeviceNumber::default(),
        }
    }

    /// The attributes that must not change while the file is served.
    pub fn stamp(&self) -> Stamp {
        Stamp {
            size_bytes: self.size_bytes,
            mtime_sec: self.mtime_sec,
            mtime_nsec: self.mtime_nsec,
        }
    }
}

/// Size and mtime: if they differ between planning a file and reading it, the file has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Stamp {
    /// Length of the file.
    pub size_bytes: u64,
    /// Whole seconds of the mtime.
    pub mtime_sec: i64,
    /// Nanoseconds of the mtime.
    pub mtime_nsec: u32,
}

/// Which attributes of directory entries to look up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// Only what a NAR stores: types, sizes, executable bits and symlink targets.
    Nar,
    /// All of [`Stat`].
    Full,
}
