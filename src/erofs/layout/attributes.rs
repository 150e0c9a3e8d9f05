//! The modes, owners and timestamps that the guest sees.

use crate::erofs::format::{DirentType, ModeType};
use crate::tree::{Detail, FileKind, Stat};

/// mtime of everything in a Nix store. Nix uses 1 because some caches (Python, fontconfig) treat 0 as stale.
pub const NIX_MTIME: u64 = 1;

/// Where attributes come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// From a NAR, which stores only the executable bit: owner root, mode 0444 or 0555, constant mtime.
    Nar,
    /// From the file on the host.
    Host,
}

/// Owner and group of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Owner {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// The attributes of every file of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attributes {
    /// Where attributes come from, unless overridden by the fields below.
    pub origin: Origin,
    /// Overrides the owner of every file.
    pub uid: Option<u32>,
    /// Overrides the group of every file.
    pub gid: Option<u32>,
    /// Overrides the mtime of every file, in seconds.
    pub mtime_sec: Option<u64>,
    /// File contents may have to be fetched. Small files are then not inlined, so that reading inodes needs no fetch.
    pub is_remote: bool,
    /// Guests map files directly from the disk (DAX), which they cannot do with inlined files.
    pub is_dense: bool,
}

impl Attributes {
    /// Returns the attributes from `origin` without overrides.
    pub fn new(origin: Origin) -> Self {
        Self {
            origin,
            uid: None,
            gid: None,
            mtime_sec: None,
            is_remote: false,
            is_dense: false,
        }
    }

    /// Returns which attributes to look up on the host.
    pub fn detail(&self) -> Detail {
        match self.origin {
            Origin::Nar => Detail::Nar,
            Origin::Host => Detail::Full,
        }
    }

    /// Returns whether small files are inlined after their inodes. Not if they may change, be unreadable or need a fetch: a
    /// file that fails would fail every inode in its block. Not on a dense disk either.
    pub fn inlines_files(&self) -> bool {
        self.origin == Origin::Nar && !self.is_remote && !self.is_dense
    }

    /// Returns the permission bits that the guest sees.
    pub fn permissions(&self, stat: &Stat) -> u16 {
        match (self.origin, stat.kind) {
            (Origin::Host, _) => stat.permissions,
            (Origin::Nar, FileKind::Symlink) => 0o777,
            (Origin::Nar, FileKind::Directory) => 0o555,
            // Nix tests only the owner's executable bit (libutil/archive.cc).
            (Origin::Nar, _) if stat.permissions & 0o100 != 0 => 0o555,
            (Origin::Nar, _) => 0o444,
        }
    }

    /// Returns the owner and group that the guest sees.
    pub fn owner(&self, stat: &Stat) -> Owner {
        let (uid, gid) = match self.origin {
            Origin::Nar => (0, 0),
            Origin::Host => (stat.uid, stat.gid),
        };
        Owner {
            uid: self.uid.unwrap_or(uid),
            gid: self.gid.unwrap_or(gid),
        }
    }

    /// Returns the mtime in seconds and nanoseconds that the guest sees for a file with this mtime on the host.
    pub fn mtime(&self, own_sec: i64, own_nsec: u32) -> (u64, u32) {
        match (self.mtime_sec, self.origin) {
            (Some(sec), _) => (sec, 0),
            (None, Origin::Nar) => (NIX_MTIME, 0),
            (None, Origin::Host) => (own_sec.cast_unsigned(), own_nsec),
        }
    }

    /// mtime of every compact inode, in seconds. It is stored once, in the superblock.
    pub fn build_time_sec(&self) -> u64 {
        self.mtime_sec.unwrap_or(NIX_MTIME)
    }
}

/// Returns the type bits of the mode.
pub fn mode_type(kind: FileKind) -> ModeType {
    match kind {
        FileKind::Regular => ModeType::Regular,
        FileKind::Directory => ModeType::Directory,
        FileKind::Symlink => ModeType::Symlink,
        FileKind::Fifo => ModeType::Fifo,
        FileKind::Socket => ModeType::Socket,
        FileKind::CharDevice => ModeType::CharDevice,
        FileKind::BlockDevice => ModeType::BlockDevice,
    }
}

/// Returns the type in a directory entry; [`DirentType::Unknown`] for `None`.
pub fn dirent_type(kind: Option<FileKind>) -> DirentType {
    let Some(kind) = kind else {
        return DirentType::Unknown;
    };
    match kind {
        FileKind::Regular => DirentType::Regular,
        FileKind::Directory => DirentType::Directory,
        FileKind::Symlink => DirentType::Symlink,
        FileKind::Fifo => DirentType::Fifo,
        FileKind::Socket => DirentType::Socket,
        FileKind::CharDevice => DirentType::CharDevice,
        FileKind::BlockDevice => DirentType::BlockDevice,
    }
}
