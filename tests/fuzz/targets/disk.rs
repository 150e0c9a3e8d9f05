//! A small, completely planned disk, for targets that serve one.

use std::sync::Arc;

use lazystore::closure::{Closure, Source, StoreLocation};
use lazystore::image::{Image, ImageOptions};

/// First sector of file data (docs/design.md, address space).
pub const DATA_SECTOR: u64 = (128 << 30) / 512;

/// Length of the metadata and of the file data that are read once: more than there are.
const WARM_BYTES: usize = 1 << 20;

/// The disk of a directory with files of a few sizes, whose contents depend on `seed`. The directory is removed, but its
/// files stay open.
pub fn disk(seed: usize) -> Arc<Image> {
    let tree = tempfile::tempdir().unwrap();
    for (index, len) in [0usize, 1, 700, 4096, 5000, 20_000].into_iter().enumerate() {
        let content: Vec<u8> = (0..len)
            .map(|at| (at * 31 + index + 7 * seed).to_le_bytes()[0])
            .collect();
        std::fs::write(tree.path().join(format!("file{index}")), content).unwrap();
    }
    let source = Source::Tree(tree.path().to_owned());
    let closure = Closure::load(&source, &StoreLocation::default()).unwrap();
    let image = Image::new(&closure, &ImageOptions::default()).unwrap();
    let mut bytes = vec![0; WARM_BYTES];
    for start in [0, DATA_SECTOR * 512] {
        image.read_exact_at(&mut bytes, start).unwrap();
    }
    Arc::new(image)
}
