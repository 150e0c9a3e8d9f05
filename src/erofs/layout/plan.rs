//! The placed files of one path.
//!
//! All addresses are relative to the path's own ranges, so a plan does not depend on the other paths of the disk. Nodes
//! are small records in flat arrays, because a NixOS system has hundreds of thousands of them.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;

use super::attributes::{Attributes, Owner};
pub use super::node::{Content, DirIndex, Node, NodeIndex};
use crate::erofs::dirent::{Dots, EntryRef};
use crate::erofs::format::{BLOCK_LEN_BYTES, COMPACT_LEN, EXTENDED_LEN, SLOT_LEN, SLOTS_PER_BLOCK};
use crate::tree::FileKind;

/// Slot of a node that is not placed yet, such as a directory that is not listed yet.
pub(super) const UNPLACED: u32 = u32::MAX;

/// The part of a directory that is not in its [`Node`].
#[derive(Debug, Clone)]
pub struct Dir {
    pub(super) node: NodeIndex,
    /// Its children are consecutive nodes, sorted by name.
    pub(super) first_child: NodeIndex,
    pub(super) children: u32,
    /// Its subdirectories are consecutive directories, in the same order.
    pub(super) first_subdir: DirIndex,
    pub(super) subdirs: u32,
    pub(super) dots: Dots,
    /// Index in [`Plan::starts`] of the start of its first block.
    pub(super) starts: u32,
    /// Number of blocks of entries, including an inlined one.
    pub(super) blocks: u32,
    /// First metadata block with entries that are not inlined.
    pub(super) dirent_block: u32,
    /// The last block of entries is inlined after the inode.
    pub(super) inlined: bool,
    /// The directory could not be listed. Its entries get a block of their own, and reading that block fails.
    pub(super) unreadable: bool,
}

/// Two groups of inodes that fill separate metadata blocks.
///
/// A guest that looks up names or lists directories then reads no blocks with inlined file data, and the host opens no
/// files to serve it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InodeGroup {
    /// Directories, symlinks, and files without inlined data.
    Names,
    /// Files with inlined data.
    SmallFiles,
}

impl InodeGroup {
    /// Number of groups.
    pub(super) const COUNT: usize = 2;
}

/// On-disk form of an inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Form {
    /// 64 bytes instead of 32.
    pub extended: bool,
    /// Number of bytes inlined after the inode; 0 for the plain layout.
    pub inline_len: u16,
}

/// Returns whether one of these values does not fit a compact inode.
pub fn needs_extended(size_bytes: u64, owner: Owner, nlink: u32) -> bool {
    let widest = owner.uid.max(owner.gid).max(nlink);
    size_bytes > u64::from(u32::MAX) || widest > u32::from(u16::MAX)
}

impl Form {
    /// Returns the form of a directory whose last block has `last_len` bytes. That block is inlined if it fits.
    pub fn of_directory(extended: bool, last_len: u16) -> Self {
        let fits = fits_inline(extended, u64::from(last_len));
        Self {
            extended,
            inline_len: if fits { last_len } else { 0 },
        }
    }

    /// Returns the length of the inode alone.
    pub fn header_len(self) -> u16 {
        if self.extended {
            EXTENDED_LEN
        } else {
            COMPACT_LEN
        }
    }

    /// Returns the number of 32-byte slots of the inode with its inlined data.
    pub fn slots(self) -> u32 {
        u32::from((self.header_len() + self.inline_len).div_ceil(SLOT_LEN))
    }
}

/// The layout of one path, as far as its directories have been listed.
#[derive(Debug)]
pub struct Plan {
    pub(super) attributes: Attributes,
    /// Name of the path in the store; empty for a tree.
    pub(super) root_name: Box<[u8]>,
    pub(super) nodes: Vec<Node>,
    pub(super) dirs: Vec<Dir>,
    pub(super) owners: Vec<Owner>,
    /// Names and symlink targets of all nodes.
    pub(super) bytes: Vec<u8>,
    /// The nodes of each [`InodeGroup`], sorted by slot.
    pub(super) placed: [Vec<NodeIndex>; InodeGroup::COUNT],
    /// First data block and node of everything with data blocks, in order.
    pub(super) with_data: Vec<(u32, NodeIndex)>,
    /// First block and directory of all entries that are not inlined, in order.
    pub(super) dirent_blocks: Vec<(u32, DirIndex)>,
    /// Index of the first entry of each block, for all directories.
    pub(super) starts: Vec<u32>,
    /// Number of blocks in use so far.
    pub(super) meta_blocks: u32,
    pub(super) data_blocks: u32,
}

impl Plan {
    /// Returns the number of metadata blocks in use so far.
    pub fn meta_blocks(&self) -> u32 {
        self.meta_blocks
    }

    /// Returns the number of data blocks in use so far.
    pub fn data_blocks(&self) -> u32 {
        self.data_blocks
    }

    /// Returns the number of nodes, including the top node.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Always false: there is always a top node.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Returns the attributes that inodes are written with.
    pub fn attributes(&self) -> &Attributes {
        &self.attributes
    }

    /// Returns all nodes. The path's top node is first.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Returns all directories. Each follows its parent.
    pub fn dirs(&self) -> &[Dir] {
        &self.dirs
    }

    /// Returns the names and symlink targets of all nodes; see [`Node::name_start`].
    pub fn names(&self) -> &[u8] {
        &self.bytes
    }

    /// Returns the node with this index.
    pub fn node(&self, index: NodeIndex) -> &Node {
        &self.nodes[index as usize]
    }

    /// Returns the [`Dir`] of a node, if it is a directory.
    pub fn dir(&self, node: &Node) -> Option<(DirIndex, &Dir)> {
        match node.content {
            Content::Directory { dir, .. } => Some((dir, &self.dirs[dir as usize])),
            _ => None,
        }
    }

    /// Returns the directory with this index.
    pub fn dir_at(&self, dir: DirIndex) -> &Dir {
        &self.dirs[dir as usize]
    }

    /// Returns the owner and group of a node.
    pub fn owner(&self, node: &Node) -> Owner {
        self.owners[node.owner as usize]
    }

    /// Returns the name of a node.
    pub fn name(&self, node: &Node) -> &[u8] {
        let start = node.name as usize;
        &self.bytes[start..start + usize::from(node.name_len)]
    }

    /// Returns the target of a symlink.
    pub fn target(&self, node: &Node) -> &[u8] {
        let start = node.name as usize + usize::from(node.name_len);
        let len = usize::try_from(node.size_bytes()).unwrap_or(0);
        &self.bytes[start..start + len]
    }

    /// Returns the path of a node, relative to the store directory.
    pub fn path(&self, index: NodeIndex) -> Vec<u8> {
        let mut parts = Vec::new();
        let mut node = self.node(index);
        let mut at = index;
        while at != 0 {
            parts.push(self.name(node));
            at = self.dirs[node.parent as usize].node;
            node = self.node(at);
        }
        if !self.root_name.is_empty() {
            parts.push(&self.root_name);
        }
        parts.reverse();
        parts.join(&b'/')
    }

    /// Returns the link count: 2 plus the number of subdirectories for a directory, 1 for other files, since a NAR has no hard
    /// links.
    pub fn nlink(&self, node: &Node) -> u32 {
        match self.dir(node) {
            Some((_, dir)) => dir.subdirs.saturating_add(2),
            None => 1,
        }
    }

    /// Returns the form of a node's inode. Planner and encoder both use this function, so they cannot disagree.
    pub fn form(&self, node: &Node) -> Form {
        let extended = self.needs_extended(node);
        let size_bytes = node.size_bytes();
        let inline_len = match node.kind() {
            FileKind::Regular
                if self.attributes.inlines_files()
                    && size_bytes <= super::bounds::INLINE_LIMIT_BYTES =>
            {
                size_bytes
            }
            FileKind::Symlink if fits_inline(extended, size_bytes) => size_bytes,
            FileKind::Directory => self.inline_dirents_len(node),
            _ => 0,
        };
        Form {
            extended,
            inline_len: u16::try_from(inline_len).unwrap_or(0),
        }
    }

    /// Returns the group of node `index`. The top node is always in `Names`, because a path's nid is its slot 0.
    pub(super) fn group(&self, index: NodeIndex) -> InodeGroup {
        let node = self.node(index);
        let small = node.kind() == FileKind::Regular && self.form(node).inline_len > 0;
        if small && index != 0 {
            InodeGroup::SmallFiles
        } else {
            InodeGroup::Names
        }
    }

    fn inline_dirents_len(&self, node: &Node) -> u64 {
        match self.dir(node) {
            Some((_, dir)) if dir.inlined => node.size_bytes() % BLOCK_LEN_BYTES,
            _ => 0,
        }
    }

    pub(super) fn needs_extended(&self, node: &Node) -> bool {
        let mtime = self.attributes.mtime(node.mtime_sec, node.mtime_nsec);
        needs_extended(node.size_bytes(), self.owner(node), self.nlink(node))
            || mtime != (self.attributes.build_time_sec(), 0)
    }

    /// Returns the number of data blocks of a node.
    pub fn data_blocks_of(&self, node: &Node) -> u64 {
        match node.kind() {
            FileKind::Regular | FileKind::Symlink if self.form(node).inline_len == 0 => {
                node.size_bytes().div_ceil(BLOCK_LEN_BYTES)
            }
            _ => 0,
        }
    }

    /// Returns the nodes whose inodes are in metadata block `block`, sorted by slot.
    pub fn nodes_in_block(&self, block: u32) -> &[NodeIndex] {
        let [names, small_files] = &self.placed;
        match self.of_block(names, block) {
            [] => self.of_block(small_files, block),
            found => found,
        }
    }

    /// Returns the part of `placed` (sorted by slot) that is in metadata block `block`.
    fn of_block<'a>(&self, placed: &'a [NodeIndex], block: u32) -> &'a [NodeIndex] {
        let (first, end) = (
            u64::from(block) * u64::from(SLOTS_PER_BLOCK),
            (u64::from(block) + 1) * u64::from(SLOTS_PER_BLOCK),
        );
        let slot = |index: &NodeIndex| u64::from(self.node(*index).slot);
        let start = placed.partition_point(|index| slot(index) < first);
        let len = placed[start..].partition_point(|index| slot(index) < end);
        &placed[start..start + len]
    }

    /// If metadata block `block` has directory entries that are not inlined: the directory, and the index of the block
    /// within it.
    pub fn dirents_in_block(&self, block: u32) -> Option<(DirIndex, u32)> {
        let after = self
            .dirent_blocks
            .partition_point(|(start, _)| *start <= block);
        let (start, dir) = *self.dirent_blocks.get(after.checked_sub(1)?)?;
        let nth = block - start;
        let here = &self.dirs[dir as usize];
        (nth < here.blocks - u32::from(here.inlined)).then_some((dir, nth))
    }

    /// Returns the node that data block `block` belongs to, and the index of the block within it.
    pub fn data_in_block(&self, block: u32) -> Option<(NodeIndex, u32)> {
        let position = self.data_position(block)?;
        let (start, index) = self.with_data[position];
        Some((index, block - start))
    }

    /// Returns the position, in the order of data blocks, of the node that data block `block` belongs to.
    pub fn data_position(&self, block: u32) -> Option<usize> {
        if block >= self.data_blocks {
            return None;
        }
        let after = self.with_data.partition_point(|(start, _)| *start <= block);
        after.checked_sub(1)
    }

    /// Returns the first data block and node of everything with data blocks, starting at `position`.
    pub fn data_from(&self, position: usize) -> &[(u32, NodeIndex)] {
        &self.with_data[position..]
    }

    /// Returns the entries of block `block` of a directory.
    pub fn block_entries(
        &self,
        dir: &Dir,
        block: u32,
    ) -> impl Iterator<Item = EntryRef> + Clone + use<> {
        let starts = &self.starts[dir.starts as usize..(dir.starts + dir.blocks) as usize];
        dir.dots.in_block(starts, block, dir.children)
    }

    /// Returns a digest of everything known from listing the first `dirs` directories, to detect that a rebuilt plan differs.
    /// Comparable only between processes of one program and for the same path.
    pub fn digest(&self, dirs: DirIndex) -> u64 {
        let dirs = self.dirs.get(..dirs as usize).unwrap_or(&self.dirs);
        let known = dirs.last().map_or(1, |dir| dir.first_child + dir.children);
        let mut hasher = DefaultHasher::new();
        self.hash_nodes(0..known, &mut hasher);
        for dir in dirs.iter().filter(|dir| dir.unreadable) {
            dir.node.hash(&mut hasher);
        }
        hasher.finish()
    }

    /// Returns the [`digest`](Self::digest) for each number of directories, from none to all. All directories must be listed.
    pub fn digests(&self) -> Vec<u64> {
        let mut hasher = DefaultHasher::new();
        self.hash_nodes(0..1, &mut hasher);
        let first = hasher.finish();
        let rest = self.dirs.iter().map(|dir| {
            self.hash_nodes(dir.children(), &mut hasher);
            hasher.finish()
        });
        std::iter::once(first).chain(rest).collect()
    }

    fn hash_nodes(&self, nodes: Range<NodeIndex>, hasher: &mut DefaultHasher) {
        for node in &self.nodes[nodes.start as usize..nodes.end as usize] {
            // Sizes of directories are determined by the names in them, and sizes of symlinks by their targets.
            let stamp = (node.kind() == FileKind::Regular).then(|| node.stamp());
            let device = match node.content {
                Content::CharDevice(number) | Content::BlockDevice(number) => number,
                _ => 0,
            };
            let shown = self.attributes.mtime(node.mtime_sec, node.mtime_nsec);
            (node.kind(), node.permissions, device, shown, stamp).hash(hasher);
            (node.parent, self.owner(node), self.name(node)).hash(hasher);
            if node.kind() == FileKind::Symlink {
                self.target(node).hash(hasher);
            }
        }
    }

    /// Returns the approximate heap size, for the plan cache's budget.
    pub fn heap_bytes(&self) -> usize {
        self.nodes.capacity() * size_of::<Node>()
            + self.dirs.capacity() * size_of::<Dir>()
            + self.dirent_blocks.capacity() * size_of::<(u32, DirIndex)>()
            + self.owners.capacity() * size_of::<Owner>()
            + self.placed.iter().map(Vec::capacity).sum::<usize>() * size_of::<NodeIndex>()
            + self.with_data.capacity() * size_of::<(u32, NodeIndex)>()
            + self.starts.capacity() * size_of::<u32>()
            + self.bytes.capacity()
    }
}

impl Dir {
    /// Returns its node.
    pub fn node(&self) -> NodeIndex {
        self.node
    }

    /// Nodes of its children, in name order.
    pub fn children(&self) -> Range<NodeIndex> {
        self.first_child..self.first_child + self.children
    }

    /// Returns the node of the child with index `child` in name order.
    pub fn child(&self, child: u32) -> NodeIndex {
        self.first_child + child
    }

    /// Returns the index of the inlined block of entries, if there is one.
    pub fn inline_block(&self) -> Option<u32> {
        self.inlined.then(|| self.blocks - 1)
    }

    /// Returns whether the directory could not be listed.
    pub fn is_unreadable(&self) -> bool {
        self.unreadable
    }

    /// Returns the first metadata block with entries; `None` if all entries are inlined.
    pub fn first_dirent_block(&self) -> Option<u32> {
        (self.blocks > u32::from(self.inlined)).then_some(self.dirent_block)
    }
}

/// Returns whether `len` bytes fit into one block together with their inode.
fn fits_inline(extended: bool, len: u64) -> bool {
    let header = if extended { EXTENDED_LEN } else { COMPACT_LEN };
    len > 0 && u64::from(header) + len <= BLOCK_LEN_BYTES
}
