//! The entries of one directory.

use std::ops::Range;

use super::Stat;

/// An entry of a [`Listing`].
#[derive(Debug, Clone)]
pub struct Entry {
    /// Where its name lies in the listing's bytes.
    name: Range<usize>,
    /// Where its target lies in the listing's bytes; empty unless it is a symlink.
    target: Range<usize>,
    /// What it is.
    pub stat: Stat,
}

/// The entries of one directory, sorted by the bytes of their names, without `.` and `..`.
#[derive(Debug, Clone, Default)]
pub struct Listing {
    bytes: Vec<u8>,
    entries: Vec<Entry>,
}

impl Listing {
    /// The entries of a directory with these names, attributes and targets, in any order.
    pub fn new(found: impl IntoIterator<Item = (Vec<u8>, Stat, Vec<u8>)>) -> Self {
        let mut listing = Self::default();
        for (name, stat, target) in found {
            listing.push(&name, stat, &target);
        }
        listing.sort();
        listing
    }

    /// The entries in order.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Name of an entry of this listing.
    pub fn name(&self, entry: &Entry) -> &[u8] {
        &self.bytes[entry.name.clone()]
    }

    /// Target of an entry of this listing, empty unless it is a symlink.
    pub fn target(&self, entry: &Entry) -> &[u8] {
        &self.bytes[entry.target.clone()]
    }

    /// Adds an entry; [`Listing::sort`] must follow the last one.
    pub fn push(&mut self, name: &[u8], stat: Stat, target: &[u8]) {
        let name = self.append(name);
        let target = self.append(target);
        self.entries.push(Entry { name, target, stat });
    }

    /// Puts the entries in the order of their names' unsigned bytes.
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
