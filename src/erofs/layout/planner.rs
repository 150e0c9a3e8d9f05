//! Places one path, a directory at a time, breadth first.
//!
//! A directory's group is its inode with its entries, then the inodes of its children that are no
//! directories; the groups of its subdirectories come later, in the order in which they were met. Small files,
//! which lie after their inodes, fill blocks of their own ([`InodeGroup`]). What has been placed never moves, so a
//! planner may stop after any directory, and the plan does not depend on where it stopped.

use super::LayoutError;
use super::attributes::{Attributes, Origin, Owner};
use super::bounds::Limits;
use super::plan::{Content, Dir, DirIndex, Form, InodeGroup, Node, NodeIndex, Plan, UNPLACED};
use crate::erofs::dirent::{Dots, EntryRef};
use crate::erofs::format::{NAME_LEN_MAX, SLOTS_PER_BLOCK};
use crate::tree::{DeviceNumber, FileKind, Listing, Stat};

/// A plan that is growing.
#[derive(Debug)]
pub struct Planner {
    plan: Plan,
    limits: Limits,
    /// Directories that have been listed.
    listed: DirIndex,
    /// The blocks that take inodes.
    open: [OpenBlock; InodeGroup::COUNT],
}

/// A block that is being filled with inodes.
#[derive(Debug, Clone, Copy)]
struct OpenBlock {
    block: u32,
    /// Slots in use.
    slots: u32,
}

impl OpenBlock {
    /// Takes nothing: the first inode opens a block.
    const NONE: Self = Self {
        block: UNPLACED,
        slots: SLOTS_PER_BLOCK,
    };
}

impl Planner {
    /// Starts with the path's top node: `stat` and, for a symlink, `target`.
    ///
    /// `name` is the path's name in the store, empty for the whole of a tree. `limits` are the most blocks
    /// it may take.
    ///
    /// # Errors
    /// When the top node alone cannot be laid out.
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

    /// What has been placed so far.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The finished plan, without spare memory.
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

    /// The directory to list next, none when all is placed.
    pub fn next_dir(&self) -> Option<NodeIndex> {
        self.next_dirs().next()
    }

    /// The directories to list next, as far as they are known, in order.
    pub fn next_dirs(&self) -> impl Iterator<Item = NodeIndex> {
        let waiting = self.plan.dirs.get(self.listed as usize..);
        waiting.unwrap_or_default().iter().map(|dir| dir.node)
    }

    /// How many directories have been listed.
    pub fn listed(&self) -> DirIndex {
        self.listed
    }

    /// Nothing is left to list.
    pub fn is_complete(&self) -> bool {
        self.next_dir().is_none()
    }

    /// Whether every byte of metadata block `block` is known.
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

    /// Whether every extent in data block `block` is known.
    pub fn covers_data(&self, block: u32) -> bool {
        self.is_complete() || block < self.plan.data_blocks
    }

    /// Whether all that block `nth` of a directory names has an inode.
    fn dirents_placed(&self, dir: &Dir, nth: u32) -> bool {
        self.plan.block_entries(dir, nth).all(|slot| match slot {
            EntryRef::Child(child) => self.plan.node(dir.child(child)).slot != UNPLACED,
            EntryRef::Dot | EntryRef::DotDot => true,
        })
    }

    /// The directory that [`Planner::next_dir`] named cannot be listed. It fails alone: what its entries would lie in is
    /// a block of its own ([`Dir::is_unreadable`]).
    ///
    /// # Errors
    /// As [`Planner::push`].
    pub fn push_unreadable(&mut self) -> Result<(), LayoutError> {
        self.plan.dirs[self.listed as usize].unreadable = true;
        self.push(&Listing::default())
    }

    /// Takes the entries of the directory that [`Planner::next_dir`] named.
    ///
    /// # Errors
    /// When they cannot be laid out. The planner is of no use then.
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

    /// Decides which entries of a listed directory go to which of its blocks.
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

    /// Gives the entries that are not inlined blocks of their own.
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

    /// Gives a node its inode and, if it has data of its own, its data blocks.
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

    /// An inode and what is inlined after it never cross a block.
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

/// Index of `owner` among `owners`. Neighbours mostly share one, and a store has one at all.
fn intern(owners: &mut Vec<Owner>, owner: Owner) -> Result<u32, LayoutError> {
    /// How far back a repeated owner is looked for.
    const RECENT: usize = 32;
    let recent = owners.len().saturating_sub(RECENT);
    if let Some(found) = owners[recent..].iter().position(|known| *known == owner) {
        return narrow(recent + found);
    }
    owners.push(owner);
    narrow(owners.len() - 1)
}

/// What a node is before its data or its entries have a place.
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
