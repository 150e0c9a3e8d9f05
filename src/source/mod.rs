//! Where the trees of paths, and the bytes of their files, come from.
//!
//! [`TreeSource`] is the closed list of places. [`HostTree`] is the only one that opens files of the host. All devices
//! read files by [`File::read_into`].

pub mod decompress;
mod destination;
mod error;
mod file_cache;
mod host;
mod memory;
pub mod nar;
pub mod remote;

use std::path::PathBuf;
use std::sync::Arc;

pub use destination::{Destination, DestinationError};
pub use error::{Awaits, SourceError};
pub use file_cache::FileId;
pub use host::{HostFile, HostTree, Identity};
pub use memory::MemoryTree;
pub use remote::{NarFile, RemotePath, RemoteTree};

use crate::tree::{Detail, FileKind, Listing, Stamp, Stat};

/// Whether a call may wait for a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IoMode {
    /// What is not in memory is refused with [`SourceError::WouldBlock`].
    NoWait,
    /// A disk is waited for; what must be fetched first is refused with [`SourceError::WouldBlock`].
    Local,
    /// As long as it takes.
    Blocking,
}

/// A place with trees. Paths are bytes relative to it.
#[derive(Debug)]
pub enum TreeSource {
    /// A directory of the host.
    Host(Arc<HostTree>),
    /// Memory of this process.
    Memory(MemoryTree),
    /// A fetcher process.
    Remote(Arc<RemoteTree>),
}

/// One tree of a source: a store path, or all of it.
#[derive(Debug, Clone, Copy)]
pub struct PathTree<'s> {
    /// Where it is.
    pub source: &'s TreeSource,
    /// Its name there; empty for all of it.
    pub name: &'s [u8],
    /// Which file of the host its top node must be, if it can be replaced.
    pub identity: Option<Identity>,
}

impl TreeSource {
    /// What lies at `path`, a symlink being itself; and which file of the host it is.
    ///
    /// # Errors
    /// When nothing lies there, or the source cannot tell.
    pub fn stat(&self, path: &[u8]) -> Result<(Stat, Option<Identity>), SourceError> {
        match self {
            Self::Host(host) => host.identify(path).map(|(stat, id)| (stat, Some(id))),
            Self::Memory(memory) => memory.stat(path).map(|stat| (stat, None)),
            Self::Remote(remote) => remote.stat(path).map(|stat| (stat, None)),
        }
    }
}

impl PathTree<'_> {
    /// The top node, and its target if it is a symlink.
    ///
    /// # Errors
    /// When nothing lies there, or the source cannot tell.
    pub fn top(&self) -> Result<(Stat, Vec<u8>), SourceError> {
        let (stat, _) = self.source.stat(self.name)?;
        let target = match (stat.kind, self.source) {
            (FileKind::Symlink, TreeSource::Host(host)) => host.read_link(self.name)?,
            (FileKind::Symlink, TreeSource::Remote(remote)) => remote.target(self.name)?,
            _ => Vec::new(),
        };
        Ok((stat, target))
    }

    /// Its path for messages.
    pub fn display_path(&self) -> PathBuf {
        self.path_of(self.name)
    }

    /// A path of its source for messages.
    pub fn path_of(&self, path: &[u8]) -> PathBuf {
        match self.source {
            TreeSource::Host(host) => host.host_path(path),
            TreeSource::Memory(_) => String::from_utf8_lossy(path).into_owned().into(),
            TreeSource::Remote(remote) => remote.display_path(path),
        }
    }

    /// Makes sure that it can be listed without a wait for anything but a disk.
    ///
    /// # Errors
    /// It cannot be fetched; [`SourceError::WouldBlock`] as `mode` has it.
    pub fn prepare(&self, mode: IoMode) -> Result<(), SourceError> {
        match self.source {
            TreeSource::Host(_) | TreeSource::Memory(_) => Ok(()),
            TreeSource::Remote(remote) => remote.prepare(self.name, mode),
        }
    }

    /// The entries of the directory at `path`, sorted by name. [`check`](Self::check) must follow before they are used.
    ///
    /// # Errors
    /// When it is no directory, or the source cannot tell.
    pub fn list(&self, path: &[u8], detail: Detail) -> Result<Listing, SourceError> {
        match self.source {
            TreeSource::Host(host) => host.list(path, detail),
            TreeSource::Memory(memory) => memory.list(path),
            TreeSource::Remote(remote) => remote.list(path),
        }
    }

    /// Makes sure that the tree has not been replaced by another one. To be asked after it was listed.
    ///
    /// # Errors
    /// [`SourceError::Replaced`], or the source cannot tell.
    pub fn check(&self) -> Result<(), SourceError> {
        match (self.source, self.identity) {
            (TreeSource::Host(host), Some(identity)) => host.check_top(self.name, identity),
            _ => Ok(()),
        }
    }

    /// The regular file at `path()`, open. `id` is the caller's own name for it, under which it stays open for a while.
    ///
    /// # Errors
    /// When it cannot be opened, is not what `stamp` says, or its tree has been replaced;
    /// [`SourceError::WouldBlock`] as `mode` has it.
    pub fn open(
        &self,
        id: FileId,
        stamp: Stamp,
        mode: IoMode,
        path: impl FnOnce() -> Vec<u8>,
    ) -> Result<File, SourceError> {
        match self.source {
            TreeSource::Host(host) => host
                .file(id, stamp, self.identity, mode, path)
                .map(File::Host),
            TreeSource::Memory(memory) => memory.open(&path()).map(File::Memory),
            TreeSource::Remote(remote) => remote.open(id, mode, path).map(File::Nar),
        }
    }
}

/// A regular file that is open for reading.
#[derive(Debug, Clone)]
pub enum File {
    /// On the host.
    Host(Arc<HostFile>),
    /// In memory.
    Memory(Arc<[u8]>),
    /// In a NAR.
    Nar(NarFile),
}

impl File {
    /// Puts the bytes `offset..offset + len_bytes` into `to`, wholly, with as few system calls as the kernel allows.
    ///
    /// # Errors
    /// When the source cannot read, the file ends early or is not what was planned any more, or `to` cannot be written
    /// to; any part of it may have been written then. [`SourceError::WouldBlock`] as `mode` has it.
    pub fn read_into(
        &self,
        to: &mut Destination<'_>,
        offset: u64,
        len_bytes: u64,
        mode: IoMode,
    ) -> Result<(), SourceError> {
        match self {
            Self::Host(file) => file.read_into(to, offset, len_bytes, mode),
            Self::Nar(file) => file.read_into(to, offset, len_bytes, mode),
            Self::Memory(bytes) => {
                let at = |byte| usize::try_from(byte).unwrap_or(usize::MAX);
                let range = at(offset)..at(offset.saturating_add(len_bytes));
                let bytes = bytes.get(range).ok_or(SourceError::Shrank {
                    path: PathBuf::from("a file in memory"),
                })?;
                Ok(to.write(bytes)?)
            }
        }
    }

    /// Asks for a range to be read into the host's memory, without waiting for it.
    ///
    /// # Errors
    /// When the file system cannot read ahead.
    pub fn read_ahead(&self, offset: u64, len_bytes: u64) -> Result<(), SourceError> {
        match self {
            Self::Host(file) => file.read_ahead(offset, len_bytes),
            Self::Nar(file) => file.read_ahead(offset, len_bytes),
            Self::Memory(_) => Ok(()),
        }
    }
}
