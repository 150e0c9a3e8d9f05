//! Disks for unit tests.

use std::path::Path;

use super::{Image, ImageOptions};
use crate::closure::{Closure, Contents, StorePath};

/// Returns the disk of `--tree dir`.
pub fn tree_image(dir: &Path) -> Image {
    let closure = Closure {
        dir: dir.to_owned(),
        store_dir: dir.to_owned(),
        contents: Contents::Tree,
    };
    Image::new(&closure, &ImageOptions::default()).unwrap()
}

/// Returns the disk of all entries of `dir` as store paths without a registration.
pub fn store_image(dir: &Path, options: &ImageOptions) -> Image {
    use std::os::unix::ffi::OsStrExt;
    let mut paths: Vec<StorePath> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| StorePath {
            name: entry.unwrap().file_name().as_bytes().into(),
            nar_size: None,
            nar_hash: None,
        })
        .collect();
    paths.sort_by(|a, b| a.name.cmp(&b.name));
    let closure = Closure {
        dir: dir.to_owned(),
        store_dir: "/nix/store".into(),
        contents: Contents::StorePaths(paths),
    };
    Image::new(&closure, options).unwrap()
}

/// Calls `f` while planning of region `region` is blocked, so that readers of its plan wait, as for a disk that does
/// not respond.
pub fn with_planning_held<R>(image: &Image, region: usize, f: impl FnOnce() -> R) -> R {
    image.plans.hold(region, f)
}
