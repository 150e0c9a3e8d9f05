//! A listing, the text of a `.ls` file.

use lazystore::source::nar::{ListingError, NarTree};

use super::archive;

/// Longer NARs are not written to be compared.
const NAR_MAX_BYTES: u64 = 1 << 20;

/// Must not panic. An accepted tree equals that of the NAR written from it. An error is one sentence.
pub fn run(data: &[u8]) {
    // No NAR has this size, so the error contains the listing's size.
    let found = match NarTree::from_listing(data, u64::MAX) {
        Err(ListingError::Size { found, .. }) => found,
        Err(error) => return assert_eq!(error.to_string().lines().count(), 1, "{error}"),
        Ok(tree) => panic!("a NAR of {} bytes", tree.nar_size()),
    };
    let tree = NarTree::from_listing(data, found).unwrap();
    assert_eq!(tree.nar_size(), found);
    assert!(tree.node_count() <= data.len() / 8);
    assert!(NarTree::from_listing(data, found - 8).is_err());
    if found <= NAR_MAX_BYTES {
        let nar = archive::write(&tree, &|_, len| vec![0; usize::try_from(len).unwrap()]);
        assert_eq!(nar.len() as u64, found);
        assert_eq!(NarTree::parse(&nar[..], found).unwrap(), tree);
    }
}
