//! The root directory of a disk of store paths.

use std::ops::Range;

use crate::erofs::dirent::{Dots, EntryRef, Packing};
use crate::erofs::encode::{self, Block, InodeFields};
use crate::erofs::format::{BLOCK_LEN_BYTES, BLOCK_LEN_USIZE, DirentType};
use crate::erofs::layout::attributes::{Attributes, Owner, dirent_type};
use crate::erofs::layout::plan::{Form, needs_extended};
use crate::erofs::layout::space::{ROOT_BLOCK, ROOT_NID, Region};
use crate::tree::FileKind;

/// The layout of the root directory. The inode is at the start of the first block. Entries that are not inlined after
/// it fill the following blocks.
#[derive(Debug)]
pub struct RootDir {
    packing: Packing,
    dots: Dots,
    form: Form,
    children: u32,
    fields: InodeFields,
}

/// A part of a block of the root directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RootPart {
    /// The inode.
    Inode,
    /// Directory entries.
    Entries {
        /// Offset of the part in the directory.
        offset: u64,
    },
    /// Zeros.
    Unused,
}

impl RootDir {
    /// Lays out the sorted names and types of the closure's paths. If a type is unknown, the link count is 1, which
    /// tells find(1) that subdirectories were not counted.
    pub fn new<'a>(
        paths: impl Iterator<Item = (&'a [u8], Option<FileKind>)> + Clone,
        attributes: &Attributes,
    ) -> Self {
        let dots = Dots::among(paths.clone().map(|(name, _)| name));
        let lens: Vec<u8> = paths.clone().map(|(name, _)| name_len(name)).collect();
        // Cannot saturate: every path has at least one metadata block, so there are fewer than 2^25.
        let children = u32::try_from(lens.len()).unwrap_or(u32::MAX - 2);
        let packing = dots.pack(children, |child| lens[child as usize]);
        let nlink = nlink(paths.map(|(_, kind)| kind));
        let size = packing.size_bytes();
        let mut fields = InodeFields::directory(nlink, size, 0, u64::from(ROOT_NID));
        (fields.uid, fields.gid) = (attributes.uid.unwrap_or(0), attributes.gid.unwrap_or(0));
        fields.mtime_sec = attributes.build_time_sec();
        let owner = Owner {
            uid: fields.uid,
            gid: fields.gid,
        };
        let form = Form::of_directory(needs_extended(size, owner, nlink), packing.last_len);
        if packing.full_blocks() > 0 || form.inline_len == 0 {
            fields.block_addr = ROOT_BLOCK + 1;
        }
        Self {
            packing,
            dots,
            form,
            children,
            fields,
        }
    }

    /// Returns the number of blocks, including the one with the inode.
    pub fn blocks(&self) -> u32 {
        1 + self.packing.full_blocks() + u32::from(self.form.inline_len == 0)
    }

    /// Returns `i_size`: all blocks except the last count as full.
    pub fn size_bytes(&self) -> u64 {
        self.packing.size_bytes()
    }

    /// Returns the part of block `block` that contains byte `at`, and its byte range in the block.
    pub fn part(&self, block: u32, at: usize) -> (RootPart, Range<usize>) {
        let full = self.packing.full_blocks();
        let after = usize::from(self.form.header_len());
        let (start, nth, len) = match block.checked_sub(1) {
            None if at < after => return (RootPart::Inode, 0..after),
            None => (after, full, usize::from(self.form.inline_len)),
            Some(nth) if nth < full => (0, nth, BLOCK_LEN_USIZE),
            Some(nth) => (0, nth, usize::from(self.packing.last_len)),
        };
        if at < start + len {
            let offset = u64::from(nth) * BLOCK_LEN_BYTES;
            (RootPart::Entries { offset }, start..start + len)
        } else {
            (RootPart::Unused, start + len..BLOCK_LEN_USIZE)
        }
    }

    /// Returns the bytes of block `block`. `regions` are the paths in the order given to [`RootDir::new`].
    pub fn render(&self, block: u32, regions: &[Region]) -> Block {
        let mut out = [0; BLOCK_LEN_USIZE];
        let Some(entries_block) = block.checked_sub(1) else {
            encode::inode(&self.fields, self.form, 0, &mut out);
            if self.form.inline_len > 0 {
                let after = usize::from(self.form.header_len());
                self.entries(self.packing.full_blocks(), regions, &mut out[after..]);
            }
            return out;
        };
        self.entries(entries_block, regions, &mut out);
        out
    }

    fn entries(&self, block: u32, regions: &[Region], out: &mut [u8]) {
        let slots = self
            .dots
            .in_block(&self.packing.starts, block, self.children);
        let root = u64::from(ROOT_NID);
        let entries = slots.map(|slot| match slot {
            EntryRef::Dot => (root, DirentType::Directory, &b"."[..]),
            EntryRef::DotDot => (root, DirentType::Directory, &b".."[..]),
            EntryRef::Child(child) => {
                let region = &regions[child as usize];
                (region.nid(), dirent_type(region.kind), &*region.name)
            }
        });
        encode::dirents(entries, out);
    }
}

/// Returns the link count of a directory with entries of these types; 1 if a type is unknown.
fn nlink(mut kinds: impl Iterator<Item = Option<FileKind>>) -> u32 {
    let count = |sum: u32, kind: Option<FileKind>| {
        kind.map(|kind| sum.saturating_add(u32::from(kind == FileKind::Directory)))
    };
    kinds.try_fold(2, count).unwrap_or(1)
}

/// Cannot saturate: `closure` rejects names over 255 bytes.
fn name_len(name: &[u8]) -> u8 {
    u8::try_from(name.len()).unwrap_or(u8::MAX)
}
