//! The text of a recording, which may name paths that the disk does not have.

use std::path::Path;
use std::sync::OnceLock;

use lazystore::closure::{Closure, Source, StoreLocation};
use lazystore::image::recording::Recording;
use lazystore::image::{Image, ImageOptions};

/// Must not panic. An accepted recording can be prefetched without an error. An error is one line.
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
    // Otherwise most of the time would be spent on starting threads.
    if recording.touches.len() <= 2 {
        let done = disk().prefetch(recording);
        assert_eq!(done.failed, 0);
        assert!(done.known_paths <= done.paths && done.paths == recording.paths.len());
    }
}

/// A disk whose only path has the empty name, like that of a tree.
fn disk() -> &'static Image {
    static DISK: OnceLock<Image> = OnceLock::new();
    DISK.get_or_init(|| {
        // Path of this directory, from the fuzzer's package and from the main package.
        let roots = ["targets", "tests/fuzz/targets"];
        let mut dirs = roots
            .map(|dir| Path::new(env!("CARGO_MANIFEST_DIR")).join(dir))
            .into_iter();
        let here = dirs.find(|dir| dir.is_dir()).unwrap();
        let closure = Closure::load(&Source::Tree(here), &StoreLocation::default()).unwrap();
        Image::new(&closure, &ImageOptions::default()).unwrap()
    })
}
