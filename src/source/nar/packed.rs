//! The binary form of a [`NarTree`], which the fetcher passes to the workers so that they parse no JSON.
//!
//! The format: [`MAGIC`], then the nodes in the order of the NAR. An entry begins with the length of its name (1 byte) and the
//! name. Then comes the kind (1 byte): `f` or `x` for files (size, 8 bytes), `l` for symlinks (length of the target, 2 bytes;
//! the target), `d` for directories (their entries, then a zero byte). Numbers are little-endian.

use super::NarTree;
use super::builder::Builder;
use super::error::{PackedError, TreeFault};
use super::{Payload, StoredNode};

/// The magic, which includes the version of the format.
const MAGIC: &[u8] = b"lazystore tree 1\n";

/// The longest accepted input, in bytes: more than [`NODES_MAX`](super::NODES_MAX) files with
/// [`NAMES_MAX_BYTES`](super::NAMES_MAX_BYTES) need.
pub const PACKED_MAX_BYTES: usize = 128 << 20;

const FILE: u8 = b'f';
const EXECUTABLE: u8 = b'x';
const SYMLINK: u8 = b'l';
const DIRECTORY: u8 = b'd';
/// Ends a directory. Unambiguous, because no name is empty.
const END: u8 = 0;

impl NarTree {
    /// Returns the packed tree. Equal trees give equal bytes.
    pub fn to_packed(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        let mut open: Vec<std::slice::Iter<'_, u32>> = Vec::new();
        if let Some(root) = self.nodes.first() {
            self.pack(root, &mut out, &mut open);
        }
        while let Some(entries) = open.last_mut() {
            match entries.next() {
                Some(index) => {
                    let node = &self.nodes[*index as usize];
                    out.push(node.name_len);
                    out.extend_from_slice(self.name(node));
                    self.pack(node, &mut out, &mut open);
                }
                None => {
                    out.push(END);
                    open.pop();
                }
            }
        }
        out
    }

    fn pack<'t>(
        &'t self,
        node: &'t StoredNode,
        out: &mut Vec<u8>,
        open: &mut Vec<std::slice::Iter<'t, u32>>,
    ) {
        match node.payload {
            Payload::Regular {
                size_bytes,
                executable,
                ..
            } => {
                out.push(if executable { EXECUTABLE } else { FILE });
                out.extend(size_bytes.to_le_bytes());
            }
            Payload::Symlink { len, .. } => {
                out.push(SYMLINK);
                out.extend(len.to_le_bytes());
                out.extend_from_slice(self.target(node));
            }
            Payload::Directory { .. } => {
                out.push(DIRECTORY);
                open.push(self.children(node).iter());
            }
        }
    }

    /// Parses the packed tree `bytes` of a NAR of `nar_size` bytes.
    ///
    /// # Errors
    /// They are malformed, or the NAR of this tree would have another size.
    pub fn from_packed(bytes: &[u8], nar_size: u64) -> Result<Self, PackedError> {
        let rest = bytes.strip_prefix(MAGIC).ok_or(PackedError::Malformed)?;
        let mut reader = PackedDecoder { rest };
        let mut builder = Builder::new(nar_size);
        reader.node(&mut builder)?;
        while builder.is_open() {
            match reader.byte()? {
                END => builder.end_directory()?,
                len => {
                    builder.entry(reader.take(usize::from(len))?)?;
                    reader.node(&mut builder)?;
                }
            }
        }
        if !reader.rest.is_empty() {
            return Err(PackedError::Malformed);
        }
        let tree = builder.finish();
        let (found, expected) = (tree.nar_size(), nar_size);
        match found == expected {
            true => Ok(tree),
            false => Err(PackedError::Size { found, expected }),
        }
    }
}

struct PackedDecoder<'b> {
    rest: &'b [u8],
}

impl<'b> PackedDecoder<'b> {
    fn take(&mut self, len: usize) -> Result<&'b [u8], PackedError> {
        let (taken, rest) = self
            .rest
            .split_at_checked(len)
            .ok_or(PackedError::Malformed)?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const LEN: usize>(&mut self) -> Result<[u8; LEN], PackedError> {
        let taken = self.take(LEN)?;
        taken.try_into().map_err(|_| PackedError::Malformed)
    }

    fn byte(&mut self) -> Result<u8, PackedError> {
        self.array::<1>().map(|[byte]| byte)
    }

    /// Adds a node to `builder`. Leaves a directory open.
    fn node(&mut self, builder: &mut Builder) -> Result<(), PackedError> {
        match self.byte()? {
            kind @ (FILE | EXECUTABLE) => {
                let size_bytes = u64::from_le_bytes(self.array()?);
                builder.regular(size_bytes, kind == EXECUTABLE)?;
            }
            SYMLINK => {
                let len = u16::from_le_bytes(self.array()?);
                builder.symlink(self.take(usize::from(len))?)?;
            }
            DIRECTORY => builder.directory()?,
            _ => return Err(PackedError::Malformed),
        }
        Ok(())
    }
}

impl From<TreeFault> for PackedError {
    fn from(_: TreeFault) -> Self {
        Self::Malformed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTING: &str = r#"{"version":1,"root":{"type":"directory","entries":{
        "a":{"type":"regular","size":10},
        "bin":{"type":"directory","entries":{"x":{"type":"regular","size":5000,"executable":true}}},
        "empty":{"type":"directory","entries":{}},
        "link":{"type":"symlink","target":"bin/x"}}}}"#;

    fn tree() -> NarTree {
        // Get the size from the error.
        let error = NarTree::from_listing(LISTING.as_bytes(), 1 << 20).unwrap_err();
        let crate::source::nar::ListingError::Size { found, .. } = error else {
            panic!("{error}");
        };
        NarTree::from_listing(LISTING.as_bytes(), found).unwrap()
    }

    #[test]
    fn packed_trees_round_trip() {
        let tree = tree();
        let packed = tree.to_packed();
        assert_eq!(
            NarTree::from_packed(&packed, tree.nar_size()).unwrap(),
            tree
        );
    }

    #[test]
    fn truncated_or_longer_trees_and_other_sizes_are_refused() {
        let (tree, packed) = (tree(), tree().to_packed());
        for len in 0..packed.len() {
            assert!(
                NarTree::from_packed(&packed[..len], tree.nar_size()).is_err(),
                "{len}"
            );
        }
        let longer = [&packed[..], b"\0"].concat();
        assert!(NarTree::from_packed(&longer, tree.nar_size()).is_err());
        assert!(NarTree::from_packed(&packed, tree.nar_size() + 8).is_err());
    }

    proptest::proptest! {
        #[test]
        fn a_changed_byte_gives_another_tree_or_an_error(at in 0_usize..1000, byte in proptest::num::u8::ANY) {
            let (tree, mut packed) = (tree(), tree().to_packed());
            let at = at % packed.len();
            let same = packed[at] == byte;
            packed[at] = byte;
            let parsed = NarTree::from_packed(&packed, tree.nar_size());
            proptest::prop_assert_eq!(parsed.is_ok_and(|parsed| parsed == tree), same);
        }
    }
}
