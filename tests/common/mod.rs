//! Code that several integration tests share. Each test program uses a part of it.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used)]

pub mod cache;
pub mod client;
pub mod compare;
pub mod direct;
pub mod driver;
pub mod frontend;
pub mod fuse;
pub mod http;
pub mod nar;
pub mod nasty;
pub mod nix;
pub mod proc;
pub mod process;
pub mod qemu;
pub mod random;
pub mod reader;
pub mod remote;
pub mod server;
pub mod small_store;
pub mod tree;
pub mod vm;

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use lazystore::closure::{Closure, Contents, Source, StoreLocation, StorePath};
use lazystore::image::{Image, ImageOptions};
use proptest::prelude::ProptestConfig;
use proptest::test_runner::RngSeed;

/// The image of a directory tree.
pub fn tree_image(dir: &Path) -> Image {
    let source = Source::Tree(dir.to_owned());
    let closure = Closure::load(&source, &StoreLocation::default()).unwrap();
    Image::new(&closure, &ImageOptions::default()).unwrap()
}

/// The image of a directory's entries as store paths, with NAR sizes if `sizes` gives them.
pub fn store_image(dir: &Path, sizes: impl Fn(&Path) -> Option<u64>) -> Image {
    Image::new(&store_closure(dir, sizes), &ImageOptions::default()).unwrap()
}

/// A directory's entries as store paths, with NAR sizes if `sizes` gives them.
pub fn store_closure(dir: &Path, sizes: impl Fn(&Path) -> Option<u64>) -> Closure {
    let path = |entry: std::io::Result<std::fs::DirEntry>| {
        let entry = entry.unwrap();
        StorePath {
            name: entry.file_name().as_bytes().into(),
            nar_size: sizes(&entry.path()),
            nar_hash: None,
        }
    };
    let mut paths: Vec<StorePath> = std::fs::read_dir(dir).unwrap().map(path).collect();
    paths.sort_by(|a, b| a.name.cmp(&b.name));
    Closure {
        dir: dir.to_owned(),
        store_dir: "/nix/store".into(),
        contents: Contents::StorePaths(paths),
    }
}

/// Fails if the calling test belongs to the full tier but is not marked as ignored: it would fail on a bare checkout.
fn assert_full_tier(what: &str) {
    let asked_for = |arg: String| arg == "--ignored" || arg == "--include-ignored";
    assert!(
        std::env::args().any(asked_for),
        "a test that needs {what} must be marked #[ignore = \"needs ...\"]"
    );
}

/// A directory in memory, where trees of thousands of files are created and read in a tenth of the time.
pub fn memory_dir() -> tempfile::TempDir {
    // A tmpfs on every Linux system (shm_overview(7)).
    tempfile::tempdir_in("/dev/shm").unwrap()
}

/// The seed of property tests: the same in every run, so that a failure is reproducible. `PROPTEST_RNG_SEED` sets
/// another.
pub fn cases(cases: u32) -> ProptestConfig {
    let drawn = ProptestConfig::default();
    ProptestConfig {
        cases,
        max_shrink_iters: 200,
        rng_seed: match drawn.rng_seed {
            RngSeed::Random => RngSeed::Fixed(1),
            fixed => fixed,
        },
        ..drawn
    }
}

/// The path of a tool. Fails if it is missing and names its package: no test is skipped.
pub fn tool(name: &str, package: &str) -> std::path::PathBuf {
    assert_full_tier(name);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    dirs.map(|dir| dir.join(name))
        .find(|candidate| candidate.is_file())
        .unwrap_or_else(|| panic!("{name} is missing: apt-get install {package}"))
}

/// A variable that `scripts/test` sets.
pub fn from_env(name: &str) -> String {
    assert_full_tier(name);
    std::env::var(name).unwrap_or_else(|_| {
        panic!("{name} is not set: run scripts/test, which prepares what boots need")
    })
}

/// Number of files of all types below `dir`.
pub fn count(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    let each = entries.map(|entry| match entry.file_type().unwrap().is_dir() {
        true => 1 + count(&entry.path()),
        false => 1,
    });
    each.sum()
}

/// Number of files and symlinks below `dir` that are not empty.
pub fn count_with_bytes(dir: &Path) -> usize {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    let each = entries.map(|entry| {
        let metadata = entry.metadata().unwrap();
        match metadata.is_dir() {
            true => count_with_bytes(&entry.path()),
            false => usize::from(metadata.len() > 0),
        }
    });
    each.sum()
}
