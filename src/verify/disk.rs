//! The disk as erofs-rs wants it: an image that is read asynchronously, by futures that never wait.

use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use erofs_rs::r#async::{EroFS, WalkDirEntry};
use erofs_rs::backend::AsyncImage;
use erofs_rs::types::{Inode, Layout};
use erofs_rs::{Error, Result};

use crate::erofs::format::{BLOCK_LEN_BYTES, BLOCK_LEN_USIZE};
use crate::image::{Image, ReadError};

/// Bytes of a file that are read from the disk at once, as a guest's readahead would.
pub(super) const WINDOW_LEN: usize = 128 << 10;
/// Metadata blocks that are kept. erofs-rs asks for an inode at a time, and a block has many.
const KEPT_BLOCKS: usize = 64;

/// A disk, with what was last read from it.
pub(super) struct Disk<'a> {
    image: &'a Image,
    /// One reader uses it at a time; erofs-rs wants to be able to share it.
    recent: Mutex<Recent>,
}

/// Bytes of the disk as they were read from it, by address.
struct Recent {
    window: Vec<u8>,
    window_start: u64,
    /// How many bytes of a file are wanted; zero while metadata is read.
    ahead: u64,
    blocks: Vec<Option<(u64, Box<[u8; BLOCK_LEN_USIZE]>)>>,
}

impl<'a> Disk<'a> {
    fn new(image: &'a Image) -> Self {
        let recent = Recent {
            window: Vec::with_capacity(WINDOW_LEN),
            window_start: 0,
            ahead: 0,
            blocks: vec![None; KEPT_BLOCKS],
        };
        Self {
            image,
            recent: Mutex::new(recent),
        }
    }

    fn recent(&self) -> MutexGuard<'_, Recent> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self, buf: &mut [u8], offset: u64) -> std::result::Result<(), ReadError> {
        let mut recent = self.recent();
        if recent.ahead > 0 {
            return recent.read_ahead(self.image, buf, offset);
        }
        let block = offset / BLOCK_LEN_BYTES;
        let start = usize::try_from(offset % BLOCK_LEN_BYTES).unwrap_or(0);
        if start + buf.len() > BLOCK_LEN_USIZE {
            return self.image.read_exact_at(buf, offset);
        }
        let bytes = recent.block(self.image, block)?;
        buf.copy_from_slice(&bytes[start..start + buf.len()]);
        Ok(())
    }
}

impl Recent {
    /// Metadata block `block`.
    fn block(
        &mut self,
        image: &Image,
        block: u64,
    ) -> std::result::Result<&[u8; BLOCK_LEN_USIZE], ReadError> {
        let slot = usize::try_from(block).unwrap_or(0) % KEPT_BLOCKS;
        let kept = match self.blocks[slot].take() {
            Some(kept) if kept.0 == block => kept,
            other => {
                let mut bytes =
                    other.map_or_else(|| Box::new([0; BLOCK_LEN_USIZE]), |(_, old)| old);
                image.read_exact_at(&mut bytes[..], block * BLOCK_LEN_BYTES)?;
                (block, bytes)
            }
        };
        Ok(&self.blocks[slot].insert(kept).1)
    }

    /// Reads more than was asked for, as far as the rest of the file is contiguous.
    fn read_ahead(
        &mut self,
        image: &Image,
        buf: &mut [u8],
        offset: u64,
    ) -> std::result::Result<(), ReadError> {
        if !self.holds(offset, buf.len()) {
            let wanted = usize::try_from(self.ahead).unwrap_or(WINDOW_LEN);
            self.window
                .resize(wanted.clamp(buf.len(), WINDOW_LEN.max(buf.len())), 0);
            self.window_start = offset;
            if let Err(error) = image.read_exact_at(&mut self.window, offset) {
                self.window.clear();
                return Err(error);
            }
        }
        let start = usize::try_from(offset - self.window_start).unwrap_or(0);
        buf.copy_from_slice(&self.window[start..start + buf.len()]);
        Ok(())
    }

    fn holds(&self, offset: u64, len: usize) -> bool {
        let end = self.window_start + self.window.len() as u64;
        offset >= self.window_start && offset + len as u64 <= end
    }
}

/// The same disk for erofs-rs, which keeps what it reads from to itself, and for the reader.
pub(super) struct Handle<'a>(Arc<Disk<'a>>);

impl AsyncImage for Handle<'_> {
    async fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let read = self.0.read(buf, offset);
        read.map_err(|error| Error::Io(std::io::Error::other(error)))
    }
}

/// All files below a directory, each directory right before what is in it, in the order of names.
pub(super) type Walk<'r, 'a> = erofs_rs::r#async::WalkDir<'r, Handle<'a>>;

/// An open disk, for one thread.
pub(super) struct Reader<'a> {
    fs: EroFS<Handle<'a>>,
    disk: Arc<Disk<'a>>,
}

impl<'a> Reader<'a> {
    pub(super) fn open(image: &'a Image) -> Result<Self> {
        let disk = Arc::new(Disk::new(image));
        let fs = now(EroFS::new(Handle(disk.clone())))?;
        Ok(Self { fs, disk })
    }

    pub(super) fn root(&self) -> Result<Inode> {
        let nid = self.fs.super_block().root_inode_id();
        now(self.fs.get_inode(nid))
    }

    /// Names and inodes of the root directory. Those whose inodes cannot be read are left out;
    /// [`Reader::why_absent`] tells more of them. `count` is how many may be so.
    pub(super) fn root_entries(&self, count: usize) -> Result<Vec<(Vec<u8>, Inode)>> {
        let mut entries = now(self.fs.read_dir("/"))?;
        let (mut found, mut failed) = (Vec::new(), 0);
        // A directory block that cannot be read fails again and again.
        while failed <= count {
            match next(&mut entries) {
                Some(Ok(entry)) => found.push((entry.dir_entry.file_name().to_vec(), entry.inode)),
                Some(Err(_)) => failed += 1,
                None => break,
            }
        }
        Ok(found)
    }

    /// Why the root directory's entry `name` could not be read; none if there is no such entry.
    pub(super) fn why_absent(&self, name: &[u8]) -> Option<Error> {
        match now(self.fs.open(at_root(name))) {
            Ok(_) | Err(Error::PathNotFound(_)) => None,
            Err(error) => Some(error),
        }
    }

    /// Everything below the directory `name` of the root directory.
    pub(super) fn walk(&self, name: &[u8]) -> Result<Walk<'_, 'a>> {
        now(self.fs.walk_dir(at_root(name)))
    }

    pub(super) fn target(&self, inode: Inode) -> Result<Vec<u8>> {
        Ok(now(self.fs.read_link_inode(inode))?.into_vec())
    }

    /// Fills `buf` with what the file `inode` holds from `offset` on.
    pub(super) fn read(&self, inode: Inode, buf: &mut [u8], offset: u64) -> Result<()> {
        // What is inlined comes with its block.
        let ahead = match inode.layout() {
            Some(Layout::FlatPlain) => buf.len() as u64,
            _ => 0,
        };
        self.disk.recent().ahead = ahead;
        let done = self.fill(inode, buf, offset);
        self.disk.recent().ahead = 0;
        done
    }

    fn fill(&self, inode: Inode, buf: &mut [u8], offset: u64) -> Result<()> {
        let file = self.fs.open_inode_file(inode)?;
        let mut filled = 0;
        while filled < buf.len() {
            match now(file.read_at(&mut buf[filled..], offset + filled as u64))? {
                0 => return Err(Error::CorruptedData("the file ends early".to_owned())),
                count => filled += count,
            }
        }
        Ok(())
    }
}

/// The next entry of a walk. After an error the walk is of no use.
pub(super) fn next(walk: &mut Walk<'_, '_>) -> Option<Result<WalkDirEntry>> {
    poll(walk.next_entry()).unwrap_or_else(|| Some(Err(waited())))
}

fn at_root(name: &[u8]) -> Vec<u8> {
    [b"/", name].concat()
}

fn now<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    poll(future).unwrap_or_else(|| Err(waited()))
}

/// The result of a future that does not wait.
fn poll<T>(future: impl Future<Output = T>) -> Option<T> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}

fn waited() -> Error {
    Error::NotSupported("a read that waits".to_owned())
}
