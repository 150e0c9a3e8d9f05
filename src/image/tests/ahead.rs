//! Paths that are planned before anyone reads them. Two disks of the same store stand for planner and reader.

use std::path::Path;

use super::*;
use crate::closure::{Closure, Contents, StorePath};
use crate::erofs::layout::nar;

const PATHS: u32 = 60;

/// Returns a store of [`PATHS`] directories.
fn wide_store() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for path in 0..PATHS {
        let lib = dir.path().join(format!("p{path:02}/lib"));
        fs::create_dir_all(&lib).unwrap();
        fs::write(lib.join("file"), vec![1; 3000]).unwrap();
    }
    dir
}

/// Returns its disk, with the registered sizes changed by `wrong`.
fn disk(dir: &Path, wrong: impl Fn(u32) -> u64) -> Image {
    let sizes = store_image(dir, &ImageOptions::default());
    let paths = (0..PATHS).map(|path| {
        let size = sizes.with_plan(IoMode::Blocking, path, Need::All, nar::size_bytes);
        StorePath {
            name: format!("p{path:02}").into_bytes().into(),
            nar_size: Some(size.unwrap() + wrong(path)),
            nar_hash: Some([7; 32]),
        }
    });
    let closure = Closure {
        dir: dir.to_owned(),
        store_dir: "/nix/store".into(),
        contents: Contents::StorePaths(paths.collect()),
    };
    Image::new(&closure, &ImageOptions::default()).unwrap()
}

/// A planner, and a reader of what it publishes.
struct Fixture {
    dir: tempfile::TempDir,
    image: Image,
    publisher: Publisher,
    reader: Image,
}

impl Fixture {
    fn new(wrong: impl Fn(u32) -> u64) -> Self {
        let dir = wide_store();
        let image = disk(dir.path(), &wrong);
        let publisher = image.share_plans().unwrap();
        let reader = disk(dir.path(), &wrong);
        reader.plans.share(image.plans.shared().unwrap());
        Self {
            dir,
            image,
            publisher,
            reader,
        }
    }

    /// Reads the first block of a path, as `ls -l` does.
    fn look_at(&self, path: u32) {
        let start = self.reader.space().region(path).meta.start;
        read(&self.reader, u64::from(start) * BLOCK_LEN_BYTES, 512);
    }

    /// Lets the planner do all there is to do; returns the number of published plans.
    fn published(&mut self) -> u64 {
        while self.publisher.turn(&self.image) {}
        self.reader.published_plans().all
    }
}

#[test]
fn a_guest_that_reads_a_few_paths_causes_no_other_plans() {
    let mut fixture = Fixture::new(|_| 0);
    for path in 0..7 {
        fixture.look_at(path);
    }
    for path in [20, 30, 31, 32, 40] {
        fixture.look_at(path);
    }
    assert_eq!(fixture.published(), 12);
}

#[test]
fn a_guest_that_reads_path_after_path_finds_the_next_ones_planned() {
    let mut fixture = Fixture::new(|_| 0);
    (10..18).for_each(|path| fixture.look_at(path));
    assert_eq!(fixture.published(), 16);
    assert_eq!(fixture.reader.plans_begun(), 8);
    // A plan that was made ahead of a reader is as good as any, and the planner goes on from it.
    for path in 18..PATHS {
        fixture.look_at(path);
        let count = u64::from(path) - 10 + 1;
        let ahead = count.min(32).min(u64::from(PATHS - path - 1));
        assert_eq!(fixture.published(), count + ahead);
    }
    assert_eq!(fixture.reader.plans_begun(), 8);
    let right = disk(fixture.dir.path(), |_| 0);
    let regions = right.space().regions();
    for region in regions {
        let at = u64::from(region.meta.start) * BLOCK_LEN_BYTES;
        assert!(read(&fixture.reader, at, 8192) == read(&right, at, 8192));
    }
}

/// Nobody waits for it, so it is tried again only if a guest reads it.
#[test]
fn a_path_that_cannot_be_planned_ahead_is_left_alone() {
    let mut fixture = Fixture::new(|path| u64::from(path == 9) * 8);
    (0..8).for_each(|path| fixture.look_at(path));
    assert_eq!(fixture.published(), 15);
    assert_eq!(fixture.publisher.next_due(), None);
}

/// A requested path does not wait for the whole of a large one that was not requested.
#[test]
fn requests_are_looked_at_while_a_path_is_planned_ahead() {
    let dir = wide_store();
    let name = "n".repeat(200);
    for sub in 0..60 {
        let sub = dir.path().join(format!("p08/lib/{sub}"));
        fs::create_dir(&sub).unwrap();
        for file in 0..60 {
            fs::write(sub.join(format!("{name}{file}")), "").unwrap();
        }
    }
    let image = disk(dir.path(), |_| 0);
    let mut publisher = image.share_plans().unwrap();
    let shared = image.plans.shared().unwrap();
    (0..8).for_each(|path| _ = shared.ask(path, Wish::Plan));
    assert!(publisher.turn(&image));
    let all = image.published_plans().all;
    assert_eq!(all, 8);
    for _ in 0..3 {
        assert!(publisher.turn(&image));
        assert_eq!(image.published_plans().all, 8);
    }
    shared.ask(40, Wish::Plan);
    assert!(publisher.turn(&image));
    assert_eq!(image.published_plans().all, 9);
    while publisher.turn(&image) {}
    assert_eq!(image.published_plans().all, 17);
    assert_eq!(image.plans_begun(), 17);
}
