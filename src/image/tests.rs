mod ahead;
mod kept;
mod nar_size;
mod published;
mod wide;

use std::fs;

use proptest::prelude::*;

use super::testing::{store_image, tree_image};
use super::*;

fn read(image: &Image, offset: u64, len: usize) -> Vec<u8> {
    let mut buf = vec![0xaa; len];
    image.read_exact_at(&mut buf, offset).unwrap();
    buf
}

/// Three paths: a directory, a file, a symlink.
fn small_store() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("a/lib/sub")).unwrap();
    for (name, len) in [
        ("a/one", 1),
        ("a/lib/inline", 1000),
        ("a/lib/plain", 9000),
        ("a/lib/sub/x", 4096),
    ] {
        let bytes: Vec<u8> = (0..len).map(|i| u8::try_from(i % 251).unwrap()).collect();
        fs::write(dir.path().join(name), bytes).unwrap();
    }
    fs::write(dir.path().join("b.conf"), vec![7; 5000]).unwrap();
    std::os::unix::fs::symlink("a", dir.path().join("c")).unwrap();
    dir
}

/// Returns the ranges of the disk that may be in use.
fn used(image: &Image) -> Vec<(u64, usize)> {
    let regions = image.space().regions();
    let meta_end = regions.last().unwrap().meta.end;
    let data = regions[0].data.start..regions.last().unwrap().data.end;
    let bytes = |block: u32| u64::from(block) * BLOCK_LEN_BYTES;
    let len = |blocks: u32| usize::try_from(bytes(blocks)).unwrap();
    vec![
        (0, len(meta_end)),
        (bytes(data.start), len(data.end - data.start)),
    ]
}

#[test]
fn any_split_of_a_range_gives_the_same_bytes() {
    let dir = small_store();
    let image = store_image(dir.path(), &ImageOptions::default());
    let whole: Vec<(u64, Vec<u8>)> = used(&image)
        .iter()
        .map(|(at, len)| (*at, read(&image, *at, *len)))
        .collect();
    proptest!(|(part in 0..2_usize, from in 0..40_000_usize, len in 1..20_000_usize)| {
        let (start, bytes) = &whole[part];
        let from = from % bytes.len();
        let to = (from + len).min(bytes.len());
        // A separate disk, so that earlier plans do not matter.
        let fresh = store_image(dir.path(), &ImageOptions::default());
        let got = read(&fresh, start + from as u64, to - from);
        prop_assert!(got == bytes[from..to]);
    });
}

/// So readers need not coalesce: [`Image::visit`] passes each file once.
#[test]
fn no_two_consecutive_pieces_continue_one_file() {
    let dir = small_store();
    for image in [
        store_image(dir.path(), &ImageOptions::default()),
        tree_image(dir.path()),
    ] {
        let regions = image.space().regions();
        let start = u64::from(regions[0].data.start) * BLOCK_LEN_BYTES;
        let len_bytes = (image.len_bytes() - start).min(40_000);
        let mut files = Vec::new();
        let mut note = |piece: Piece<'_>| {
            if let Piece::File { file, .. } = piece {
                let File::Host(file) = file else { panic!() };
                files.push(Arc::as_ptr(&file));
            }
            Ok(())
        };
        image.visit(start, len_bytes, &mut note).unwrap();
        assert!(files.len() > 1);
        assert!(files.windows(2).all(|pair| pair[0] != pair[1]));
    }
}

#[test]
fn evicted_plans_are_rebuilt_identically() {
    let dir = small_store();
    let roomy = store_image(dir.path(), &ImageOptions::default());
    let options = ImageOptions {
        plan_cache_bytes: 0,
        max_open_files: 0,
        ..ImageOptions::default()
    };
    let tight = store_image(dir.path(), &options);
    for _ in 0..3 {
        for (at, len) in used(&roomy) {
            assert!(read(&roomy, at, len) == read(&tight, at, len));
        }
    }
    assert!(tight.plans.total_bytes() < roomy.plans.total_bytes());
}

/// A guest that caches inodes of the first plan must not read another file's bytes by the second plan.
#[test]
fn a_path_that_changed_after_its_plan_was_dropped_is_a_fault() {
    let dir = small_store();
    let options = ImageOptions {
        plan_cache_bytes: 0,
        ..ImageOptions::default()
    };
    let image = store_image(dir.path(), &options);
    let data = image.space().regions()[0].data.start;
    let at = u64::from(data) * BLOCK_LEN_BYTES;
    let before = read(&image, at, 40_000);
    for change in ["lib/inline", "lib/plain", "new"] {
        // Growing another path's plan drops this one.
        image.usage(1).unwrap();
        assert!(image.plans.is_dropped(0));
        let file = dir.path().join("a").join(change);
        let was = fs::read(&file).ok();
        let mtime = fs::metadata(&file).and_then(|meta| meta.modified());
        let len = was.as_ref().map_or(1, |content| content.len() - 1);
        fs::write(&file, vec![1; len]).unwrap();
        let error = image.read_exact_at(&mut [0; 512], at).unwrap_err();
        assert!(matches!(error, ReadError::Replaced { .. }), "{error}");
        assert!(
            error
                .to_string()
                .contains("/a: its files, their sizes or mtimes have changed"),
            "{error}"
        );
        // After the original contents are restored, everything works again.
        if let Some(content) = was {
            fs::write(&file, content).unwrap();
            let open = fs::File::options().write(true).open(&file).unwrap();
            open.set_modified(mtime.unwrap()).unwrap();
        } else {
            fs::remove_file(&file).unwrap();
        }
        image.plans.forget_failures();
        assert!(read(&image, at, 40_000) == before);
    }
}

/// Returns a path that has the registered size but whose second directory does not fit. A guest can read what was planned
/// before that.
fn outgrown_store() -> (tempfile::TempDir, Image) {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("a/sub")).unwrap();
    fs::write(dir.path().join("a/f"), vec![1; 4000]).unwrap();
    fs::write(dir.path().join("a/sub/g"), vec![2; 4000]).unwrap();
    let image = nar_size::registered(dir.path(), 1);
    (dir, image)
}

#[test]
fn a_path_that_changed_after_a_layout_error_is_a_fault() {
    let (dir, image) = outgrown_store();
    let region = &image.space().regions()[0];
    let block = |block: u32| u64::from(block) * BLOCK_LEN_BYTES;
    assert_eq!(read(&image, block(region.data.start), 512), [1; 512]);
    let outgrown = image.usage(0).unwrap_err();
    assert!(matches!(outgrown, ReadError::Layout { .. }), "{outgrown}");
    fs::remove_file(dir.path().join("a/f")).unwrap();
    fs::write(dir.path().join("a/e"), vec![3; 4000]).unwrap();
    image.plans.forget_failures();
    let mut buf = [0; 512];
    let read = image.read_exact_at(&mut buf, block(region.data.start));
    assert!(matches!(read, Err(ReadError::Replaced { .. })), "{buf:?}");
}

/// Replaces `a` by a path whose files have the same names, sizes and mtimes but other bytes.
fn replace_with_a_twin(dir: &std::path::Path) {
    let twin = small_store();
    let (old, new) = (dir.join("a"), twin.path().join("a"));
    for name in ["one", "lib/inline", "lib/plain", "lib/sub/x"] {
        let mtime = fs::metadata(old.join(name)).unwrap().modified().unwrap();
        let len = fs::metadata(new.join(name)).unwrap().len();
        fs::write(new.join(name), vec![0xee; usize::try_from(len).unwrap()]).unwrap();
        let open = fs::File::options().write(true).open(new.join(name));
        open.unwrap().set_modified(mtime).unwrap();
    }
    fs::rename(old, dir.join("old")).unwrap();
    fs::rename(new, dir.join("a")).unwrap();
}

fn is_replaced(result: Result<(), ReadError>) -> bool {
    matches!(
        result,
        Err(ReadError::Source(SourceError::Replaced { path })) if path.ends_with("a")
    )
}

#[test]
fn a_path_replaced_by_a_similar_one_is_a_fault() {
    let dir = small_store();
    let image = store_image(dir.path(), &ImageOptions::default());
    let data = u64::from(image.space().regions()[0].data.start) * BLOCK_LEN_BYTES;
    // One of the two files with data blocks is open, so it does not change.
    let first = read(&image, data, 512);
    replace_with_a_twin(dir.path());
    assert_eq!(read(&image, data, 512), first);
    for block in 1..4 {
        let mut buf = [0; 512];
        match image.read_exact_at(&mut buf, data + block * BLOCK_LEN_BYTES) {
            Ok(()) => assert!(buf != [0xee; 512], "{block}"),
            Err(error) => assert!(is_replaced(Err(error.clone())), "{block}: {error}"),
        }
    }
    let small_files = (1..30).filter(|block| {
        let result = image.read_exact_at(&mut [0; 512], block * BLOCK_LEN_BYTES);
        is_replaced(result)
    });
    assert_eq!(small_files.count(), 1);
    // After the original is restored, reads succeed again.
    fs::remove_dir_all(dir.path().join("a")).unwrap();
    fs::rename(dir.path().join("old"), dir.path().join("a")).unwrap();
    read(&image, data, 16384);
}

#[test]
fn a_path_replaced_before_it_was_walked_is_a_fault() {
    let dir = small_store();
    let (sized, dropped) = (
        nar_size::rightly_registered(dir.path()),
        forgetful(dir.path()),
    );
    dropped.usage(0).unwrap();
    dropped.usage(1).unwrap();
    assert!(dropped.plans.is_dropped(0));
    replace_with_a_twin(dir.path());
    for image in [sized, dropped] {
        assert!(is_replaced(image.usage(0).map(drop)));
        let meta = u64::from(image.space().regions()[0].meta.start) * BLOCK_LEN_BYTES;
        assert!(is_replaced(image.read_exact_at(&mut [0; 512], meta)));
    }
}

#[test]
fn a_path_that_cannot_be_laid_out_is_walked_only_once() {
    let (_dir, image) = outgrown_store();
    let begun = || image.plans.begun.load(std::sync::atomic::Ordering::Relaxed);
    for _ in 0..10 {
        let outgrown = image.usage(0).unwrap_err();
        assert!(matches!(outgrown, ReadError::Layout { .. }), "{outgrown}");
        // The error is known, so no reader waits.
        assert!(matches!(read_now(&image, 0), Err(ReadError::Layout { .. })));
    }
    assert_eq!(begun(), 1);
}

#[test]
fn the_last_block_of_a_file_is_zero_after_its_end() {
    let dir = small_store();
    let image = store_image(dir.path(), &ImageOptions::default());
    let region = &image.space().regions()[1];
    let block = read(
        &image,
        u64::from(region.data.start + 1) * BLOCK_LEN_BYTES,
        4096,
    );
    assert!(block[..904].iter().all(|byte| *byte == 7));
    assert!(block[904..].iter().all(|byte| *byte == 0));
}

#[test]
fn a_read_outside_the_disk_is_an_error() {
    let dir = small_store();
    let image = store_image(dir.path(), &ImageOptions::default());
    let mut buf = [0; 512];
    for offset in [image.len_bytes(), image.len_bytes() - 511, u64::MAX] {
        let result = image.read_exact_at(&mut buf, offset);
        assert!(matches!(result, Err(ReadError::OutOfRange { .. })));
    }
    image
        .read_exact_at(&mut buf, image.len_bytes() - 512)
        .unwrap();
}

#[test]
fn faults_end_when_the_store_is_repaired() {
    let dir = small_store();
    let image = store_image(dir.path(), &ImageOptions::default());
    let region = &image.space().regions()[1];
    let data = u64::from(region.data.start) * BLOCK_LEN_BYTES;
    let moved = dir.path().join("elsewhere");
    fs::rename(dir.path().join("b.conf"), &moved).unwrap();
    let mut buf = [0; 512];
    assert!(image.read_exact_at(&mut buf, data).is_err());
    fs::rename(&moved, dir.path().join("b.conf")).unwrap();
    assert_eq!(read(&image, data, 512), [7; 512]);
}

#[test]
fn a_missing_path_is_named() {
    let dir = small_store();
    let path = |name: &str| crate::closure::StorePath {
        name: name.as_bytes().into(),
        nar_size: None,
        nar_hash: None,
    };
    let closure = crate::closure::Closure {
        dir: dir.path().to_owned(),
        store_dir: "/nix/store".into(),
        contents: crate::closure::Contents::StorePaths(vec![
            path("a"),
            path("gone-1"),
            path("gone-2"),
        ]),
    };
    let error = Image::new(&closure, &ImageOptions::default())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("/nix/store/gone-1, /nix/store/gone-2"),
        "{error}"
    );
}

#[test]
fn eight_concurrent_readers_plan_a_path_once() {
    let dir = small_store();
    let image = tree_image(dir.path());
    let start = std::sync::Barrier::new(8);
    let reads: Vec<Vec<u8>> = std::thread::scope(|scope| {
        let reader = || {
            start.wait();
            read(&image, 0, 65_536)
        };
        let readers: Vec<_> = (0..8).map(|_| scope.spawn(reader)).collect();
        readers
            .into_iter()
            .map(|reader| reader.join().unwrap())
            .collect()
    });
    assert!(reads.iter().all(|bytes| *bytes == reads[0]));
    let begun = image.plans.begun.load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!(begun, 1);
}

/// Returns a disk of three paths that keeps only the last plan.
fn forgetful(dir: &std::path::Path) -> Image {
    let options = ImageOptions {
        plan_cache_bytes: 0,
        ..ImageOptions::default()
    };
    store_image(dir, &options)
}

/// Reads the first data block of a region without waiting.
fn read_now(image: &Image, region: usize) -> Result<(), ReadError> {
    let start = u64::from(image.space().regions()[region].data.start) * BLOCK_LEN_BYTES;
    image.visit_with(IoMode::NoWait, start, BLOCK_LEN_BYTES, &mut |_| Ok(()))
}

#[test]
fn planning_a_path_does_not_block_readers_of_others() {
    let dir = small_store();
    let image = forgetful(dir.path());
    let planned = u64::from(image.space().regions()[1].data.start) * BLOCK_LEN_BYTES;
    read(&image, planned, 4096);
    std::thread::scope(|scope| {
        super::testing::with_planning_held(&image, 0, || {
            let start = u64::from(image.space().regions()[0].data.start) * BLOCK_LEN_BYTES;
            let image = &image;
            scope.spawn(move || read(image, start, 4096));
            assert!(matches!(
                read_now(image, 0),
                Err(ReadError::Source(SourceError::WouldBlock(Awaits::Lookup)))
            ));
            // This read does not need to wait, and no lock blocks it either.
            read_now(image, 1).unwrap();
            assert_eq!(read(image, planned, 512), [7; 512]);
        });
    });
}

#[test]
fn plans_take_at_most_the_cache_limit_plus_one_path() {
    let dir = tempfile::tempdir().unwrap();
    for path in 0..20 {
        let path = dir.path().join(format!("{path}"));
        fs::create_dir(&path).unwrap();
        for file in 0..50 {
            fs::write(path.join(format!("{file}")), vec![1; 5000]).unwrap();
        }
    }
    let roomy = store_image(dir.path(), &ImageOptions::default());
    let each = roomy.plans.total_bytes() / 20;
    let options = ImageOptions {
        plan_cache_bytes: 4 * each,
        ..ImageOptions::default()
    };
    let image = store_image(dir.path(), &options);
    for index in 0..200_u64 {
        let region = usize::try_from(index * 7 % 20).unwrap();
        let start = u64::from(image.space().regions()[region].data.start) * BLOCK_LEN_BYTES;
        assert_eq!(read(&image, start, 512), [1; 512]);
        let total = image.plans.total_bytes();
        assert!((each..=5 * each).contains(&total), "{total} of {each} each");
    }
}

mod broken_trees;
