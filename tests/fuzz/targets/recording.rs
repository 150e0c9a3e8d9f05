//! The text of a recording, also one of a store that the disk does not have.

use std::path::Path;
use std::sync::OnceLock;

use lazystore::closure::{Closure, Source, StoreLocation};
use lazystore::image::recording::Recording;
use lazystore::image::{Image, ImageOptions};

/// Must not panic; what is accepted can be read in advance without an error, and what is refused is told in one line.
pub fn run(data: &[u8]) {
    match Recording::parse(data) {
        Ok(recording) => check(&recording),
        Err(error) => assert_eq!(error.to_string().lines().count(), 1, "{error}"),
    }
}

fn check(recording: &Recording) {
    for touch in &recording.touches {
        assert!(touch.path < recording.paths.len() && !touch.blocks.is_empty());
    }
    // Threads for each of them would be all that is fuzzed.
    if recording.touches.len() <= 2 {
        let done = disk().prefetch(recording);
        assert_eq!(done.failed, 0);
        assert!(done.known_paths <= done.paths && done.paths == recording.paths.len());
    }
}

/// A disk whose only path has the empty name, as that of a tree.
fn disk() -> &'static Image {
    static DISK: OnceLock<Image> = OnceLock::new();
    DISK.get_or_init(|| {
        // This directory, seen from the fuzzer's package and from the product's.
        let roots = ["targets", "tests/fuzz/targets"];
        let mut dirs = roots
            .map(|dir| Path::new(env!("CARGO_MANIFEST_DIR")).join(dir))
            .into_iter();
        let here = dirs.find(|dir| dir.is_dir()).unwrap();
        let closure = Closure::load(&Source::Tree(here), &StoreLocation::default()).unwrap();
        Image::new(&closure, &ImageOptions::default()).unwrap()
    })
}
