//! Builds a [`NarTree`] from nodes in the order of a NAR, and computes their offsets.

use super::error::TreeFault;
use super::{NAMES_MAX_BYTES, NODES_MAX, NarTree, Payload, StoredNode, tokens};
use crate::closure::shown;

/// The longest file name on Linux and EROFS, in bytes.
pub(super) const NAME_MAX: usize = 255;

/// The longest symlink target on Linux, in bytes: PATH_MAX without its NUL.
pub(super) const TARGET_MAX: usize = 4095;

/// The longest path from the root to a node, in bytes. Nix cannot restore longer ones, because together with the store path
/// they exceed PATH_MAX. This bounds the depth of a tree to half of it.
pub(super) const PATH_MAX: usize = 4096;

/// A tree under construction.
pub(super) struct Builder {
    nodes: Vec<StoredNode>,
    children: Vec<u32>,
    bytes: Vec<u8>,
    /// Directories not yet ended, from the root down.
    open: Vec<OpenDirectory>,
    /// The entries so far of all open directories, one directory after the other.
    pending: Vec<u32>,
    /// Name of the next node.
    name: Name,
    /// Size of the NAR up to here.
    nar_size: u64,
    max: u64,
}

/// The location of a name, and the length of its node's path.
#[derive(Debug, Clone, Copy, Default)]
struct Name {
    start: u32,
    len: u8,
    path_len: usize,
}

struct OpenDirectory {
    index: u32,
    /// Index of its first entry in `pending`.
    entries_start: usize,
    path_len: usize,
}

impl Builder {
    /// Starts a tree whose NAR has at most `max` bytes. The root must be added first.
    pub(super) fn new(max: u64) -> Self {
        Self {
            nodes: Vec::new(),
            children: Vec::new(),
            bytes: Vec::new(),
            open: Vec::new(),
            pending: Vec::new(),
            name: Name::default(),
            nar_size: tokens::len_of(&[tokens::MAGIC]),
            max,
        }
    }

    /// Begins an entry of the innermost open directory. Its node must follow.
    pub(super) fn entry(&mut self, name: &[u8]) -> Result<(), TreeFault> {
        let Some(dir) = self.open.last() else {
            return Err(TreeFault::Name { name: shown(name) });
        };
        let path_len = path_len(dir.path_len, name)?;
        if self.pending.len() > dir.entries_start {
            let previous = self.pending.last().map_or(0, |last| *last as usize);
            check_order(self.name_of(&self.nodes[previous]), name)?;
        }
        self.advance(&[tokens::ENTRY])?;
        self.advance(&tokens::BEFORE_NAME)?;
        self.advance(&[name, tokens::BEFORE_NODE])?;
        self.name = Name {
            start: self.append(name)?,
            len: u8::try_from(name.len()).unwrap_or(u8::MAX),
            path_len,
        };
        Ok(())
    }

    /// Begins a directory. Its entries must follow, then [`Builder::end_directory`].
    pub(super) fn directory(&mut self) -> Result<(), TreeFault> {
        self.begin_node(&[tokens::DIRECTORY])?;
        let index = self.push(Payload::Directory { first: 0, count: 0 })?;
        self.open.push(OpenDirectory {
            index,
            entries_start: self.pending.len(),
            path_len: self.name.path_len,
        });
        Ok(())
    }

    /// Adds a regular file. Returns the offset of its contents in the NAR.
    pub(super) fn regular(&mut self, size_bytes: u64, executable: bool) -> Result<u64, TreeFault> {
        self.begin_node(&[tokens::REGULAR])?;
        if executable {
            self.advance(&[tokens::EXECUTABLE, tokens::EXECUTABLE_VALUE])?;
        }
        self.advance(&[tokens::CONTENTS])?;
        self.advance_bytes(tokens::LENGTH_BYTES)?;
        let offset = self.nar_size;
        let padded = size_bytes.checked_next_multiple_of(tokens::ALIGNMENT);
        self.advance_bytes(padded.unwrap_or(u64::MAX))?;
        self.end_node()?;
        self.push(Payload::Regular {
            size_bytes,
            offset,
            executable,
        })?;
        Ok(offset)
    }

    /// Adds a symlink.
    pub(super) fn symlink(&mut self, target: &[u8]) -> Result<(), TreeFault> {
        let len = u16::try_from(target.len()).unwrap_or(u16::MAX);
        if target.is_empty() || usize::from(len) > TARGET_MAX || target.contains(&0) {
            let target = shown(target);
            return Err(TreeFault::Target { target });
        }
        self.begin_node(&[tokens::SYMLINK, tokens::TARGET, target])?;
        self.end_node()?;
        let start = self.append(target)?;
        self.push(Payload::Symlink { start, len })?;
        Ok(())
    }

    /// Ends the innermost open directory.
    pub(super) fn end_directory(&mut self) -> Result<(), TreeFault> {
        let Some(dir) = self.open.pop() else {
            return Ok(());
        };
        let entries = self.pending.drain(dir.entries_start..);
        // The conversion cannot fail: NODES_MAX bounds the number of children.
        let first = u32::try_from(self.children.len()).unwrap_or(u32::MAX);
        let count = u32::try_from(entries.len()).unwrap_or(u32::MAX);
        self.children.extend(entries);
        self.nodes[dir.index as usize].payload = Payload::Directory { first, count };
        self.end_node()
    }

    /// Returns whether a directory is open.
    pub(super) fn is_open(&self) -> bool {
        !self.open.is_empty()
    }

    /// Returns the tree. The root must be complete.
    pub(super) fn finish(self) -> NarTree {
        NarTree {
            nodes: self.nodes.into(),
            children: self.children.into(),
            bytes: self.bytes.into(),
            nar_size: self.nar_size,
        }
    }

    fn begin_node(&mut self, words: &[&[u8]]) -> Result<(), TreeFault> {
        self.advance(&tokens::BEGIN_NODE)?;
        self.advance(words)
    }

    /// Ends a node and, except for the root, its entry.
    fn end_node(&mut self) -> Result<(), TreeFault> {
        self.advance(&[tokens::END])?;
        match self.is_open() {
            true => self.advance(&[tokens::END]),
            false => Ok(()),
        }
    }

    fn push(&mut self, payload: Payload) -> Result<u32, TreeFault> {
        if self.nodes.len() >= NODES_MAX {
            return Err(TreeFault::TooManyNodes { max: NODES_MAX });
        }
        let index = u32::try_from(self.nodes.len()).unwrap_or(u32::MAX);
        self.nodes.push(StoredNode {
            name_start: self.name.start,
            name_len: self.name.len,
            payload,
        });
        if self.is_open() {
            self.pending.push(index);
        }
        Ok(index)
    }

    fn append(&mut self, bytes: &[u8]) -> Result<u32, TreeFault> {
        if self.bytes.len() + bytes.len() > NAMES_MAX_BYTES {
            let max = NAMES_MAX_BYTES;
            return Err(TreeFault::TooManyNames { max });
        }
        let start = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        self.bytes.extend_from_slice(bytes);
        Ok(start)
    }

    fn advance(&mut self, words: &[&[u8]]) -> Result<(), TreeFault> {
        self.advance_bytes(tokens::len_of(words))
    }

    fn advance_bytes(&mut self, len_bytes: u64) -> Result<(), TreeFault> {
        let end = self.nar_size.checked_add(len_bytes);
        let end = end.filter(|end| *end <= self.max);
        self.nar_size = end.ok_or(TreeFault::TooLarge { max: self.max })?;
        Ok(())
    }

    fn name_of(&self, node: &StoredNode) -> &[u8] {
        &self.bytes[node.name_start as usize..][..usize::from(node.name_len)]
    }
}

/// Returns the length of the path of the entry `name` in a directory whose path has `dir_len` bytes.
pub(super) fn path_len(dir_len: usize, name: &[u8]) -> Result<usize, TreeFault> {
    if matches!(name, b"" | b"." | b"..") || name.iter().any(|byte| matches!(byte, 0 | b'/')) {
        return Err(TreeFault::Name { name: shown(name) });
    }
    let (len, shown) = (name.len(), || shown(name));
    if len > NAME_MAX {
        return Err(TreeFault::NameTooLong { name: shown(), len });
    }
    let path_len = dir_len + 1 + len;
    if path_len > PATH_MAX {
        let (name, max) = (shown(), PATH_MAX);
        return Err(TreeFault::PathTooLong { name, max });
    }
    Ok(path_len)
}

fn check_order(previous: &[u8], name: &[u8]) -> Result<(), TreeFault> {
    match previous.cmp(name) {
        std::cmp::Ordering::Less => Ok(()),
        std::cmp::Ordering::Equal => Err(TreeFault::Duplicate { name: shown(name) }),
        std::cmp::Ordering::Greater => Err(TreeFault::Unsorted {
            name: shown(name),
            previous: shown(previous),
        }),
    }
}
