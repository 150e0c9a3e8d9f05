//! What is at one address of the disk.

use std::io::{self, Write};

use serde::Serialize;

use super::super::closure_args::Loaded;
use super::super::errors::CliError;
use super::super::text::counted;
use super::shown;
use crate::erofs::format::BLOCK_LEN_BYTES;
use crate::erofs::volume::{FileRef, Place};
use crate::tree::FileKind;

/// What is at an address.
#[derive(Debug, Serialize)]
pub struct SpotView {
    /// The requested byte address.
    at: u64,
    /// Its block.
    block: u64,
    /// The requested nid, if any.
    #[serde(skip_serializing_if = "Option::is_none")]
    nid: Option<u64>,
    /// What is there.
    #[serde(flatten)]
    what: What,
    /// First byte that belongs to it.
    start: u64,
    /// End of it, exclusive.
    end: u64,
}

/// The kind of contents.
#[derive(Debug, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
enum What {
    Superblock,
    Inode { file: FileView },
    DirectoryEntries { file: FileView, offset: u64 },
    InlineData { file: FileView, offset: u64 },
    Data { file: FileView, offset: u64 },
    SymlinkTarget { file: FileView, offset: u64 },
    Padding { file: FileView },
    Unused { kept_for: Option<String> },
}

/// A file of the disk.
#[derive(Debug, Serialize)]
struct FileView {
    path: String,
    #[serde(rename = "type")]
    kind: &'static str,
    nid: u64,
    size: u64,
}

impl SpotView {
    /// Locates byte `at`. If a nid was requested, `at` is its byte address.
    pub fn new(loaded: &Loaded, at: u64, nid: Option<u64>) -> Result<Self, CliError> {
        let spot = loaded.image.locate(at)?;
        let within = at - spot.range.start;
        let file = |file: FileRef| FileView {
            path: shown(loaded, &file.path),
            kind: kind_name(file.kind),
            nid: file.nid,
            size: file.size_bytes,
        };
        let what = match spot.place {
            Place::Superblock => What::Superblock,
            Place::Inode(f) => What::Inode { file: file(f) },
            Place::Entries { dir, offset } => What::DirectoryEntries {
                file: file(dir),
                offset: offset + within,
            },
            Place::InlineData(f) => What::InlineData {
                file: file(f),
                offset: within,
            },
            Place::Data(f) => What::Data {
                file: file(f),
                offset: within,
            },
            Place::Target(f) => What::SymlinkTarget {
                file: file(f),
                offset: within,
            },
            Place::Padding(f) => What::Padding { file: file(f) },
            Place::Unused { kept_for } => What::Unused {
                kept_for: kept_for.map(|name| shown(loaded, &name)),
            },
        };
        Ok(Self {
            at,
            block: at / BLOCK_LEN_BYTES,
            nid,
            what,
            start: spot.range.start,
            end: spot.range.end,
        })
    }

    /// False if a nid was requested that is not an inode.
    pub fn is_as_asked(&self) -> bool {
        let is_inode = matches!(self.what, What::Inode { .. }) && self.start == self.at;
        self.nid.is_none() || is_inode
    }

    /// Prints it as text.
    pub fn print(&self, out: &mut dyn Write) -> io::Result<()> {
        match self.nid {
            Some(nid) if self.is_as_asked() => writeln!(out, "nid {nid} (byte {})", self.at)?,
            Some(nid) => writeln!(out, "nid {nid} is not an inode; at its byte {}:", self.at)?,
            None => writeln!(out, "byte {} (block {})", self.at, self.block)?,
        }
        match &self.what {
            What::Superblock => writeln!(out, "  the superblock")?,
            What::Inode { file } => file.print("the inode of", None, out)?,
            What::DirectoryEntries { file, offset } => {
                file.print("directory entries of", Some(*offset), out)?;
            }
            What::InlineData { file, offset } => {
                file.print("data after the inode of", Some(*offset), out)?
            }
            What::Data { file, offset } => file.print("data of", Some(*offset), out)?,
            What::SymlinkTarget { file, offset } => {
                file.print("the target of", Some(*offset), out)?
            }
            What::Padding { file } => file.print("zeros after the end of", None, out)?,
            What::Unused {
                kept_for: Some(path),
            } => writeln!(out, "  unused, reserved for {path}")?,
            What::Unused { kept_for: None } => writeln!(out, "  unused")?,
        }
        writeln!(out, "  bytes {}..{} of the disk", self.start, self.end)
    }
}

impl FileView {
    fn print(&self, what: &str, offset: Option<u64>, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "  {what} {}", self.path)?;
        if let Some(offset) = offset {
            writeln!(out, "  at offset {offset} in it")?;
        }
        let Self {
            kind, nid, size, ..
        } = self;
        let size = counted(*size, "byte");
        writeln!(out, "  which is a {kind} of {size}, nid {nid}")
    }
}

fn kind_name(kind: FileKind) -> &'static str {
    match kind {
        FileKind::Regular => "regular file",
        FileKind::Directory => "directory",
        FileKind::Symlink => "symlink",
        FileKind::Fifo => "FIFO",
        FileKind::Socket => "socket",
        FileKind::CharDevice => "character device",
        FileKind::BlockDevice => "block device",
    }
}
