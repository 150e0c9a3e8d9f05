//! The entries of one directory.

use std::ops::Range;

use super::Stat;

/// An entry of a [`Listing`].
#[derive(Debug, Clone)]
pub struct Entry {
    /// Range of the name in [`Listing::bytes`].
    name: Range<usize>,
    /// Range of the symlink target in [`Listing::bytes`]; empty for other kinds.
    target: Range<usize>,
    /// Kind and attributes.
    pub stat: Stat,
}

/// The entries of one directory, sorted by the bytes of their names, without `.` and `..`.
#[derive(Debug, Clone, Default)]
pub struct Listing {
    bytes: Vec<u8>,
    entries: Vec<Entry>,
}

impl Listing {
    /// Builds a listing from names, attributes and symlink targets in any order.
    pub fn new(found: impl IntoIterator<Item = (Vec<u8>, Stat, Vec<u8>)>) -> Self {
        let mut listing = Self::default();
        for (name, stat, target) in found {
            listing.push(&name, stat, &target);
        }
        listing.sort();
        listing
    }

    /// The entries, sorted by name.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Name of `entry`, which must belong to this listing.
    pub fn name(&self, entry: &Entry) -> &[u8] {
        &self.bytes[entry.name.clone()]
    }

    /// Symlink target of `entry`, which must belong to this listing; empty for other kinds.
    pub fn target(&self, entry: &Entry) -> &[u8] {
        &self.bytes[entry.target.clone()]
    }

    /// Adds an entry. Call [`Listing::sort`] after the last one.
    pub fn push(&mut self, name: &[u8], stat: Stat, target: &[u8]) {
        let name = self.append(name);
        let target = self.append(target);
        self.entries.push(Entry { name, target, stat });
    }

    /// Sorts the entries by name, comparing unsigned bytes.
    pub fn sort(&mut self) {
        let bytes = &self.bytes;
        self.entries
            .sort_unstable_by(|a, b| bytes[a.name.clone()].cmp(&bytes[b.name.clone()]));
    }

    fn append(&mut self, bytes: &[u8]) -> Range<usize> {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(bytes);
        start..self.bytes.len()
    }
}
