//! Adapts [`Image`] to the asynchronous interface of erofs-rs. All futures complete without waiting.

use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use erofs_rs::r#async::{EroFS, WalkDirEntry};
use erofs_rs::backend::AsyncImage;
use erofs_rs::types::{Inode, Layout};
use erofs_rs::{Error, Result};

use crate::erofs::format::{BLOCK_LEN_BYTES, BLOCK_LEN_USIZE};
use crate::image::{Image, ReadError};

/// Bytes of a file to read from the disk at once, like a guest's readahead.
pub(super) const WINDOW_LEN: usize = 128 << 10;
/// Number of metadata blocks to cache. erofs-rs reads one inode at a time, and a block has many.
const KEPT_BLOCKS: usize = 64;

/// A disk with a cache of recently read blocks.
pub(super) struct BufferedDisk<'a> {
    image: &'a Image,
    /// The mutex is never contended, since each thread has its own reader. erofs-rs requires `Sync`.
    recent: Mutex<Recent>,
}

/// Cached bytes of the disk.
struct Recent {
    window: Vec<u8>,
    window_start: u64,
    /// How many bytes of a file's data to read ahead; 0 for reads of metadata.
    ahead: u64,
    blocks: Vec<Option<(u64, Box<[u8; BLOCK_LEN_USIZE]>)>>,
}

impl<'a> BufferedDisk<'a> {
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
    /// Metadata block `block`, from the cache or the disk.
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

    /// Reads `ahead` bytes at once and serves later reads of the same range from the window.
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

/// Shares the disk between erofs-rs, which takes ownership of its image, and [`Reader`].
pub(super) struct Handle<'a>(Arc<BufferedDisk<'a>>);

impl AsyncImage for Handle<'_> {
    async fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let read = self.0.read(buf, offset);
        read.map_err(|error| Error::Io(std::io::Error::other(error)))
    }
}

/// Iterates over all files below a directory in pre-order, sorted by name.
pub(super) type TreeWalk<'r, 'a> = erofs_rs::r#async::WalkDir<'r, Handle<'a>>;

/// An open disk, to be used by one thread.
pub(super) struct Reader<'a> {
    fs: EroFS<Handle<'a>>,
    disk: Arc<BufferedDisk<'a>>,
}

impl<'a> Reader<'a> {
    pub(super) fn open(image: &'a Image) -> Result<Self> {
        let disk = Arc::new(BufferedDisk::new(image));
        let fs = now(EroFS::new(Handle(disk.clone())))?;
        Ok(Self { fs, disk })
    }

    pub(super) fn root(&self) -> Result<Inode> {
        let nid = self.fs.super_block().root_inode_id();
        now(self.fs.get_inode(nid))
    }

    /// Returns the names and inodes of the root directory. Entries whose inodes cannot be read are skipped (see
    /// [`Reader::why_absent`]), up to `count` of them.
    pub(super) fn root_entries(&self, count: usize) -> Result<Vec<(Vec<u8>, Inode)>> {
        let mut entries = now(self.fs.read_dir("/"))?;
        let (mut found, mut failed) = (Vec::new(), 0);
        // An unreadable directory block returns the same error for ever, so the number of errors is limited.
        while failed <= count {
            match next(&mut entries) {
                Some(Ok(entry)) => found.push((entry.dir_entry.file_name().to_vec(), entry.inode)),
                Some(Err(_)) => failed += 1,
                None => break,
            }
        }
        Ok(found)
    }

    /// Returns why the root directory's entry `name` could not be read; `None` if there is no such entry.
    pub(super) fn why_absent(&self, name: &[u8]) -> Option<Error> {
        match now(self.fs.open(at_root(name))) {
            Ok(_) | Err(Error::PathNotFound(_)) => None,
            Err(error) => Some(error),
        }
    }

    /// Iterates over everything below the root directory's entry `name`.
    pub(super) fn walk(&self, name: &[u8]) -> Result<TreeWalk<'_, 'a>> {
        now(self.fs.walk_dir(at_root(name)))
    }

    pub(super) fn target(&self, inode: Inode) -> Result<Vec<u8>> {
        Ok(now(self.fs.read_link_inode(inode))?.into_vec())
    }

    /// Fills `buf` with the contents of the file `inode` at `offset`.
    pub(super) fn read(&self, inode: Inode, buf: &mut [u8], offset: u64) -> Result<()> {
        // Inlined data is in a metadata block, which is cached as a whole.
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

/// Returns the next entry of a walk. The walk must not be used after an error.
pub(super) fn next(walk: &mut TreeWalk<'_, '_>) -> Option<Result<WalkDirEntry>> {
    poll(walk.next_entry()).unwrap_or_else(|| Some(Err(waited())))
}

fn at_root(name: &[u8]) -> Vec<u8> {
    [b"/", name].concat()
}

fn now<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    poll(future).unwrap_or_else(|| Err(waited()))
}

/// Polls a future once. `None` if it is pending, which does not happen here.
fn poll<T>(future: impl Future<Output = T>) -> Option<T> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}

fn waited() -> Error {
    Error::NotSupported("a read that waits".to_owned())
}
