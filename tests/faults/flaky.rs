//! A FUSE file system that mirrors a directory and can return EIO, like a failing disk.

use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory,
    ReplyEntry, ReplyOpen, Request,
};
use tempfile::TempDir;

/// Settings by the test, and a counter.
#[derive(Debug, Default)]
pub struct Switch {
    /// Reads of files fail.
    pub data: AtomicBool,
    /// Listings of directories fail.
    pub names: AtomicBool,
    /// Requests that failed.
    pub failed: AtomicU64,
}

/// The mount. Dropping it unmounts.
pub struct Flaky {
    // Must be dropped before the directory on which it is mounted.
    _session: BackgroundSession,
    pub switch: Arc<Switch>,
    dir: TempDir,
}

impl Flaky {
    pub fn mount(source: &Path) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let switch = Arc::new(Switch::default());
        let shown = Shown {
            paths: Mutex::new(vec![source.to_owned()]),
            switch: Arc::clone(&switch),
        };
        let mut config = Config::default();
        config.mount_options = vec![MountOption::RO, MountOption::FSName("flaky".to_owned())];
        Self {
            _session: fuser::spawn_mount(shown, dir.path(), &config).unwrap(),
            switch,
            dir,
        }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }
}

struct Shown {
    /// Paths by inode number, from 1 on.
    paths: Mutex<Vec<PathBuf>>,
    switch: Arc<Switch>,
}

impl Shown {
    fn path(&self, inode: INodeNo) -> PathBuf {
        self.paths.lock().unwrap()[usize::try_from(inode.0).unwrap() - 1].clone()
    }

    fn inode(&self, path: PathBuf) -> INodeNo {
        let mut paths = self.paths.lock().unwrap();
        let known = paths.iter().position(|known| *known == path);
        let index = known.unwrap_or_else(|| {
            paths.push(path);
            paths.len() - 1
        });
        INodeNo(index as u64 + 1)
    }

    fn fails(&self, fault: &AtomicBool) -> bool {
        let fails = fault.load(Ordering::Relaxed);
        self.switch
            .failed
            .fetch_add(u64::from(fails), Ordering::Relaxed);
        fails
    }
}

fn kind(metadata: &Metadata) -> FileType {
    if metadata.is_dir() {
        FileType::Directory
    } else {
        FileType::RegularFile
    }
}

fn attributes(inode: INodeNo, metadata: &Metadata) -> FileAttr {
    let time = metadata.modified().unwrap();
    FileAttr {
        ino: inode,
        size: metadata.len(),
        blocks: metadata.blocks(),
        atime: time,
        mtime: time,
        ctime: time,
        crtime: time,
        kind: kind(metadata),
        perm: u16::try_from(metadata.permissions().mode() & 0o7777).unwrap(),
        nlink: 1,
        uid: metadata.uid(),
        gid: metadata.gid(),
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

const NOT_LONG: Duration = Duration::ZERO;

impl Filesystem for Shown {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let path = self.path(parent).join(name);
        match fs::symlink_metadata(&path) {
            Ok(metadata) => {
                let attributes = attributes(self.inode(path), &metadata);
                reply.entry(&NOT_LONG, &attributes, Generation(0));
            }
            Err(_) => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match fs::symlink_metadata(self.path(inode)) {
            Ok(metadata) => reply.attr(&NOT_LONG, &attributes(inode, &metadata)),
            Err(_) => reply.error(Errno::ENOENT),
        }
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        // Bypass the page cache, so that every read gets here.
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        len_bytes: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        if self.fails(&self.switch.data) {
            return reply.error(Errno::EIO);
        }
        let mut bytes = vec![0; len_bytes as usize];
        let file = File::open(self.path(inode)).unwrap();
        let count = file.read_at(&mut bytes, offset).unwrap();
        reply.data(&bytes[..count]);
    }

    fn readdir(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        if self.fails(&self.switch.names) {
            return reply.error(Errno::EIO);
        }
        let dir = self.path(inode);
        let mut entries: Vec<_> = fs::read_dir(&dir).unwrap().map(Result::unwrap).collect();
        entries.sort_by_key(fs::DirEntry::file_name);
        let first = usize::try_from(offset).unwrap();
        for (next, entry) in (1..).zip(&entries).skip(first) {
            let kind = kind(&entry.metadata().unwrap());
            if reply.add(self.inode(entry.path()), next, kind, entry.file_name()) {
                break;
            }
        }
        reply.ok();
    }
}
