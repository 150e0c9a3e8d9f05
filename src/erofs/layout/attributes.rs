//! What the guest is told of modes, ids and times.

use crate::erofs::format::{DirentType, ModeType};
use crate::tree::{Detail, FileKind, Stat};

/// mtime of everything in a Nix store: 0 would make time-stamped caches (Python, fontconfig) look stale.
pub const NIX_MTIME: u64 = 1;

/// Where attributes come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// What a NAR keeps: the executable bit; root, mode 0444 or 0555 and one mtime for the rest.
    Nar,
    /// What the host says.
    Host,
}

/// Who owns a file.
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
    /// Where they come from, unless set below.
    pub origin: Origin,
    /// Owner of every file.
    pub uid: Option<u32>,
    /// Group of every file.
    pub gid: Option<u32>,
    /// mtime of every file, in seconds.
    pub mtime_sec: Option<u64>,
    /// What small files hold lies in data blocks too: it may have to be fetched, and looking at inodes must not need it.
    pub is_remote: bool,
}

impl Attributes {
    /// Attributes that `origin` alone decides.
    pub fn new(origin: Origin) -> Self {
        Self {
            origin,
            uid: None,
            gid: None,
            mtime_sec: None,
            is_remote: false,
        }
    }

    /// How much of each entry must be asked of the host.
    pub fn detail(&self) -> Detail {
        match self.origin {
            Origin::Nar => Detail::Nar,
            Origin::Host => Detail::Full,
        }
    }

    /// Whether small files lie after their inodes. Not if they may change or be unreadable on the host, or have to be
    /// fetched: such a file would take all that is in its block along.
    pub fn inlines_files(&self) -> bool {
        self.origin == Origin::Nar && !self.is_remote
    }

    /// Permission bits that the guest sees.
    pub fn permissions(&self, stat: &Stat) -> u16 {
        match (self.origin, stat.kind) {
            (Origin::Host, _) => stat.permissions,
            (Origin::Nar, FileKind::Symlink) => 0o777,
            (Origin::Nar, FileKind::Directory) => 0o555,
            // Nix looks at the owner's bit only (libutil/archive.cc).
            (Origin::Nar, _) if stat.permissions & 0o100 != 0 => 0o555,
            (Origin::Nar, _) => 0o444,
        }
    }

    /// Owner and group that the guest sees.
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

    /// The mtime, seconds and nanoseconds, that the guest sees of a file whose own mtime is given.
    pub fn mtime(&self, own_sec: i64, own_nsec: u32) -> (u64, u32) {
        match (self.mtime_sec, self.origin) {
            (Some(sec), _) => (sec, 0),
            (None, Origin::Nar) => (NIX_MTIME, 0),
            (None, Origin::Host) => (own_sec.cast_unsigned(), own_nsec),
        }
    }

    /// mtime of every compact inode, in seconds; the superblock says it once for all of them.
    pub fn build_time_sec(&self) -> u64 {
        self.mtime_sec.unwrap_or(NIX_MTIME)
    }
}

/// Type bits of the mode.
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

/// Type in a directory entry; of a file whose type is not known, none.
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
