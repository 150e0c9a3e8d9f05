//! Maps an address of the disk to what it contains, to explain kernel messages with a nid or a block.

use std::ops::Range;

use super::Volume;
use super::root::RootPart;
use crate::erofs::format::{
    BLOCK_LEN_BYTES, BLOCK_LEN_USIZE, SLOT_LEN, SLOTS_PER_BLOCK, SUPERBLOCK_OFFSET, SuperBlock,
};
use crate::erofs::layout::plan::{Node, NodeIndex, Plan};
use crate::erofs::layout::space::{ROOT_NID, Region};
use crate::tree::FileKind;

/// A file of the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileRef {
    /// Its path below the root of the disk; empty for the root.
    pub path: Vec<u8>,
    /// Nid of its inode.
    pub nid: u64,
    /// Its type.
    pub kind: FileKind,
    /// Its `i_size`.
    pub size_bytes: u64,
}

/// What a range of the disk contains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// The superblock.
    Superblock,
    /// An inode.
    Inode(FileRef),
    /// Entries of a directory.
    Entries {
        /// The directory.
        dir: FileRef,
        /// Offset of the range in the directory.
        offset: u64,
    },
    /// The contents of a small file, inlined after its inode.
    InlineData(FileRef),
    /// The contents of a file in data blocks.
    Data(FileRef),
    /// The target of a symlink.
    Target(FileRef),
    /// Zeros between the end of a file and the end of its last block.
    Padding(FileRef),
    /// Unused zeros.
    Unused {
        /// Name of the store path that the range is reserved for, if any.
        kept_for: Option<Box<[u8]>>,
    },
}

/// A place with its address range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spot {
    /// What the range contains.
    pub place: Place,
    /// All byte addresses of the disk that belong to it.
    pub range: Range<u64>,
}

impl Volume {
    /// Returns the unused range that contains block `block` and ends before block `end`.
    pub fn locate_unused(&self, block: u32, end: u32) -> Spot {
        Spot {
            place: Place::Unused { kept_for: None },
            range: self.unused_from(block)..block_start(end).min(self.space.len_bytes()),
        }
    }

    /// Returns the start of the unused range that contains block `block`: the end of the last path of its arena.
    fn unused_from(&self, block: u32) -> u64 {
        let last = self.space.regions().last();
        let start = last.map(|region| match block {
            block if block < self.space.data_start() => region.meta.end,
            _ => region.data.end,
        });
        block_start(start.unwrap_or(block))
    }

    /// What is at byte `at`, which is in block `block` of the root directory.
    pub fn locate_in_root(&self, block: u32, at: u64) -> Spot {
        let in_block = usize::try_from(at % BLOCK_LEN_BYTES).unwrap_or(0);
        let part = self
            .root
            .as_ref()
            .map(|root| (root, root.part(block, in_block)));
        let (place, range) = match part {
            Some((root, (RootPart::Inode, range))) => {
                (Place::Inode(root_ref(root.size_bytes())), range)
            }
            Some((root, (RootPart::Entries { offset }, range))) => {
                let dir = root_ref(root.size_bytes());
                (Place::Entries { dir, offset }, range)
            }
            Some((_, (RootPart::Unused, range))) => (Place::Unused { kept_for: None }, range),
            None => (Place::Unused { kept_for: None }, 0..BLOCK_LEN_USIZE),
        };
        spot(place, at, range)
    }
}

/// Returns the byte address of the inode `nid`. Saturates for nids beyond any disk.
pub fn nid_offset(nid: u64) -> u64 {
    nid.saturating_mul(u64::from(SLOT_LEN))
}

fn root_ref(size_bytes: u64) -> FileRef {
    FileRef {
        path: Vec::new(),
        nid: u64::from(ROOT_NID),
        kind: FileKind::Directory,
        size_bytes,
    }
}

/// What is at byte `at` of block 0.
pub fn in_superblock(at: u64) -> Spot {
    let start = SUPERBLOCK_OFFSET as u64;
    let end = start + size_of::<SuperBlock>() as u64;
    let unused = Place::Unused { kept_for: None };
    let (place, range) = match at {
        at if at < start => (unused, 0..start),
        at if at < end => (Place::Superblock, start..end),
        _ => (unused, end..BLOCK_LEN_BYTES),
    };
    Spot { place, range }
}

fn block_start(block: u32) -> u64 {
    u64::from(block) * BLOCK_LEN_BYTES
}

/// Returns a spot whose `range` is relative to the start of the block that contains `at`.
fn spot(place: Place, at: u64, range: Range<usize>) -> Spot {
    let start = at - at % BLOCK_LEN_BYTES;
    Spot {
        place,
        range: start + range.start as u64..start + range.end as u64,
    }
}

/// A path's plan with its address ranges.
#[derive(Debug)]
pub struct PlacedPlan<'a> {
    pub(super) region: &'a Region,
    pub(super) plan: &'a Plan,
}

impl PlacedPlan<'_> {
    fn file(&self, index: NodeIndex) -> FileRef {
        let node = self.plan.node(index);
        FileRef {
            path: self.plan.path(index),
            nid: self.region.nid_at(node.slot()),
            kind: node.kind(),
            size_bytes: node.size_bytes(),
        }
    }

    fn unused(&self) -> Place {
        Place::Unused {
            kept_for: Some(self.region.name.clone()),
        }
    }

    /// What is at byte `at` of the disk, which is in metadata block `block` of the path.
    pub fn in_meta(&self, block: u32, at: u64) -> Spot {
        if let Some((dir, nth)) = self.plan.dirents_in_block(block) {
            return self.in_entries(self.plan.dir_at(dir).node(), nth, at);
        }
        let in_block = usize::try_from(at % BLOCK_LEN_BYTES).unwrap_or(0);
        let nodes = self.plan.nodes_in_block(block);
        let start = |index: &NodeIndex| {
            let slot = self.plan.node(*index).slot() % SLOTS_PER_BLOCK;
            slot as usize * usize::from(SLOT_LEN)
        };
        let after = nodes.partition_point(|index| start(index) <= in_block);
        let end = nodes.get(after).map_or(BLOCK_LEN_USIZE, start);
        let Some(index) = after.checked_sub(1).map(|last| nodes[last]) else {
            return spot(self.unused(), at, 0..end);
        };
        self.around_inode(index, start(&index)..end, at)
    }

    /// What is at byte `at`, which is in `room`: the part of a block from one inode to the next.
    fn around_inode(&self, index: NodeIndex, room: Range<usize>, at: u64) -> Spot {
        let node = self.plan.node(index);
        let form = self.plan.form(node);
        let after = room.start + usize::from(form.header_len());
        let end = after + usize::from(form.inline_len);
        let in_block = usize::try_from(at % BLOCK_LEN_BYTES).unwrap_or(0);
        match in_block {
            at_byte if at_byte < after => {
                spot(Place::Inode(self.file(index)), at, room.start..after)
            }
            at_byte if at_byte < end => spot(self.inlined(index, node), at, after..end),
            _ => spot(self.unused(), at, end..room.end),
        }
    }

    /// What is inlined after an inode.
    fn inlined(&self, index: NodeIndex, node: &Node) -> Place {
        let file = self.file(index);
        match node.kind() {
            FileKind::Directory => Place::Entries {
                offset: file.size_bytes - file.size_bytes % BLOCK_LEN_BYTES,
                dir: file,
            },
            FileKind::Symlink => Place::Target(file),
            _ => Place::InlineData(file),
        }
    }

    /// What is at byte `at`, which is in block `nth` of a directory.
    fn in_entries(&self, index: NodeIndex, nth: u32, at: u64) -> Spot {
        let dir = self.file(index);
        let offset = block_start(nth);
        let used = dir.size_bytes.saturating_sub(offset).min(BLOCK_LEN_BYTES);
        let used = usize::try_from(used).unwrap_or(BLOCK_LEN_USIZE);
        if at % BLOCK_LEN_BYTES < used as u64 {
            spot(Place::Entries { dir, offset }, at, 0..used)
        } else {
            spot(self.unused(), at, used..BLOCK_LEN_USIZE)
        }
    }

    /// What is at byte `at` of the disk, which is in data block `block` of the path.
    pub fn in_data(&self, block: u32, at: u64) -> Spot {
        let Some((index, nth)) = self.plan.data_in_block(block) else {
            let start = block_start(self.region.data.start + self.plan.data_blocks());
            return Spot {
                place: self.unused(),
                range: start..block_start(self.region.data.end),
            };
        };
        let file = self.file(index);
        let start = block_start(self.region.data.start + block - nth);
        let end = start + file.size_bytes;
        let (place, range) = if at >= end {
            let padded = end.next_multiple_of(BLOCK_LEN_BYTES);
            (Place::Padding(file), end..padded)
        } else if file.kind == FileKind::Symlink {
            (Place::Target(file), start..end)
        } else {
            (Place::Data(file), start..end)
        };
        Spot { place, range }
    }
}
