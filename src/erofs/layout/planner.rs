//! Places the files of one path, one directory at a time, in breadth-first order.
//!
//! For each directory, the planner places its inode with its entries, then the inodes of its children that are not
//! directories. Its subdirectories follow later, in the order of discovery. Files with inlined data fill separate
//! blocks ([`InodeGroup`]). Placed nodes never move, so a planner may stop after any directory, and the plan does not
//! depend on where it stopped.

use super::LayoutError;
use super::attributes::{Attributes, Origin, Owner};
use super::bounds::Limits;
use super::plan::{Content, Dir, DirIndex, Form, InodeGroup, Node, NodeIndex, Plan, UNPLACED};
use crate::erofs::dirent::{Dots, EntryRef};
use crate::erofs::format::{NAME_LEN_MAX, SLOTS_PER_BLOCK};
use crate::tree::{DeviceNumber, FileKind, Listing, Stat};

/// Builds a plan incrementally.
#[derive(Debug)]
pub struct Planner {
    plan: Plan,
    limits: Limits,
    /// Number of directories that have been listed.
    listed: DirIndex,
    /// The current block of each group.
    open: [OpenBlock; InodeGroup::COUNT],
}

/// The block that takes the next inodes of a group.
#[derive(Debug, Clone, Copy)]
struct OpenBlock {
    block: u32,
    /// Number of slots in use.
    slots: u32,
}

impl OpenBlock {
    /// A full block, so that the first inode opens a new one.
    const NONE: Self = Self {
        block: UNPLACED,
        slots: SLOTS_PER_BLOCK,
    };
}

impl Planner {
    /// Starts with the path's top node, described by `stat` and, for a symlink, `target`.
    ///
    /// `name` is the path's name in the store, or empty for a tree.
    ///
    /// # Errors
    /// The top node cannot be laid out.
    pub fn new(
        name: &[u8],
        attributes: Attributes,
        limits: Limits,
        stat: &Stat,
        target: &[u8],
    ) -> Result<Self, LayoutError> {
        let mut planner = Self {
            plan: Plan {
                attributes,
                root_name: name.into(),
                nodes: Vec::new(),
                dirs: Vec::new(),
                owners: Vec::new(),
                bytes: Vec::new(),
                placed: Default::default(),
                with_data: Vec::new(),
                dirent_blocks: Vec::new(),
                starts: Vec::new(),
                meta_blocks: 1,
                data_blocks: 0,
            },
            limits,
            listed: 0,
            open: [OpenBlock { block: 0, slots: 0 }, OpenBlock::NONE],
        };
        planner.add_node(0, b"", stat, target)?;
        match stat.kind {
            FileKind::Directory => planner.add_dir(0)?,
            _ => planner.place(0)?,
        }
        Ok(planner)
    }

    /// Returns the plan so far.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Returns the finished plan, without spare memory.
    pub fn into_plan(mut self) -> Plan {
        let plan = &mut self.plan;
        plan.nodes.shrink_to_fit();
        plan.dirs.shrink_to_fit();
        plan.bytes.shrink_to_fit();
        plan.placed.iter_mut().for_each(Vec::shrink_to_fit);
        plan.with_data.shrink_to_fit();
        plan.dirent_blocks.shrink_to_fit();
        plan.starts.shrink_to_fit();
        self.plan
    }

    /// Returns the directory to list next; `None` when the plan is complete.
    pub fn next_dir(&self) -> Option<NodeIndex> {
        self.next_dirs().next()
    }

    /// Returns the directories to list next that are already known, in order.
    pub fn next_dirs(&self) -> impl Iterator<Item = NodeIndex> {
        let waiting = self.plan.dirs.get(self.listed as usize..);
        waiting.unwrap_or_default().iter().map(|dir| dir.node)
    }

    /// Returns the number of directories that have been listed.
    pub fn listed(&self) -> DirIndex {
        self.listed
    }

    /// Returns whether all directories have been listed.
    pub fn is_complete(&self) -> bool {
        self.next_dir().is_none()
    }

    /// Returns whether every byte of metadata block `block` is determined by the plan so far.
    pub fn covers_meta(&self, block: u32) -> bool {
        if self.is_complete() {
            return true;
        }
        if let Some((dir, nth)) = self.plan.dirents_in_block(block) {
            return self.dirents_placed(self.plan.dir_at(dir), nth);
        }
        if block >= self.plan.meta_blocks || self.open.iter().any(|open| open.block == block) {
            return false;
        }
        self.plan.nodes_in_block(block).iter().all(|index| {
            let dir = self.plan.dir(self.plan.node(*index));
            dir.is_none_or(|(_, dir)| {
                dir.inline_block()
                    .is_none_or(|nth| self.dirents_placed(dir, nth))
            })
        })
    }

    /// Returns whether the contents of data block `block` are determined by the plan so far.
    pub fn covers_data(&self, block: u32) -> bool {
        self.is_complete() || block < self.plan.data_blocks
    }

    /// Returns whether every child in block `nth` of a directory's entries has a slot.
    fn dirents_placed(&self, dir: &Dir, nth: u32) -> bool {
        self.plan.block_entries(dir, nth).all(|slot| match slot {
            EntryRef::Child(child) => self.plan.node(dir.child(child)).slot != UNPLACED,
            EntryRef::Dot | EntryRef::DotDot => true,
        })
    }

    /// Marks the directory [`Planner::next_dir`] as unlistable. Its entries get a block of their own, so that only
    /// reads of that block fail ([`Dir::is_unreadable`]).
    ///
    /// # Errors
    /// As for [`Planner::push`].
    pub fn push_unreadable(&mut self) -> Result<(), LayoutError> {
        self.plan.dirs[self.listed as usize].unreadable = true;
        self.push(&Listing::default())
    }

    /// Adds the entries of the directory [`Planner::next_dir`] and places them.
    ///
    /// # Errors
    /// They cannot be laid out. The planner must not be used afterwards.
    pub fn push(&mut self, listing: &Listing) -> Result<(), LayoutError> {
        let index = self.listed;
        let node = self.plan.dirs[index as usize].node;
        self.add_children(index, listing)?;
        self.pack_dirents(index)?;
        self.place(node)?;
        self.place_dirents(index)?;
        let first = self.plan.dirs[index as usize].first_child;
        for child in first..self.next_node()? {
            if self.plan.node(child).kind() != FileKind::Directory {
                self.place(child)?;
            }
        }
        if index == 0 {
            self.open_next(InodeGroup::Names)?;
        }
        self.listed += 1;
        Ok(())
    }

    fn next_node(&self) -> Result<NodeIndex, LayoutError> {
        narrow(self.plan.nodes.len())
    }

    fn add_children(&mut self, index: DirIndex, listing: &Listing) -> Result<(), LayoutError> {
        let first_child = self.next_node()?;
        let first_subdir = narrow(self.plan.dirs.len())?;
        for entry in listing.entries() {
            let child = self.next_node()?;
            let (name, target) = (listing.name(entry), listing.target(entry));
            self.add_node(index, name, &entry.stat, target)?;
            if entry.stat.kind == FileKind::Directory {
                self.add_dir(child)?;
            }
        }
        let children = self.next_node()? - first_child;
        let subdirs = narrow(self.plan.dirs.len())? - first_subdir;
        let dir = &mut self.plan.dirs[index as usize];
        dir.first_child = first_child;
        dir.children = children;
        dir.first_subdir = first_subdir;
        dir.subdirs = subdirs;
        let names = listing.entries().iter().map(|entry| listing.name(entry));
        dir.dots = Dots::among(names);
        Ok(())
    }

    fn add_node(
        &mut self,
        parent: DirIndex,
        name: &[u8],
        stat: &Stat,
        target: &[u8],
    ) -> Result<(), LayoutError> {
        self.check(parent, name, stat)?;
        let plan = &mut self.plan;
        let start = narrow(plan.bytes.len())?;
        plan.bytes.extend_from_slice(name);
        plan.bytes.extend_from_slice(target);
        let owner = intern(&mut plan.owners, plan.attributes.owner(stat))?;
        plan.nodes.push(Node {
            content: content(stat, target)?,
            mtime_sec: stat.mtime_sec,
            mtime_nsec: stat.mtime_nsec,
            name: start,
            slot: UNPLACED,
            parent,
            owner,
            permissions: plan.attributes.permissions(stat),
            name_len: u8::try_from(name.len()).map_err(|_| LayoutError::BadName)?,
        });
        Ok(())
    }

    fn check(&self, parent: DirIndex, name: &[u8], stat: &Stat) -> Result<(), LayoutError> {
        let is_top = parent == 0 && self.plan.nodes.is_empty();
        if !is_top && (name.is_empty() || name.len() > NAME_LEN_MAX) {
            return Err(LayoutError::BadName);
        }
        let in_a_nar = matches!(
            stat.kind,
            FileKind::Regular | FileKind::Directory | FileKind::Symlink
        );
        if self.plan.attributes.origin == Origin::Nar && !in_a_nar {
            return Err(LayoutError::NotInANar);
        }
        Ok(())
    }

    fn add_dir(&mut self, node: NodeIndex) -> Result<(), LayoutError> {
        let index = narrow(self.plan.dirs.len())?;
        self.plan.nodes[node as usize].content = Content::Directory {
            size_bytes: 0,
            dir: index,
        };
        self.plan.dirs.push(Dir {
            node,
            first_child: 0,
            children: 0,
            first_subdir: 0,
            subdirs: 0,
            dots: Dots::among(std::iter::empty()),
            starts: 0,
            blocks: 0,
            dirent_block: 0,
            inlined: false,
            unreadable: false,
        });
        Ok(())
    }

    /// Divides the entries of a listed directory into blocks and decides whether the last one is inlined.
    fn pack_dirents(&mut self, index: DirIndex) -> Result<(), LayoutError> {
        let dir = &self.plan.dirs[index as usize];
        let (node, first_child) = (dir.node, dir.first_child);
        let name_len = |child| self.plan.node(first_child + child).name_len;
        let packing = dir.dots.pack(dir.children, name_len);
        let starts = narrow(self.plan.starts.len())?;
        self.plan.starts.extend_from_slice(&packing.starts);
        self.plan.nodes[node as usize].content = Content::Directory {
            size_bytes: packing.size_bytes(),
            dir: index,
        };
        let extended = self.plan.needs_extended(self.plan.node(node));
        let dir = &mut self.plan.dirs[index as usize];
        dir.starts = starts;
        dir.blocks = narrow(packing.starts.len())?;
        let form = Form::of_directory(extended, packing.last_len);
        dir.inlined = form.inline_len > 0 && !dir.unreadable;
        Ok(())
    }

    /// Allocates metadata blocks for the entries that are not inlined.
    fn place_dirents(&mut self, index: DirIndex) -> Result<(), LayoutError> {
        let dir = &self.plan.dirs[index as usize];
        let blocks = dir.blocks - u32::from(dir.inlined);
        if blocks > 0 {
            let first = self.take_meta_blocks(blocks)?;
            self.plan.dirs[index as usize].dirent_block = first;
            self.plan.dirent_blocks.push((first, index));
        }
        Ok(())
    }

    /// Allocates the inode of a node and, if it has data that is not inlined, its data blocks.
    fn place(&mut self, index: NodeIndex) -> Result<(), LayoutError> {
        let node = self.plan.node(index);
        let form = self.plan.form(node);
        let blocks = self.plan.data_blocks_of(node);
        let group = self.plan.group(index);
        let slot = self.take_slots(group, form)?;
        self.plan.nodes[index as usize].slot = slot;
        self.plan.placed[group as usize].push(index);
        if blocks > 0 {
            let first = self.take_data_blocks(blocks)?;
            self.plan.nodes[index as usize]
                .content
                .set_data_block(first);
            self.plan.with_data.push((first, index));
        }
        Ok(())
    }

    /// Allocates slots in one block: an inode with its inlined data must not cross a block boundary.
    fn take_slots(&mut self, group: InodeGroup, form: Form) -> Result<u32, LayoutError> {
        if self.open[group as usize].slots + form.slots() > SLOTS_PER_BLOCK {
            self.open_next(group)?;
        }
        let open = &mut self.open[group as usize];
        let slot = open
            .block
            .checked_mul(SLOTS_PER_BLOCK)
            .and_then(|first| first.checked_add(open.slots))
            .filter(|slot| *slot != UNPLACED)
            .ok_or(LayoutError::TooBig)?;
        open.slots += form.slots();
        Ok(slot)
    }

    fn open_next(&mut self, group: InodeGroup) -> Result<(), LayoutError> {
        let block = self.take_meta_blocks(1)?;
        self.open[group as usize] = OpenBlock { block, slots: 0 };
        Ok(())
    }

    fn take_meta_blocks(&mut self, count: u32) -> Result<u32, LayoutError> {
        let taken = &mut self.plan.meta_blocks;
        let first = *taken;
        *taken = advance(first, u64::from(count), self.limits.meta_blocks)?;
        Ok(first)
    }

    fn take_data_blocks(&mut self, count: u64) -> Result<u32, LayoutError> {
        let taken = &mut self.plan.data_blocks;
        let first = *taken;
        *taken = advance(first, count, self.limits.data_blocks)?;
        Ok(first)
    }
}

fn advance(first: u32, count: u64, limit: u32) -> Result<u32, LayoutError> {
    let end = u64::from(first) + count;
    if end > u64::from(limit) {
        return Err(LayoutError::OutgrewRange);
    }
    u32::try_from(end).map_err(|_| LayoutError::TooBig)
}

fn narrow(count: usize) -> Result<u32, LayoutError> {
    u32::try_from(count).map_err(|_| LayoutError::TooBig)
}

/// Returns the index of `owner` in `owners`; appends it if it is not among the recent ones. Neighbouring files mostly have the
/// same owner, and a store has only one.
fn intern(owners: &mut Vec<Owner>, owner: Owner) -> Result<u32, LayoutError> {
    /// Number of owners to search, so that a tree with many owners stays linear.
    const RECENT: usize = 32;
    let recent = owners.len().saturating_sub(RECENT);
    if let Some(found) = owners[recent..].iter().position(|known| *known == owner) {
        return narrow(recent + found);
    }
    owners.push(owner);
    narrow(owners.len() - 1)
}

/// Returns the content of a node before its data or entries are placed.
fn content(stat: &Stat, target: &[u8]) -> Result<Content, LayoutError> {
    Ok(match stat.kind {
        FileKind::Regular => Content::Regular {
            size_bytes: stat.size_bytes,
            data_block: 0,
        },
        FileKind::Directory => Content::Directory {
            size_bytes: 0,
            dir: 0,
        },
        FileKind::Symlink => Content::Symlink {
            target_len_bytes: narrow(target.len())?,
            data_block: 0,
        },
        FileKind::CharDevice => Content::CharDevice(encode_device(stat.device)),
        FileKind::BlockDevice => Content::BlockDevice(encode_device(stat.device)),
        FileKind::Fifo => Content::Fifo,
        FileKind::Socket => Content::Socket,
    })
}

/// Linux `include/linux/kdev_t.h`, `new_encode_dev`.
fn encode_device(DeviceNumber { major, minor }: DeviceNumber) -> u32 {
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}
