//! The sources of file trees and file contents.
//!
//! [`TreeSource`] is the closed list of sources. Only [`HostTree`] opens files of the host. All devices read files with
//! [`File::read_into`].

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
pub use host::{HostFile, HostTree, Identity, Mark};
pub use memory::MemoryTree;
pub use remote::{NarFile, RemotePath, RemoteTree};

use crate::tree::{Detail, FileKind, Listing, Stamp, Stat};

/// What a call may wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IoMode {
    /// Nothing: [`SourceError::WouldBlock`] if something is not in memory.
    NoWait,
    /// Disks: [`SourceError::WouldBlock`] if something must be fetched.
    Local,
    /// Everything.
    Blocking,
}

/// A source of trees. Paths are bytes relative to its root.
#[derive(Debug)]
pub enum TreeSource {
    /// A directory of the host.
    Host(Arc<HostTree>),
    /// Files in memory.
    Memory(MemoryTree),
    /// Paths fetched by another process.
    Remote(Arc<RemoteTree>),
}

/// One tree of a source: a store path, or the whole source.
#[derive(Debug, Clone, Copy)]
pub struct PathTree<'s> {
    /// The source.
    pub source: &'s TreeSource,
    /// Its name in the source; empty for the whole source.
    pub name: &'s [u8],
    /// The identity that its top node must have on the host; `None` for sources that cannot be replaced.
    pub identity: Option<Identity>,
}

impl TreeSource {
    /// Returns the attributes of `path` (without following a symlink), and its identity on the host.
    ///
    /// # Errors
    /// It does not exist, or the source fails.
    pub fn stat(&self, path: &[u8]) -> Result<(Stat, Option<Identity>), SourceError> {
        match self {
            Self::Host(host) => host.identify(path).map(|(stat, id)| (stat, Some(id))),
            Self::Memory(memory) => memory.stat(path).map(|stat| (stat, None)),
            Self::Remote(remote) => remote.stat(path).map(|stat| (stat, None)),
        }
    }
}

impl PathTree<'_> {
    /// Returns the attributes of the top node, and its target if it is a symlink.
    ///
    /// # Errors
    /// It does not exist, or the source fails.
    pub fn top(&self) -> Result<(Stat, Vec<u8>), SourceError> {
        let (stat, _) = self.source.stat(self.name)?;
        let target = match (stat.kind, self.source) {
            (FileKind::Symlink, TreeSource::Host(host)) => host.read_link(self.name)?,
            (FileKind::Symlink, TreeSource::Remote(remote)) => remote.target(self.name)?,
            _ => Vec::new(),
        };
        Ok((stat, target))
    }

    /// Returns its path, for messages.
    pub fn display_path(&self) -> PathBuf {
        self.path_of(self.name)
    }

    /// Returns the path `path` of its source, for messages.
    pub fn path_of(&self, path: &[u8]) -> PathBuf {
        match self.source {
            TreeSource::Host(host) => host.host_path(path),
            TreeSource::Memory(_) => String::from_utf8_lossy(path).into_owned().into(),
            TreeSource::Remote(remote) => remote.display_path(path),
        }
    }

    /// Makes sure that listing it waits for nothing except disks.
    ///
    /// # Errors
    /// It cannot be fetched; [`SourceError::WouldBlock`] according to `mode`.
    pub fn prepare(&self, mode: IoMode) -> Result<(), SourceError> {
        match self.source {
            TreeSource::Host(_) | TreeSource::Memory(_) => Ok(()),
            TreeSource::Remote(remote) => remote.prepare(self.name, mode),
        }
    }

    /// Returns the entries of the directory at `path`, sorted by name. Call [`check`](Self::check) before using them.
    ///
    /// # Errors
    /// It is not a directory, or the source fails.
    pub fn list(&self, path: &[u8], detail: Detail) -> Result<Listing, SourceError> {
        match self.source {
            TreeSource::Host(host) => host.list(path, detail),
            TreeSource::Memory(memory) => memory.list(path),
            TreeSource::Remote(remote) => remote.list(path),
        }
    }

    /// Checks that the tree has not been replaced by another one. To be called after listing it.
    ///
    /// # Errors
    /// [`SourceError::Replaced`], or the source fails.
    pub fn check(&self) -> Result<(), SourceError> {
        match (self.source, self.identity) {
            (TreeSource::Host(host), Some(identity)) => host.check_top(self.name, identity),
            _ => Ok(()),
        }
    }

    /// Opens the regular file at `path()`. `id` is the caller's identifier for it, under which it stays open in a
    /// cache.
    ///
    /// # Errors
    /// It cannot be opened, does not match `stamp`, or its tree has been replaced; [`SourceError::WouldBlock`]
    /// according to `mode`.
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

/// An open regular file.
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
    /// Reads exactly the bytes `offset..offset + len_bytes` into `to`, with as few system calls as possible.
    ///
    /// # Errors
    /// Reading fails, the file ends early or has changed since it was planned, or `to` cannot be written to. Parts of
    /// `to` may have been written then. [`SourceError::WouldBlock`] according to `mode`.
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

    /// Starts to read a range into the host's page cache, without waiting for it.
    ///
    /// # Errors
    /// The file system does not support readahead.
    pub fn read_ahead(&self, offset: u64, len_bytes: u64) -> Result<(), SourceError> {
        match self {
            Self::Host(file) => file.read_ahead(offset, len_bytes),
            Self::Nar(file) => file.read_ahead(offset, len_bytes),
            Self::Memory(_) => Ok(()),
        }
    }
}
