use std::fs;

use super::*;
use crate::erofs::volume::Place;
use crate::image::ImageOptions;
use crate::image::testing::{store_image, tree_image};

fn store() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("a")).unwrap();
    fs::write(dir.path().join("a/small"), "small").unwrap();
    std::os::unix::fs::symlink("target", dir.path().join("a/link")).unwrap();
    fs::write(dir.path().join("b"), [7; 5000]).unwrap();
    dir
}

fn path(place: &Place) -> &str {
    let file = match place {
        Place::Inode(file) | Place::InlineData(file) | Place::Data(file) | Place::Target(file) => {
            file
        }
        Place::Entries { dir, .. } => dir,
        Place::Padding(file) => file,
        Place::Superblock | Place::Unused { .. } => panic!("{place:?} has no path"),
    };
    std::str::from_utf8(&file.path).unwrap()
}

#[test]
fn every_byte_up_to_the_first_data_belongs_to_one_spot() {
    let dir = store();
    for image in [
        tree_image(dir.path()),
        store_image(dir.path(), &ImageOptions::default()),
    ] {
        let mut at = 0;
        while at < 16 * BLOCK_LEN_BYTES {
            let spot = image.locate(at).unwrap();
            assert_eq!(spot.range.start, at, "{spot:?}");
            assert!(spot.range.end > at, "{spot:?}");
            // The last byte gives the same spot as the first.
            let end = spot.range.end.min(image.len_bytes());
            assert_eq!(image.locate(end - 1).unwrap(), spot);
            at = end;
        }
    }
}

#[test]
fn every_kind_of_place_is_located() {
    let dir = store();
    let image = store_image(dir.path(), &ImageOptions::default());
    assert_eq!(image.locate(1024).unwrap().place, Place::Superblock);
    let root = image.locate_nid(128).unwrap();
    assert!(matches!(&root.place, Place::Inode(file) if file.path.is_empty()));
    assert!(matches!(
        image.locate(root.range.end).unwrap().place,
        Place::Entries { offset: 0, .. }
    ));
    let data = u64::from(image.space().regions()[1].data.start) * BLOCK_LEN_BYTES;
    let spot = image.locate(data + 4999).unwrap();
    assert!(matches!(spot.place, Place::Data(_)));
    assert_eq!((path(&spot.place), spot.range), ("b", data..data + 5000));
    let padding = image.locate(data + 5000).unwrap();
    assert!(matches!(padding.place, Place::Padding(_)), "{padding:?}");
    assert_eq!(
        (path(&padding.place), padding.range.end),
        ("b", data + 8192)
    );
}

#[test]
fn small_files_and_targets_follow_their_inodes() {
    let dir = store();
    let image = store_image(dir.path(), &ImageOptions::default());
    let top = image.locate_nid(image.space().regions()[0].nid()).unwrap();
    let (mut at, mut seen) = (top.range.start, Vec::new());
    let end = u64::from(image.space().regions()[0].meta.end) * BLOCK_LEN_BYTES;
    while at < end {
        let spot = image.locate(at).unwrap();
        at = spot.range.end;
        match &spot.place {
            Place::InlineData(_) => seen.push(("data", path(&spot.place).to_owned())),
            Place::Target(_) => seen.push(("target", path(&spot.place).to_owned())),
            Place::Entries { .. } => seen.push(("entries", path(&spot.place).to_owned())),
            _ => {}
        }
    }
    let seen: Vec<_> = seen
        .iter()
        .map(|(what, path)| (*what, path.as_str()))
        .collect();
    assert_eq!(
        seen,
        [("entries", "a"), ("target", "a/link"), ("data", "a/small")]
    );
}

#[test]
fn an_address_after_the_end_is_an_error() {
    let dir = store();
    let image = tree_image(dir.path());
    assert!(image.locate(image.len_bytes()).is_err());
    assert!(image.locate_nid(u64::MAX).is_err());
}

#[test]
fn usage_equals_the_size_of_the_plan() {
    let dir = store();
    let image = store_image(dir.path(), &ImageOptions::default());
    let usage = image.usage(0).unwrap();
    assert_eq!((usage.files, usage.data_blocks), (3, 0));
    assert_eq!(image.usage(1).unwrap().data_blocks, 2);
}
