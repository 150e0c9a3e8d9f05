//! Packs directory entries into blocks. Sizing and encoding both use this module, so they cannot disagree.
//!
//! A directory is a sequence of blocks. Each block has an array of entries, followed by their names without gaps (Linux
//! `fs/erofs/dir.c`, `namei.c`). Entries are sorted by the unsigned bytes of their names across all blocks, including
//! `.` and `..`.

use super::format::{BLOCK_LEN, BLOCK_LEN_BYTES, DIRENT_LEN};

/// How the entries of a directory are divided into blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packing {
    /// Index of the first entry of each block; `starts[0]` is 0.
    pub starts: Vec<u32>,
    /// Bytes used in the last block, 1 to 4096.
    pub last_len: u16,
}

impl Packing {
    /// Packs entries with names of `name_lens` bytes, 1 to 255 each.
    pub fn new(name_lens: impl Iterator<Item = u8>) -> Self {
        let mut starts = vec![0];
        let mut used = 0;
        for (index, name_len) in (0..).zip(name_lens) {
            let entry_len = DIRENT_LEN + u16::from(name_len);
            if used + entry_len > BLOCK_LEN {
                starts.push(index);
                used = 0;
            }
            used += entry_len;
        }
        let last_len = used;
        Self { starts, last_len }
    }

    /// Returns the number of blocks before the last one. `i_size` counts them as full.
    pub fn full_blocks(&self) -> u32 {
        // Cannot saturate: entry indexes have 32 bits, and there are fewer blocks than entries.
        u32::try_from(self.starts.len() - 1).unwrap_or(u32::MAX)
    }

    /// `i_size` of the directory.
    pub fn size_bytes(&self) -> u64 {
        u64::from(self.full_blocks()) * BLOCK_LEN_BYTES + u64::from(self.last_len)
    }
}

/// An element of a directory's sorted entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryRef {
    /// The directory itself.
    Dot,
    /// Its parent.
    DotDot,
    /// A child, by its index among the sorted children.
    Child(u32),
}

/// The positions of `.` and `..` among a directory's sorted children.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dots {
    /// Number of children that sort before `.`.
    before_dot: u32,
    /// Number of children that sort before `..`.
    before_dot_dot: u32,
}

impl Dots {
    /// `names` are sorted and do not include `.` and `..`.
    pub fn among<'a>(names: impl Iterator<Item = &'a [u8]> + Clone) -> Self {
        // A linear scan is enough: few names start with a byte below '.'.
        let count = |limit: &[u8]| {
            let before = names.clone().take_while(|name| *name < limit);
            u32::try_from(before.count()).unwrap_or(u32::MAX)
        };
        Self {
            before_dot: count(b"."),
            before_dot_dot: count(b".."),
        }
    }

    /// Packs `.`, `..` and `children` names with lengths given by `name_len`.
    pub fn pack(self, children: u32, name_len: impl Fn(u32) -> u8) -> Packing {
        let entries = (0..children + 2).map(|index| self.entry(index));
        Packing::new(entries.map(|entry| match entry {
            EntryRef::Dot => 1,
            EntryRef::DotDot => 2,
            EntryRef::Child(child) => name_len(child),
        }))
    }

    /// Returns the entries in block `block` of a directory with `children` children; `starts` as in [`Packing`].
    pub fn in_block(
        self,
        starts: &[u32],
        block: u32,
        children: u32,
    ) -> impl Iterator<Item = EntryRef> + Clone + use<> {
        let first = starts[block as usize];
        let end = starts.get(block as usize + 1).copied();
        (first..end.unwrap_or(children + 2)).map(move |index| self.entry(index))
    }

    /// Returns the entry at position `index`.
    pub fn entry(self, index: u32) -> EntryRef {
        let (dot, dot_dot) = (self.before_dot, self.before_dot_dot + 1);
        match index {
            i if i < dot => EntryRef::Child(i),
            i if i == dot => EntryRef::Dot,
            i if i < dot_dot => EntryRef::Child(i - 1),
            i if i == dot_dot => EntryRef::DotDot,
            i => EntryRef::Child(i - 2),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_empty_directory_holds_27_bytes() {
        let packing = Packing::new([1, 2].into_iter());
        assert_eq!((packing.full_blocks(), packing.size_bytes()), (0, 27));
    }

    #[test]
    fn a_block_is_filled_to_its_last_byte() {
        // 15 entries of 12 + 255 bytes and one of 12 + 79 are 4,096 bytes.
        let lens = [255; 15].into_iter().chain([79]);
        let exact = Packing::new(lens.clone());
        assert_eq!((exact.full_blocks(), exact.last_len), (0, 4096));
        let over = Packing::new(lens.chain([1]));
        assert_eq!((over.starts.as_slice(), over.last_len), (&[0, 16][..], 13));
    }

    proptest! {
        #[test]
        fn dots_are_sorted_like_any_name(mut names in proptest::collection::btree_set("[+.a-]{1,3}", 0..20)) {
            names.remove(".");
            names.remove("..");
            let dots = Dots::among(names.iter().map(String::as_bytes));
            let children: Vec<&str> = names.iter().map(String::as_str).collect();
            let mut expected = children.clone();
            expected.extend([".", ".."]);
            expected.sort_unstable();
            let got: Vec<&str> = (0..).take(expected.len()).map(|i| match dots.entry(i) {
                EntryRef::Dot => ".",
                EntryRef::DotDot => "..",
                EntryRef::Child(child) => children[child as usize],
            }).collect();
            prop_assert_eq!(got, expected);
        }
    }
}
