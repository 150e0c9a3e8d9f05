//! The attributes that the disk should have for a host file. Deliberately independent of `erofs::layout::attributes`,
//! so that a mistake there is found.

use std::fmt::Display;
use std::os::unix::fs::PermissionsExt;

use erofs_rs::types::Inode;
use rustix::fs::{FileType, Stat, major, minor};

use super::report::{Attribute, Difference};
use crate::closure::Contents;
use crate::image::ImageOptions;

/// Computes the expected modes, owners and times.
pub(super) struct Expect {
    /// Attributes are those of a NAR instead of the host's.
    canonical: bool,
    uid: Option<u32>,
    gid: Option<u32>,
    mtime_sec: Option<u64>,
}

impl Expect {
    pub(super) fn new(contents: &Contents, options: &ImageOptions) -> Self {
        Self {
            canonical: matches!(contents, Contents::StorePaths(_)),
            uid: options.uid,
            gid: options.gid,
            mtime_sec: options.mtime_sec,
        }
    }

    /// Calls `differs` for each difference between `inode` and `stat`, except for names, targets and contents.
    pub(super) fn compare(&self, inode: &Inode, stat: &Stat, differs: &mut dyn FnMut(Difference)) {
        let (disk_kind, host_kind) = (inode.file_type(), FileType::from_raw_mode(stat.st_mode));
        if disk_kind != host_kind {
            let (disk, expected) = (kind_name(disk_kind), kind_name(host_kind));
            return differs(attribute(Attribute::Kind, disk, expected));
        }
        compare_attributes(
            inode,
            (self.permissions(stat), self.owner(stat), self.mtime(stat)),
            differs,
        );
        compare_kind(inode, stat, differs);
    }

    /// Like `compare`, for a file without counterpart on the host. `mode` is its expected type and permissions.
    pub(super) fn compare_canonical(
        &self,
        inode: &Inode,
        mode: u32,
        differs: &mut dyn FnMut(Difference),
    ) {
        let (disk_kind, kind) = (inode.file_type(), FileType::from_raw_mode(mode));
        if disk_kind != kind {
            let (disk, expected) = (kind_name(disk_kind), kind_name(kind));
            return differs(attribute(Attribute::Kind, disk, expected));
        }
        let owner = (self.uid.unwrap_or(0), self.gid.unwrap_or(0));
        let mtime = (self.mtime_sec.unwrap_or(1).cast_signed(), 0);
        compare_attributes(inode, (mode & 0o7777, owner, mtime), differs);
    }

    fn permissions(&self, stat: &Stat) -> u32 {
        let own = stat.st_mode & 0o7777;
        match FileType::from_raw_mode(stat.st_mode) {
            _ if !self.canonical => own,
            FileType::Symlink => 0o777,
            FileType::Directory => 0o555,
            _ if own & 0o100 == 0 => 0o444,
            _ => 0o555,
        }
    }

    fn owner(&self, stat: &Stat) -> (u32, u32) {
        let (uid, gid) = if self.canonical {
            (0, 0)
        } else {
            (stat.st_uid, stat.st_gid)
        };
        (self.uid.unwrap_or(uid), self.gid.unwrap_or(gid))
    }

    fn mtime(&self, stat: &Stat) -> (i64, u32) {
        match self.mtime_sec {
            Some(sec) => (sec.cast_signed(), 0),
            None if self.canonical => (1, 0),
            None => (
                stat.st_mtime,
                u32::try_from(stat.st_mtime_nsec).unwrap_or(u32::MAX),
            ),
        }
    }
}

/// Permissions, owner and group, mtime.
type InodeAttributes = (u32, (u32, u32), (i64, u32));

fn compare_attributes(
    inode: &Inode,
    (permissions, owner, mtime): InodeAttributes,
    differs: &mut dyn FnMut(Difference),
) {
    let disk = inode.permissions().mode();
    if disk != permissions {
        let (disk, expected) = (format!("{disk:04o}"), format!("{permissions:04o}"));
        differs(attribute(Attribute::Permissions, disk, expected));
    }
    let disk = (inode.uid(), inode.gid());
    if disk != owner {
        let [disk, expected] = [disk, owner].map(|(uid, gid)| format!("{uid}:{gid}"));
        differs(attribute(Attribute::Owner, disk, expected));
    }
    let disk = inode.modified_unix();
    if disk != mtime {
        let [disk, expected] = [disk, mtime].map(|(sec, nsec)| format!("{sec}.{nsec:09}"));
        differs(attribute(Attribute::Mtime, disk, expected));
    }
}

/// Compares the attributes that only some types have.
fn compare_kind(inode: &Inode, stat: &Stat, differs: &mut dyn FnMut(Difference)) {
    match inode.file_type() {
        FileType::RegularFile if u64::try_from(stat.st_size) != Ok(inode.data_size()) => {
            differs(attribute(Attribute::Size, inode.data_size(), stat.st_size));
        }
        FileType::CharacterDevice | FileType::BlockDevice => {
            let host = (major(stat.st_rdev), minor(stat.st_rdev));
            if inode.device() != Some(host) {
                let disk = format!("{:?}", inode.device());
                differs(attribute(Attribute::Device, disk, format!("{host:?}")));
            }
        }
        _ => {}
    }
}

pub(super) fn attribute(
    attribute: Attribute,
    disk: impl Display,
    expected: impl Display,
) -> Difference {
    Difference::Attribute {
        attribute,
        disk: disk.to_string(),
        expected: expected.to_string(),
    }
}

fn kind_name(kind: FileType) -> &'static str {
    match kind {
        FileType::RegularFile => "regular file",
        FileType::Directory => "directory",
        FileType::Symlink => "symlink",
        FileType::Fifo => "FIFO",
        FileType::Socket => "socket",
        FileType::CharacterDevice => "character device",
        FileType::BlockDevice => "block device",
        FileType::Unknown => "unknown",
    }
}
