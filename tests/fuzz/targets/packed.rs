//! A packed tree, which the fetcher passes to the workers.

use lazystore::source::nar::{NarTree, PackedError};

use super::archive;

/// Longer NARs are not written to be compared.
const NAR_MAX_BYTES: u64 = 1 << 20;

/// Must not panic. An accepted tree equals that of the NAR written from it, and packs to the same bytes. An error is one
/// sentence.
pub fn run(data: &[u8]) {
    // No NAR has this size, so the error contains the tree's size.
    let found = match NarTree::from_packed(data, u64::MAX) {
        Err(PackedError::Size { found, .. }) => found,
        Err(error) => return assert_eq!(error.to_string().lines().count(), 1, "{error}"),
        Ok(tree) => panic!("a NAR of {} bytes", tree.nar_size()),
    };
    let tree = NarTree::from_packed(data, found).unwrap();
    assert_eq!(tree.nar_size(), found);
    assert_eq!(tree.to_packed(), data);
    // Each node takes a byte for its kind, and at least two more.
    assert!(tree.node_count() <= data.len() / 3);
    assert!(NarTree::from_packed(data, found - 8).is_err());
    if found <= NAR_MAX_BYTES {
        let nar = archive::write(&tree, &|_, len| vec![0; usize::try_from(len).unwrap()]);
        assert_eq!(NarTree::parse(&nar[..], found).unwrap(), tree);
    }
}
