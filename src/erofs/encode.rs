//! Encodes superblock, inodes and directory blocks.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromZeros, IntoBytes};

use super::dirent::EntryRef;
use super::format::{
    BLOCK_BITS, BLOCK_LEN_USIZE, DIRENT_LEN, Dirent, DirentType, FEATURE_COMPAT_MTIME,
    FEATURE_COMPAT_SB_CHKSUM, FORMAT_EXTENDED, FORMAT_FLAT_INLINE, FORMAT_FLAT_PLAIN, InodeCompact,
    InodeExtended, LABEL_LEN_MAX, MAGIC, ModeType, SLOT_LEN, SLOTS_PER_BLOCK, SUPERBLOCK_OFFSET,
    SuperBlock,
};
use super::layout::attributes::{Owner, dirent_type};
use super::layout::plan::{Content, Dir, Form, Node, NodeIndex, Plan};
use super::layout::space::{ROOT_NID, Region};
use crate::tree::FileKind;

/// A block of the disk.
pub type Block = [u8; BLOCK_LEN_USIZE];

/// The variable fields of the superblock.
#[derive(Debug, Clone, Default)]
pub struct SuperBlockFields {
    /// Volume label, at most 15 bytes.
    pub label: String,
    /// File system UUID.
    pub uuid: [u8; 16],
    /// mtime of every compact inode, in seconds.
    pub build_time_sec: u64,
    /// Number of inodes, for statfs.
    pub inodes: u64,
    /// Number of blocks, for statfs.
    pub blocks: u32,
}

/// Encodes block 0.
pub fn superblock(fields: &SuperBlockFields) -> Block {
    let mut volume_name = [0; 16];
    let label = fields.label.as_bytes();
    let len = label.len().min(LABEL_LEN_MAX);
    volume_name[..len].copy_from_slice(&label[..len]);
    let superblock = SuperBlock {
        magic: U32::new(MAGIC),
        feature_compat: U32::new(FEATURE_COMPAT_SB_CHKSUM | FEATURE_COMPAT_MTIME),
        block_bits: BLOCK_BITS,
        root_nid: U16::new(ROOT_NID),
        inodes: U64::new(fields.inodes),
        build_time: U64::new(fields.build_time_sec),
        blocks: U32::new(fields.blocks),
        uuid: fields.uuid,
        volume_name,
        ..SuperBlock::new_zeroed()
    };
    let mut block = [0; BLOCK_LEN_USIZE];
    put(&mut block, SUPERBLOCK_OFFSET, superblock.as_bytes());
    let checksum = checksum(&block);
    put(&mut block, SUPERBLOCK_OFFSET + 4, &checksum.to_le_bytes());
    block
}

/// Linux `fs/erofs/super.c`, `erofs_superblock_csum_verify`: crc32c from offset 1024 to the end of the block, with the
/// initial value ~0 but without the usual final inversion.
fn checksum(block: &Block) -> u32 {
    !crc32c::crc32c(&block[SUPERBLOCK_OFFSET..])
}

/// A small file whose contents must be inserted into a metadata block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InlineFile {
    /// The file's node.
    pub node: NodeIndex,
    /// Byte offset in the block.
    pub offset: usize,
    /// Length in bytes.
    pub len: usize,
}

/// Encodes metadata block `block` of a path's range into `out`, which must be zero. Inlined file contents are not
/// written; the result lists where each one goes.
///
/// The planner must cover the block. `parent_nid` is the nid of the directory that contains the path.
pub fn metadata_block(
    plan: &Plan,
    region: &Region,
    parent_nid: u64,
    block: u32,
    out: &mut Block,
) -> Vec<InlineFile> {
    let writer = Writer {
        plan,
        region,
        parent_nid,
    };
    if let Some((dir, nth)) = plan.dirents_in_block(block) {
        writer.dirents(plan.dir_at(dir), nth, out);
        return Vec::new();
    }
    let first_slot = block.saturating_mul(SLOTS_PER_BLOCK);
    plan.nodes_in_block(block)
        .iter()
        .filter_map(|index| {
            let node = plan.node(*index);
            let offset = (node.slot() - first_slot) as usize * usize::from(SLOT_LEN);
            writer.node(*index, node, offset, out)
        })
        .collect()
}

struct Writer<'a> {
    plan: &'a Plan,
    region: &'a Region,
    parent_nid: u64,
}

impl Writer<'_> {
    /// Encodes an inode and the entries or symlink target inlined after it. For a file with inlined contents, returns
    /// where these go.
    fn node(
        &self,
        index: NodeIndex,
        node: &Node,
        offset: usize,
        out: &mut Block,
    ) -> Option<InlineFile> {
        let form = self.plan.form(node);
        inode(&self.fields(node, form), form, offset, out);
        let after = offset + usize::from(form.header_len());
        let len = usize::from(form.inline_len);
        if len == 0 {
            return None;
        }
        match node.kind() {
            FileKind::Directory => {
                let (_, dir) = self.plan.dir(node)?;
                self.dirents(dir, dir.inline_block()?, &mut out[after..after + len]);
                None
            }
            FileKind::Symlink => {
                put(out, after, self.plan.target(node));
                None
            }
            _ => Some(InlineFile {
                node: index,
                offset: after,
                len,
            }),
        }
    }

    fn fields(&self, node: &Node, form: Form) -> InodeFields {
        let Owner { uid, gid } = self.plan.owner(node);
        let (mtime_sec, mtime_nsec) = {
            let stamp = node.stamp();
            let attributes = self.plan.attributes();
            attributes.mtime(stamp.mtime_sec, stamp.mtime_nsec)
        };
        InodeFields {
            mode: node.mode(),
            nlink: self.plan.nlink(node),
            size: node.size_bytes(),
            block_addr: self.block_addr(node, form),
            ino: self.region.nid_at(node.slot()),
            uid,
            gid,
            mtime_sec,
            mtime_nsec,
        }
    }

    fn block_addr(&self, node: &Node, form: Form) -> u32 {
        match node.content() {
            Content::Directory { dir, .. } => self
                .plan
                .dir_at(dir)
                .first_dirent_block()
                .map_or(0, |first| self.region.meta.start + first),
            Content::Regular { data_block, .. } | Content::Symlink { data_block, .. }
                if form.inline_len == 0 && node.size_bytes() > 0 =>
            {
                self.region.data.start + data_block
            }
            Content::CharDevice(number) | Content::BlockDevice(number) => number,
            _ => 0,
        }
    }

    fn dirents(&self, dir: &Dir, nth: u32, out: &mut [u8]) {
        let slots = self.plan.block_entries(dir, nth);
        let entries = slots.map(|slot| match slot {
            EntryRef::Dot => {
                let own = self.plan.node(dir.node()).slot();
                (self.region.nid_at(own), DirentType::Directory, &b"."[..])
            }
            EntryRef::DotDot => (self.parent_of(dir), DirentType::Directory, &b".."[..]),
            EntryRef::Child(child) => {
                let node = self.plan.node(dir.child(child));
                let nid = self.region.nid_at(node.slot());
                (nid, dirent_type(Some(node.kind())), self.plan.name(node))
            }
        });
        dirents(entries, out);
    }

    fn parent_of(&self, dir: &Dir) -> u64 {
        if dir.node() == 0 {
            return self.parent_nid;
        }
        let parent = self.plan.dir_at(self.plan.node(dir.node()).parent());
        self.region.nid_at(self.plan.node(parent.node()).slot())
    }
}

/// The fields of an inode.
#[derive(Debug, Clone, Copy)]
pub struct InodeFields {
    /// Type and permissions.
    pub mode: u16,
    /// Link count.
    pub nlink: u32,
    /// Length in bytes.
    pub size: u64,
    /// First data block, or device number.
    pub block_addr: u32,
    /// Nid; becomes the inode number in a 32-bit stat.
    pub ino: u64,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Seconds of the mtime.
    pub mtime_sec: u64,
    /// Nanoseconds of the mtime.
    pub mtime_nsec: u32,
}

impl InodeFields {
    /// Creates a directory with `i_size` `size`.
    pub fn directory(nlink: u32, size: u64, block_addr: u32, nid: u64) -> Self {
        Self {
            mode: ModeType::Directory as u16 | 0o555,
            nlink,
            size,
            block_addr,
            ino: nid,
            uid: 0,
            gid: 0,
            mtime_sec: 0,
            mtime_nsec: 0,
        }
    }
}

/// Encodes an inode at `offset`.
pub fn inode(fields: &InodeFields, form: Form, offset: usize, out: &mut Block) {
    let layout = if form.inline_len > 0 {
        FORMAT_FLAT_INLINE
    } else {
        FORMAT_FLAT_PLAIN
    };
    // Cannot saturate: inodes are below 128 GiB (`layout::space`), so nids are below 2^32.
    let ino = u32::try_from(fields.ino).unwrap_or(u32::MAX);
    if form.extended {
        let inode = extended(fields, layout | FORMAT_EXTENDED, ino);
        put(out, offset, inode.as_bytes());
    } else {
        put(out, offset, compact(fields, layout, ino).as_bytes());
    }
}

/// The conversions cannot saturate: the plan chooses the compact form only if every field fits.
fn compact(fields: &InodeFields, format: u16, ino: u32) -> InodeCompact {
    let narrow = |value: u32| U16::new(u16::try_from(value).unwrap_or(u16::MAX));
    InodeCompact {
        format: U16::new(format),
        mode: U16::new(fields.mode),
        nlink: narrow(fields.nlink),
        size: U32::new(u32::try_from(fields.size).unwrap_or(u32::MAX)),
        block_addr: U32::new(fields.block_addr),
        ino: U32::new(ino),
        uid: narrow(fields.uid),
        gid: narrow(fields.gid),
        ..InodeCompact::new_zeroed()
    }
}

fn extended(fields: &InodeFields, format: u16, ino: u32) -> InodeExtended {
    InodeExtended {
        format: U16::new(format),
        mode: U16::new(fields.mode),
        size: U64::new(fields.size),
        block_addr: U32::new(fields.block_addr),
        ino: U32::new(ino),
        uid: U32::new(fields.uid),
        gid: U32::new(fields.gid),
        mtime: U64::new(fields.mtime_sec),
        mtime_nsec: U32::new(fields.mtime_nsec),
        nlink: U32::new(fields.nlink),
        ..InodeExtended::new_zeroed()
    }
}

/// Encodes the entries of one directory block, followed by their names.
pub fn dirents<'a>(
    entries: impl Iterator<Item = (u64, DirentType, &'a [u8])> + Clone,
    out: &mut [u8],
) {
    let mut name_at = entries.clone().count() * usize::from(DIRENT_LEN);
    let mut entry_at = 0;
    for (nid, file_type, name) in entries {
        let dirent = Dirent {
            nid: U64::new(nid),
            name_offset: U16::new(u16::try_from(name_at).unwrap_or(u16::MAX)),
            file_type: file_type as u8,
            reserved: 0,
        };
        put(out, entry_at, dirent.as_bytes());
        put(out, name_at, name);
        entry_at += usize::from(DIRENT_LEN);
        name_at += name.len();
    }
}

fn put(out: &mut [u8], offset: usize, bytes: &[u8]) {
    out[offset..offset + bytes.len()].copy_from_slice(bytes);
}

#[cfg(test)]
mod tests;
