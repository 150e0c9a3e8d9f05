//! Encodes the tree of a plan, in the order in which it was walked.
//!
//! The encoding: the top node, then for each directory the number of its entries, and each entry's name and node. A node begins
//! with a byte for its kind: `f` or `x` for files (size; mtime: 8 bytes of seconds, 4 of nanoseconds), `F` or `X` for files
//! with the mtime of everything in a Nix store (size), `l` for symlinks (length of the target, target), `d` for directories. A
//! name is preceded by its length in one byte. Sizes, lengths and numbers of entries are LEB128.

use crate::erofs::layout::LayoutError;
use crate::erofs::layout::attributes::{Attributes, NIX_MTIME};
use crate::erofs::layout::bounds::Limits;
use crate::erofs::layout::plan::{Node, Plan};
use crate::erofs::layout::planner::Planner;
use crate::tree::{FileKind, Listing, Stat};

const FILE: u8 = b'f';
const EXECUTABLE: u8 = b'x';
const NIX_FILE: u8 = b'F';
const NIX_EXECUTABLE: u8 = b'X';
const SYMLINK: u8 = b'l';
const DIRECTORY: u8 = b'd';

/// Why bytes cannot be decoded.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum DecodeError {
    /// They are malformed.
    Malformed,
    /// The tree cannot be laid out.
    Layout(LayoutError),
}

impl From<LayoutError> for DecodeError {
    fn from(source: LayoutError) -> Self {
        Self::Layout(source)
    }
}

/// Encodes the tree of a complete plan. Returns `None` if it contains a file that no store path can contain.
pub(super) fn pack(plan: &Plan) -> Option<Vec<u8>> {
    /// An estimate: most sizes take two bytes, and some nodes are symlinks.
    const NODE_BYTES: usize = 6;
    let mut out = Vec::with_capacity(plan.names().len() + NODE_BYTES * plan.len());
    push_node(plan, plan.node(0), &mut out)?;
    for dir in plan.dirs() {
        let children = dir.children();
        push_number(children.len() as u64, &mut out);
        for child in children {
            let node = plan.node(child);
            out.push(node.name_len());
            out.extend_from_slice(plan.name(node));
            push_node(plan, node, &mut out)?;
        }
    }
    Some(out)
}

fn push_node(plan: &Plan, node: &Node, out: &mut Vec<u8>) -> Option<()> {
    match node.kind() {
        FileKind::Regular => push_file(node, out),
        FileKind::Directory => out.push(DIRECTORY),
        FileKind::Symlink => {
            out.push(SYMLINK);
            push_number(node.size_bytes(), out);
            out.extend_from_slice(plan.target(node));
        }
        FileKind::Fifo | FileKind::Socket | FileKind::CharDevice | FileKind::BlockDevice => {
            return None;
        }
    }
    Some(())
}

fn push_file(node: &Node, out: &mut Vec<u8>) {
    let stamp = node.stamp();
    let is_nix = (stamp.mtime_sec, stamp.mtime_nsec) == nix_mtime();
    out.push(match (is_nix, node.is_executable()) {
        (true, false) => NIX_FILE,
        (true, true) => NIX_EXECUTABLE,
        (false, false) => FILE,
        (false, true) => EXECUTABLE,
    });
    push_number(stamp.size_bytes, out);
    if !is_nix {
        out.extend(stamp.mtime_sec.to_le_bytes());
        out.extend(stamp.mtime_nsec.to_le_bytes());
    }
}

fn nix_mtime() -> (i64, u32) {
    (NIX_MTIME.cast_signed(), 0)
}

fn push_number(mut number: u64, out: &mut Vec<u8>) {
    loop {
        let [low, ..] = (number & 0x7f).to_le_bytes();
        number >>= 7;
        if number == 0 {
            out.push(low);
            return;
        }
        out.push(low | 0x80);
    }
}

/// Decodes `bytes` and plans the tree.
pub(super) fn unpack(
    bytes: &[u8],
    name: &[u8],
    attributes: Attributes,
    limits: Limits,
) -> Result<Plan, DecodeError> {
    let mut reader = TreeDecoder { rest: bytes };
    let (stat, target) = reader.node()?;
    let mut planner = Planner::new(name, attributes, limits, &stat, target)?;
    while !planner.is_complete() {
        planner.push(&reader.listing()?)?;
    }
    match reader.rest {
        [] => Ok(planner.into_plan()),
        _ => Err(DecodeError::Malformed),
    }
}

struct TreeDecoder<'b> {
    rest: &'b [u8],
}

impl<'b> TreeDecoder<'b> {
    fn take(&mut self, len: u64) -> Result<&'b [u8], DecodeError> {
        let len = usize::try_from(len).map_err(|_| DecodeError::Malformed)?;
        let (taken, rest) = self
            .rest
            .split_at_checked(len)
            .ok_or(DecodeError::Malformed)?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const LEN: usize>(&mut self) -> Result<[u8; LEN], DecodeError> {
        let (taken, rest) = self
            .rest
            .split_first_chunk()
            .ok_or(DecodeError::Malformed)?;
        self.rest = rest;
        Ok(*taken)
    }

    fn number(&mut self) -> Result<u64, DecodeError> {
        let mut number = 0;
        for shift in (0..u64::BITS).step_by(7) {
            let [byte] = self.array()?;
            let part = u64::from(byte & 0x7f);
            if part.leading_zeros() < shift {
                return Err(DecodeError::Malformed);
            }
            // Reject longer encodings than necessary.
            if shift > 0 && byte == 0 {
                return Err(DecodeError::Malformed);
            }
            number |= part << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(DecodeError::Malformed)
    }

    /// Decodes attributes, and the target of a symlink.
    fn node(&mut self) -> Result<(Stat, &'b [u8]), DecodeError> {
        let [kind] = self.array()?;
        match kind {
            FILE | EXECUTABLE | NIX_FILE | NIX_EXECUTABLE => Ok((self.file(kind)?, b"")),
            DIRECTORY => Ok((Stat::of_kind(FileKind::Directory), b"")),
            SYMLINK => {
                let len = self.number()?;
                Ok((Stat::of_kind(FileKind::Symlink), self.take(len)?))
            }
            _ => Err(DecodeError::Malformed),
        }
    }

    fn file(&mut self, kind: u8) -> Result<Stat, DecodeError> {
        let size_bytes = self.number()?;
        let (mtime_sec, mtime_nsec) = match kind {
            FILE | EXECUTABLE => (
                i64::from_le_bytes(self.array()?),
                u32::from_le_bytes(self.array()?),
            ),
            _ => nix_mtime(),
        };
        let is_executable = matches!(kind, EXECUTABLE | NIX_EXECUTABLE);
        Ok(Stat {
            permissions: if is_executable { 0o555 } else { 0o444 },
            size_bytes,
            mtime_sec,
            mtime_nsec,
            ..Stat::of_kind(FileKind::Regular)
        })
    }

    /// Decodes the entries of one directory.
    fn listing(&mut self) -> Result<Listing, DecodeError> {
        let mut listing = Listing::default();
        let mut before: &[u8] = b"";
        for _ in 0..self.number()? {
            let [len] = self.array()?;
            let name = self.take(len.into())?;
            if name <= before || !is_file_name(name) {
                return Err(DecodeError::Malformed);
            }
            let (stat, target) = self.node()?;
            listing.push(name, stat, target);
            before = name;
        }
        Ok(listing)
    }
}

/// Returns whether a file in a directory can have this name.
fn is_file_name(name: &[u8]) -> bool {
    let has_no_name = matches!(name, b"" | b"." | b"..");
    !has_no_name && !name.iter().any(|byte| matches!(byte, 0 | b'/'))
}
