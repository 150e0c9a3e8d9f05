//! The FUSE file system: one directory with one file.
//!
//! Nothing ever changes, so the kernel may cache names, attributes and pages for ever, even when the file is opened
//! again. Reads go through the page cache, which allows shared mappings; `O_DIRECT` bypasses it.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant, SystemTime};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEmpty,
    ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs, Request,
};

use super::super::log_limit::{LogLimit, and_similar};
pub(super) use super::readers::Readers;
use crate::image::{Image, ReadError, Seek};

/// Inode number of the file; the directory has number 1.
const FILE: INodeNo = INodeNo(2);
/// How long the kernel may cache an answer.
const FOR_EVER: Duration = Duration::from_secs(u32::MAX as u64);
/// Maximum number of readahead requests that the kernel may queue. With its default of 12, several VMs block each
/// other.
const MAX_BACKGROUND: u16 = 64;
/// `st_blocks` counts sectors of 512 bytes.
const SECTORS_PER_BLOCK: u64 = 8;

thread_local! {
    /// The thread's reply buffer. It is reused, because zeroing a new buffer would cost as much as filling it.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The file system.
pub(super) struct ImageFile {
    image: Arc<Image>,
    name: String,
    owner: (u32, u32),
    limit: LogLimit,
    readers: Arc<Readers>,
    /// Receives a message when the last reader closes the file.
    on_last_close: Sender<()>,
}

impl ImageFile {
    pub(super) fn new(
        image: Arc<Image>,
        name: &str,
        readers: Arc<Readers>,
        on_last_close: Sender<()>,
    ) -> Self {
        let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
        Self {
            image,
            name: name.to_owned(),
            owner: (uid.as_raw(), gid.as_raw()),
            limit: LogLimit::new(),
            readers,
            on_last_close,
        }
    }

    fn attributes(&self, inode: INodeNo) -> Option<FileAttr> {
        match inode {
            INodeNo::ROOT => Some(self.attr(inode, FileType::Directory, 0o555, 0, 0)),
            FILE => {
                let size = self.image.len_bytes();
                Some(self.attr(inode, FileType::RegularFile, 0o444, size, self.blocks()))
            }
            _ => None,
        }
    }

    /// A lower bound for `st_blocks`: one block per path. Programs look for holes if it is less than the size, and
    /// assume only holes if it is zero.
    fn blocks(&self) -> u64 {
        (self.image.space().regions().len() as u64 + 1) * SECTORS_PER_BLOCK
    }

    fn attr(&self, ino: INodeNo, kind: FileType, perm: u16, size: u64, blocks: u64) -> FileAttr {
        // The mtime of everything in a store, since the disk does not depend on when it is served.
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1);
        FileAttr {
            ino,
            size,
            blocks,
            atime: time,
            mtime: time,
            ctime: time,
            crtime: time,
            kind,
            perm,
            nlink: if kind == FileType::Directory { 2 } else { 1 },
            uid: self.owner.0,
            gid: self.owner.1,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }

    /// Reads into the thread's buffer; a read beyond the end is shortened.
    fn read_into<'b>(
        &self,
        buffer: &'b mut Vec<u8>,
        offset: u64,
        len_bytes: u32,
    ) -> Result<&'b [u8], ReadError> {
        let left = self.image.len_bytes().saturating_sub(offset);
        let len = usize::try_from(u64::from(len_bytes).min(left)).unwrap_or(0);
        if buffer.len() < len {
            buffer.resize(len, 0);
        }
        let wanted = &mut buffer[..len];
        self.image.read_exact_at(wanted, offset)?;
        Ok(wanted)
    }

    /// Converts a read error to an errno and logs it. All errors become EIO.
    fn fail(&self, offset: u64, len_bytes: u32, error: &ReadError) -> Errno {
        if let Some(dropped) = self.limit.pass_request(self.image.culprit(error)) {
            let more = and_similar(dropped);
            tracing::warn!("read of {len_bytes} bytes at {offset} failed: {error}{more}");
        }
        Errno::EIO
    }
}

impl Filesystem for ImageFile {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Errors are ignored: these are optimisations that older kernels may lack. fuser itself requests the maximum
        // number of pages per request, which is 1 MiB.
        for wanted in [InitFlags::FUSE_ASYNC_DIO, InitFlags::FUSE_PARALLEL_DIROPS] {
            let _ = config.add_capabilities(wanted);
        }
        let _ = config.set_max_background(MAX_BACKGROUND);
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = (parent == INodeNo::ROOT && name == OsStr::new(&self.name)).then_some(FILE);
        match found.and_then(|inode| self.attributes(inode)) {
            Some(attr) => reply.entry(&FOR_EVER, &attr, Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _request: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.attributes(inode) {
            Some(attr) => reply.attr(&FOR_EVER, &attr),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn open(&self, _request: &Request, _inode: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.readers.opened();
        let flags = FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH;
        reply.opened(FileHandle(0), flags);
    }

    fn read(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        len_bytes: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let (taken, counters) = (Instant::now(), self.readers.counters());
        counters.took(1);
        BUFFER.with_borrow_mut(|buffer| {
            let read = self.read_into(buffer, offset, len_bytes);
            // Count before replying: the last reader may close the file as soon as it has the reply.
            counters.count(read.as_ref().ok().map(|bytes| bytes.len() as u64));
            counters.left(1);
            counters.took_since(taken, 1);
            counters.set_plans(self.image.plans_begun());
            match read {
                Ok(bytes) => reply.data(bytes),
                Err(error) => reply.error(self.fail(offset, len_bytes, &error)),
            }
        });
    }

    fn lseek(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let wanted = match whence {
            libc::SEEK_DATA => Seek::Data,
            libc::SEEK_HOLE => Seek::Hole,
            _ => return reply.error(Errno::EINVAL),
        };
        let found = u64::try_from(offset)
            .ok()
            .and_then(|offset| self.image.seek(offset, wanted));
        match found.map(i64::try_from) {
            Some(Ok(found)) => reply.offset(found),
            _ => reply.error(Errno::ENXIO),
        }
    }

    fn release(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        reply.ok();
        if self.readers.closed() {
            // The receiver exists only if the server exits after the last close.
            let _ = self.on_last_close.send(());
        }
    }

    fn readdir(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let entries = [
            (INodeNo::ROOT, FileType::Directory, "."),
            (INodeNo::ROOT, FileType::Directory, ".."),
            (FILE, FileType::RegularFile, &self.name),
        ];
        let first = usize::try_from(offset).unwrap_or(usize::MAX);
        for (next, (inode, kind, name)) in (1..).zip(entries).skip(first) {
            if reply.add(inode, next, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _request: &Request, _inode: INodeNo, reply: ReplyStatfs) {
        let blocks = self.image.len_bytes() / 4096;
        reply.statfs(blocks, 0, 0, 2, 0, 4096, 255, 4096);
    }
}
