//! The disk as something to read from: block to extents.
//!
//! [`Image::visit`] is the one way in. It finds what a range consists of and hands out [`Piece`]s; whoever
//! asks decides how file bytes get to where they are wanted. Transports and tests share it, and it knows
//! neither sockets nor guests.

mod build;
mod builtin;
mod error;
mod fingerprint;
mod footprint;
mod locate;
mod plans;
mod prefetch;
mod ranges;
mod recorder;
pub mod recording;
mod seek;
#[cfg(test)]
pub mod testing;
mod walk;

use std::ffi::OsStr;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};

use smallvec::SmallVec;

use crate::closure::Pins;
use crate::erofs::encode::{self, Block};
use crate::erofs::format::{BLOCK_LEN_BYTES, BLOCK_LEN_USIZE};
use crate::erofs::layout::plan::{NodeIndex, Plan};
use crate::erofs::layout::space::{Area, ROOT_NID, Space};
use crate::erofs::volume::{DataPart, Volume, data_parts};
use crate::source::{
    Awaits, Destination, File, FileId, HostTree, Identity, IoMode, PathTree, RemoteTree,
    SourceError, TreeSource,
};
use crate::tree::FileKind;

pub use build::ImageOptions;
pub use builtin::{DIR as BUILTIN_DIR, REGISTRATION as REGISTRATION_NAME};
pub use error::{ImageError, ReadError};
pub use fingerprint::{Fingerprint, NotAFingerprint};
pub use footprint::{Footprint, Touched};
pub use locate::Usage;
pub use prefetch::Prefetched;
pub use seek::Seek;
pub use walk::LISTERS_MAX;

use plans::{Need, Plans, Wanted};
use recorder::Recorder;
pub use recorder::Start;

/// A part of a range, in the order of the disk.
#[derive(Debug)]
pub enum Piece<'a> {
    /// Bytes made by this program: superblock, inodes, directory entries, inline data.
    Metadata(&'a [u8]),
    /// Bytes of a file, to be read whole or not at all.
    File {
        /// The file, open.
        file: File,
        /// Where in the file.
        offset: u64,
        /// How many bytes; never zero.
        len_bytes: usize,
    },
    /// Bytes that belong to nothing.
    Zeros {
        /// How many; never zero.
        len_bytes: usize,
    },
}

/// The disk.
#[derive(Debug)]
pub struct Image {
    host: Arc<HostTree>,
    sources: Vec<TreeSource>,
    volume: Volume,
    /// Of each region.
    origins: Vec<Origin>,
    plans: Plans,
    recorder: OnceLock<Recorder>,
    /// With what this process is to it.
    footprint: OnceLock<(Arc<Footprint>, u64)>,
    /// Held as long as the disk may be read.
    pins: Arc<Pins>,
    /// One of the sources, if some paths are not on this host.
    remote: Option<Arc<RemoteTree>>,
    /// None of a tree, which may change at any time.
    fingerprint: Option<Fingerprint>,
}

/// Where a path comes from.
#[derive(Debug, Clone, Copy)]
struct Origin {
    /// Index of its source.
    source: usize,
    /// Which file of the host it was when the disk was made; none for what cannot be replaced.
    identity: Option<Identity>,
}

/// A range that is being handed out.
struct Cursor {
    offset: u64,
    end: u64,
}

impl Cursor {
    /// Block numbers fit 32 bits: the disk is smaller than 16 TiB.
    fn block(&self) -> u32 {
        u32::try_from(self.offset / BLOCK_LEN_BYTES).unwrap_or(u32::MAX)
    }

    fn in_block(&self) -> usize {
        usize::try_from(self.offset % BLOCK_LEN_BYTES).unwrap_or(0)
    }

    /// What is left, up to the start of block `block`.
    fn left_before(&self, block: u64) -> u64 {
        self.end.min(block * BLOCK_LEN_BYTES) - self.offset
    }
}

impl Image {
    /// Length of the disk, a multiple of 2 MiB.
    pub fn len_bytes(&self) -> u64 {
        self.space().len_bytes()
    }

    /// The file that holds the closure, if a file does; it is removed with the disk.
    pub fn pins_file(&self) -> Option<&Path> {
        self.pins.file()
    }

    /// How many host files it may keep open.
    pub fn max_open_files(&self) -> usize {
        self.host.max_open_files()
    }

    /// About how much memory plans take at most.
    pub fn plan_cache_bytes(&self) -> usize {
        self.plans.limit_bytes()
    }

    /// The host's directory from which all of it is read.
    pub fn store_dir(&self) -> BorrowedFd<'_> {
        self.host.dir()
    }

    /// How often the planning of a path was begun.
    pub fn plans_begun(&self) -> u64 {
        self.plans.begun.load(Ordering::Relaxed)
    }

    /// What has the paths that are not on this host, if there is such a source.
    pub fn remote(&self) -> Option<&RemoteTree> {
        self.remote.as_deref()
    }

    /// Identity of the disk; none of a tree.
    pub fn fingerprint(&self) -> Option<&Fingerprint> {
        self.fingerprint.as_ref()
    }

    /// Where that directory is.
    pub fn store_path(&self) -> &Path {
        self.host.path()
    }

    /// The names there of the paths on the disk that are read from it.
    pub fn host_paths(&self) -> impl Iterator<Item = &[u8]> {
        let regions = self.space().regions().iter().zip(&self.origins);
        let of_host = |origin: &Origin| matches!(self.sources[origin.source], TreeSource::Host(_));
        let here = regions.filter(move |(_, origin)| of_host(origin));
        here.map(|(region, _)| &*region.name)
    }

    /// In a process of its own: reads from `dir` from now on, where the same is mounted in another namespace.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn move_to(&self, dir: impl AsFd) -> io::Result<()> {
        self.host.move_to(dir)
    }

    /// In a process of its own: lets go of what holds the closure, which another process does too.
    pub fn leave_pins(&self) {
        self.pins.leave();
    }

    /// Whether the disk is a directory as it is, and not a closure.
    pub fn is_tree(&self) -> bool {
        self.volume.is_tree()
    }

    /// The disk's address ranges.
    pub fn space(&self) -> &Space {
        self.volume.space()
    }

    /// From now on writes down which blocks are read, as a [`recording`], to `file`, which is open for appending.
    /// `take_turn` is asked once, when there is something to write, and says where to begin, or that there is no need. A
    /// second call does nothing.
    pub fn record_to(
        &self,
        file: std::fs::File,
        take_turn: impl FnOnce() -> Option<Start> + Send + 'static,
    ) {
        let disk = self.fingerprint.as_ref().map(Fingerprint::to_string);
        let _ = self.recorder.set(Recorder::new(file, disk, take_turn));
    }

    /// From now on notes in `footprint` what is read, by `reader`. A second call does nothing.
    pub fn note_in(&self, footprint: Arc<Footprint>, reader: u64) {
        let _ = self.footprint.set((footprint, reader));
    }

    /// Calls `sink` with the pieces that make up `offset..offset + len_bytes`, in order and without gaps.
    ///
    /// # Errors
    /// The first [`ReadError`], or what `sink` returned. Pieces already handed out must then be discarded.
    pub fn visit(
        &self,
        offset: u64,
        len_bytes: u64,
        sink: &mut dyn FnMut(Piece<'_>) -> Result<(), ReadError>,
    ) -> Result<(), ReadError> {
        self.visit_with(IoMode::Blocking, offset, len_bytes, sink)
    }

    /// Like [`visit`](Self::visit), and with [`IoMode::NoWait`] only if everything is in memory: plans, names and small
    /// files. Whether the bytes of a [`Piece::File`] are, is for `sink` to find out.
    ///
    /// # Errors
    /// As `visit`, and one for which [`ReadError::would_block`] tells what is missing.
    pub fn visit_with(
        &self,
        mode: IoMode,
        offset: u64,
        len_bytes: u64,
        sink: &mut dyn FnMut(Piece<'_>) -> Result<(), ReadError>,
    ) -> Result<(), ReadError> {
        let end = self.checked_end(offset, len_bytes)?;
        if let Some(recorder) = self.recorder.get() {
            recorder.note(self.space(), offset..end);
        }
        let Some((footprint, reader)) = self.footprint.get() else {
            return self.visit_range(mode, offset, end, sink);
        };
        // A read that has to wait is tried again, and is noted as a read once.
        let visited = self.visit_range(mode, offset, end, sink);
        match &visited {
            Ok(()) => footprint.note(*reader, self.space(), offset..end),
            Err(error) if error.would_block() == Some(Awaits::Data) => {
                footprint.note_wait(*reader, self.space(), offset);
            }
            Err(_) => {}
        }
        visited
    }

    fn visit_range(
        &self,
        mode: IoMode,
        offset: u64,
        end: u64,
        sink: &mut dyn FnMut(Piece<'_>) -> Result<(), ReadError>,
    ) -> Result<(), ReadError> {
        let mut cursor = Cursor { offset, end };
        while cursor.offset < cursor.end {
            match self.space().area(cursor.block()) {
                Area::Data { region, block } => {
                    self.visit_data(mode, region, block, &mut cursor, sink)?;
                }
                Area::Unused { end } => {
                    let len = cursor.left_before(u64::from(end));
                    emit_zeros(&mut cursor, len, sink)?;
                }
                area => {
                    let block = self.render(mode, area)?;
                    let start = cursor.in_block();
                    let left = cursor.left_before(u64::from(cursor.block()) + 1);
                    let len = usize::try_from(left).unwrap_or(BLOCK_LEN_USIZE);
                    sink(Piece::Metadata(&block[start..start + len]))?;
                    cursor.offset += left;
                }
            }
        }
        Ok(())
    }

    /// Puts `offset..offset + len_bytes` into `to`; with [`IoMode::NoWait`] only if everything is in memory.
    ///
    /// # Errors
    /// As [`visit_with`](Self::visit_with); any part of `to` may have been written then.
    pub fn read_into(
        &self,
        to: &mut Destination<'_>,
        offset: u64,
        len_bytes: u64,
        mode: IoMode,
    ) -> Result<(), ReadError> {
        self.visit_with(mode, offset, len_bytes, &mut |piece| match piece {
            Piece::Metadata(bytes) => Ok(to.write(bytes)?),
            Piece::Zeros { len_bytes } => Ok(to.zero(len_bytes as u64)?),
            Piece::File {
                file,
                offset,
                len_bytes,
            } => Ok(file.read_into(to, offset, len_bytes as u64, mode)?),
        })
    }

    /// Fills `buf` from `offset`, however long it takes.
    ///
    /// # Errors
    /// Any [`ReadError`]; `buf` holds nothing of use then.
    pub fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<(), ReadError> {
        let len_bytes = buf.len() as u64;
        self.read_into(&mut buf.into(), offset, len_bytes, IoMode::Blocking)
    }

    /// The path of the closure that `error` is about, or in a tree the entry of its top directory.
    pub fn culprit<'e>(&self, error: &'e ReadError) -> Option<&'e OsStr> {
        error.path().map(|path| self.host.entry_of(path))
    }

    fn checked_end(&self, offset: u64, len_bytes: u64) -> Result<u64, ReadError> {
        offset
            .checked_add(len_bytes)
            .filter(|end| *end <= self.len_bytes())
            .ok_or(ReadError::OutOfRange {
                offset,
                len_bytes,
                disk_len_bytes: self.len_bytes(),
            })
    }

    /// The bytes of a block that is not file data.
    fn render(&self, mode: IoMode, area: Area) -> Result<Block, ReadError> {
        match area {
            Area::Meta { region, block } => self.render_metadata(mode, region, block),
            area => Ok(self.volume.block(area)),
        }
    }

    fn render_metadata(&self, mode: IoMode, region: u32, block: u32) -> Result<Block, ReadError> {
        let mut out = [0; BLOCK_LEN_USIZE];
        let here = self.space().region(region);
        let files = self.with_plan(mode, region, Need::Meta(block), |plan| {
            self.check_listed(plan, region, block)?;
            let nid = u64::from(ROOT_NID);
            let files = encode::metadata_block(plan, here, nid, block, &mut out);
            let open = |inline: &encode::InlineFile| {
                let file = self.open(plan, mode, region, inline.node)?;
                Ok((file, inline.offset..inline.offset + inline.len))
            };
            files
                .iter()
                .map(open)
                .collect::<Result<Vec<_>, SourceError>>()
        })??;
        for (file, range) in files {
            let len_bytes = range.len() as u64;
            let mut to = Destination::from(&mut out[range]);
            let read = file.read_into(&mut to, 0, len_bytes, mode);
            read.map_err(|error| match error {
                // There may be more small files in this block, which are not being read yet.
                SourceError::WouldBlock(_) => SourceError::WouldBlock(Awaits::Lookup),
                error => error,
            })?;
        }
        Ok(out)
    }

    /// Metadata block `block` of a region must not be the entries of a directory that could not be listed.
    fn check_listed(&self, plan: &Plan, region: u32, block: u32) -> Result<(), SourceError> {
        let dir = plan.dirents_in_block(block);
        let dir = dir.map(|(dir, _)| plan.dir_at(dir));
        match dir.filter(|dir| dir.is_unreadable()) {
            Some(dir) => Err(SourceError::Unlisted {
                path: self.tree(region).path_of(&plan.path(dir.node())),
            }),
            None => Ok(()),
        }
    }

    /// The tree of a region.
    fn tree(&self, region: u32) -> PathTree<'_> {
        let Origin { source, identity } = self.origins[region as usize];
        PathTree {
            source: &self.sources[source],
            name: &self.space().region(region).name,
            identity,
        }
    }

    /// Calls `f` with a plan that covers what is needed of a region.
    fn with_plan<R>(
        &self,
        mode: IoMode,
        region: u32,
        need: Need,
        f: impl FnOnce(&Plan) -> R,
    ) -> Result<R, ReadError> {
        let path = Wanted {
            tree: self.tree(region),
            region,
            limits: self.space().region(region).limits(),
        };
        self.plans.with(&path, mode, need, f)
    }

    fn open(
        &self,
        plan: &Plan,
        mode: IoMode,
        region: u32,
        index: NodeIndex,
    ) -> Result<File, SourceError> {
        let id = FileId(u64::from(region) << 32 | u64::from(index));
        let stamp = plan.node(index).stamp();
        self.tree(region).open(id, stamp, mode, || plan.path(index))
    }

    /// Hands out data from block `block` of a region, as far as the region and the range go.
    fn visit_data(
        &self,
        mode: IoMode,
        region: u32,
        block: u32,
        cursor: &mut Cursor,
        sink: &mut dyn FnMut(Piece<'_>) -> Result<(), ReadError>,
    ) -> Result<(), ReadError> {
        let here = self.space().region(region);
        let len = cursor.left_before(u64::from(here.data.end));
        let last = cursor.offset + len - 1;
        let last_block =
            u32::try_from(last / BLOCK_LEN_BYTES).unwrap_or(u32::MAX) - here.data.start;
        let start = u64::from(block) * BLOCK_LEN_BYTES + cursor.in_block() as u64;
        let extents = self
            .with_plan(mode, region, Need::Data(last_block), |plan| {
                self.extents(plan, mode, region, start..start + len)
            })?
            .map_err(ReadError::from)?;
        for extent in extents {
            emit_extent(extent, cursor, sink)?;
        }
        Ok(())
    }

    /// What a range of a region's data consists of.
    fn extents(
        &self,
        plan: &Plan,
        mode: IoMode,
        region: u32,
        wanted: Range<u64>,
    ) -> Result<Extents, SourceError> {
        let mut extents = Extents::new();
        data_parts::<SourceError>(plan, wanted, &mut |part| {
            extents.push(match part {
                DataPart::Zeros(len_bytes) => Extent::Zeros(len_bytes),
                DataPart::Node { node, range } => self.extent(plan, mode, region, node, range)?,
            });
            Ok(())
        })?;
        Ok(extents)
    }

    fn extent(
        &self,
        plan: &Plan,
        mode: IoMode,
        region: u32,
        index: NodeIndex,
        range: Range<u64>,
    ) -> Result<Extent, SourceError> {
        let node = plan.node(index);
        let (offset, len) = (range.start, range.end - range.start);
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        if node.kind() == FileKind::Symlink {
            let start = usize::try_from(offset).unwrap_or(usize::MAX);
            let target = &plan.target(node)[start..start + len];
            return Ok(Extent::Bytes(target.into()));
        }
        let file = self.open(plan, mode, region, index)?;
        Ok(Extent::File { file, offset, len })
    }
}

impl Piece<'_> {
    /// How many bytes of the disk it stands for.
    pub fn len_bytes(&self) -> usize {
        match self {
            Self::Metadata(bytes) => bytes.len(),
            Self::File { len_bytes, .. } | Self::Zeros { len_bytes } => *len_bytes,
        }
    }
}

/// A piece that has been found and does not need the plan any more.
enum Extent {
    Bytes(Box<[u8]>),
    File { file: File, offset: u64, len: usize },
    Zeros(u64),
}

/// A block has two pieces at most; longer reads may have more.
type Extents = SmallVec<[Extent; 2]>;

fn emit_extent(
    extent: Extent,
    cursor: &mut Cursor,
    sink: &mut dyn FnMut(Piece<'_>) -> Result<(), ReadError>,
) -> Result<(), ReadError> {
    let piece = match &extent {
        Extent::Zeros(len) => return emit_zeros(cursor, *len, sink),
        Extent::Bytes(bytes) => Piece::Metadata(bytes),
        Extent::File { file, offset, len } => Piece::File {
            file: file.clone(),
            offset: *offset,
            len_bytes: *len,
        },
    };
    cursor.offset += piece.len_bytes() as u64;
    sink(piece)
}

fn emit_zeros(
    cursor: &mut Cursor,
    len: u64,
    sink: &mut dyn FnMut(Piece<'_>) -> Result<(), ReadError>,
) -> Result<(), ReadError> {
    cursor.offset += len;
    let len_bytes = usize::try_from(len).unwrap_or(usize::MAX);
    sink(Piece::Zeros { len_bytes })
}

#[cfg(test)]
mod tests;
