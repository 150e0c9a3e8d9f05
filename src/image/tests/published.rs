//! Plans that one process publishes and others read. Two disks of the same store stand for the two processes.

use super::nar_size::{deep_store, registered, rightly_registered};
use super::*;
use crate::image::published::Wish;

/// Returns a disk of the same store that reads what `publisher` publishes.
pub(super) fn reader_of(image: &Image, dir: &std::path::Path) -> Image {
    let reader = rightly_registered(dir);
    reader.plans.share(image.plans.shared().unwrap());
    reader
}

pub(super) fn publish_all(image: &Image, publisher: &mut Publisher) {
    let shared = image.plans.shared().unwrap();
    for wish in [Wish::Plan, Wish::SmallFiles] {
        shared.ask(0, wish);
    }
    while publisher.turn(image) {}
}

fn begun(image: &Image) -> u64 {
    image.plans_begun()
}

/// Returns the ranges of region 0 that the plan of `image` uses.
pub(super) fn all_used(image: &Image) -> Vec<(u64, usize)> {
    let usage = image.usage(0).unwrap();
    let region = image.space().region(0);
    let part = |start: u32, blocks: u32| {
        let len = u64::from(blocks) * BLOCK_LEN_BYTES;
        (
            u64::from(start) * BLOCK_LEN_BYTES,
            usize::try_from(len).unwrap(),
        )
    };
    vec![
        part(region.meta.start, usage.meta_blocks + 1),
        part(region.data.start, usage.data_blocks + 1),
    ]
}

/// Returns a store with every kind of node that has data blocks or inlined data.
pub(super) fn full_store() -> tempfile::TempDir {
    let dir = deep_store();
    let long = "t".repeat(4095);
    std::os::unix::fs::symlink(long, dir.path().join("a/lib/long")).unwrap();
    std::os::unix::fs::symlink("one", dir.path().join("a/short")).unwrap();
    fs::create_dir(dir.path().join("a/many")).unwrap();
    for index in 0..300 {
        let path = dir.path().join(format!("a/many/file-of-{index}"));
        fs::write(path, vec![7; index * 20]).unwrap();
    }
    dir
}

#[test]
fn published_plans_read_like_own_plans() {
    let dir = full_store();
    let own = rightly_registered(dir.path());
    let image = rightly_registered(dir.path());
    let mut publisher = image.share_plans().unwrap();
    let early = reader_of(&image, dir.path());
    image.plans.shared().unwrap().ask(0, Wish::Plan);
    while publisher.turn(&image) {}
    let compare = |reader: &Image| {
        for (at, len) in all_used(&own) {
            assert!(read(reader, at, len) == read(&own, at, len));
            for start in (0..len).step_by(10_007) {
                let end = (start + 5000).min(len);
                let part = read(reader, at + start as u64, end - start);
                assert!(part == read(&own, at + start as u64, end - start));
            }
        }
        assert_eq!(reader.usage(0).unwrap(), own.usage(0).unwrap());
        assert_eq!(begun(reader), 0);
    };
    // At first, small files are read from the host.
    compare(&early);
    while publisher.turn(&image) {}
    let late = reader_of(&image, dir.path());
    fs::remove_file(dir.path().join("a/one")).unwrap();
    compare(&early);
    compare(&late);
}

#[test]
fn readers_with_an_own_plan_switch_to_the_published_one() {
    let dir = full_store();
    let image = rightly_registered(dir.path());
    let mut publisher = image.share_plans().unwrap();
    let (partly, wholly) = (reader_of(&image, dir.path()), reader_of(&image, dir.path()));
    let first = |image: &Image| read(image, all_meta(image), 4096);
    let before = first(&partly);
    wholly.usage(0).unwrap();
    publish_all(&image, &mut publisher);
    for reader in [&partly, &wholly] {
        assert_eq!(begun(reader), 1);
        assert_eq!(first(reader), before);
        assert!(reader.plans.is_dropped(0));
        assert_eq!(reader.plans.total_bytes(), 0);
        reader.usage(0).unwrap();
        assert_eq!(begun(reader), 1);
    }
}

fn all_meta(image: &Image) -> u64 {
    u64::from(image.space().region(0).meta.start) * BLOCK_LEN_BYTES
}

/// A guest has read by a plan that differs from the published one.
#[test]
fn a_reader_whose_plan_differs_does_not_switch() {
    let dir = deep_store();
    let image = rightly_registered(dir.path());
    let mut publisher = image.share_plans().unwrap();
    let reader = reader_of(&image, dir.path());
    let (one, aside) = (dir.path().join("a/one"), dir.path().join("aside"));
    fs::rename(&one, &aside).unwrap();
    let before = read(&reader, all_meta(&reader), 4096);
    fs::rename(&aside, &one).unwrap();
    publish_all(&image, &mut publisher);
    for _ in 0..2 {
        let error = reader.read_exact_at(&mut [0; 512], all_meta(&reader));
        assert!(matches!(error, Err(ReadError::Replaced { .. })));
        reader.plans.forget_failures();
    }
    let late = reader_of(&image, dir.path());
    assert!(read(&late, all_meta(&late), 4096) != before);
}

/// Regression test: a worker that was started later served other bytes than the guest had read before, with status OK.
#[test]
fn an_incomplete_path_is_not_served_in_part() {
    let dir = deep_store();
    let image = rightly_registered(dir.path());
    let mut publisher = image.share_plans().unwrap();
    let reader = reader_of(&image, dir.path());
    let (sub, aside) = (dir.path().join("a/lib/sub/below"), dir.path().join("aside"));
    fs::rename(&sub, &aside).unwrap();
    publish_all(&image, &mut publisher);
    let first = || reader.read_exact_at(&mut [0; 512], all_meta(&reader));
    assert!(matches!(first(), Err(ReadError::NarSize { .. })));
    fs::rename(&aside, &sub).unwrap();
    reader.plans.forget_failures();
    first().unwrap();
    image.plans.forget_failures();
    let size = image.usage(0).unwrap();
    assert_eq!(reader.usage(0).unwrap(), size);
}

/// The same if a worker died before anything was published.
#[test]
fn a_path_that_a_dead_process_has_begun_is_not_served_in_part() {
    let dir = deep_store();
    let image = rightly_registered(dir.path());
    let _publisher = image.share_plans().unwrap();
    let dead = reader_of(&image, dir.path());
    let reader = reader_of(&image, dir.path());
    read(&dead, all_meta(&dead), 4096);
    let (sub, aside) = (dir.path().join("a/lib/sub/below"), dir.path().join("aside"));
    fs::rename(&sub, &aside).unwrap();
    read(&dead, all_meta(&dead), 4096);
    let first = || reader.read_exact_at(&mut [0; 512], all_meta(&reader));
    assert!(matches!(first(), Err(ReadError::NarSize { .. })));
    fs::rename(&aside, &sub).unwrap();
    reader.plans.forget_failures();
    first().unwrap();
}

#[test]
fn moving_a_directory_after_publication_fails_only_its_large_files() {
    let dir = deep_store();
    let image = rightly_registered(dir.path());
    let mut publisher = image.share_plans().unwrap();
    publish_all(&image, &mut publisher);
    let ranges = all_used(&image);
    let whole: Vec<Vec<u8>> = ranges
        .iter()
        .map(|(at, len)| read(&image, *at, *len))
        .collect();
    fs::rename(dir.path().join("a/lib"), dir.path().join("aside")).unwrap();
    fs::create_dir(dir.path().join("a/lib")).unwrap();
    fs::write(dir.path().join("a/lib/plain"), vec![0xee; 9000]).unwrap();
    let reader = reader_of(&image, dir.path());
    let mut failed = 0;
    for ((at, len), bytes) in ranges.iter().zip(&whole) {
        for start in (0..*len).step_by(512) {
            let mut buf = [0; 512];
            match reader.read_exact_at(&mut buf, at + start as u64) {
                Ok(()) => assert!(buf[..] == bytes[start..start + 512]),
                Err(_) => failed += 1,
            }
        }
    }
    assert!(failed > 0);
}

#[test]
fn without_room_every_process_plans_by_itself() {
    let dir = full_store();
    let mut image = rightly_registered(dir.path());
    image.plans.set_limit_bytes(4096);
    let mut publisher = image.share_plans().unwrap();
    publish_all(&image, &mut publisher);
    let reader = reader_of(&image, dir.path());
    read(&reader, all_meta(&reader), 4096);
    assert_eq!(begun(&reader), 1);
}

/// Regression test: the temporary contents would have stayed published after the file was restored.
#[test]
fn temporary_contents_of_a_file_are_not_published() {
    let dir = deep_store();
    let image = rightly_registered(dir.path());
    let mut publisher = image.share_plans().unwrap();
    let reader = reader_of(&image, dir.path());
    reader.usage(0).unwrap();
    let one = dir.path().join("a/one");
    let mtime = fs::metadata(&one).unwrap().modified().unwrap();
    fs::write(&one, "x").unwrap();
    let later = std::time::SystemTime::now() + std::time::Duration::from_secs(1);
    let set = |time| {
        let file = fs::File::options().write(true).open(&one).unwrap();
        file.set_modified(time).unwrap();
    };
    set(later);
    publish_all(&image, &mut publisher);
    read(&reader, all_meta(&reader), 4096);
    assert!(!reader.plans.is_dropped(0));
    fs::write(&one, [0]).unwrap();
    set(mtime);
    publisher.forget_failures();
    publish_all(&image, &mut publisher);
    read(&reader, all_meta(&reader), 4096);
    assert!(reader.plans.is_dropped(0));
}

#[test]
fn a_wrong_registration_is_never_published() {
    let dir = deep_store();
    let image = registered(dir.path(), 8);
    let mut publisher = image.share_plans().unwrap();
    publish_all(&image, &mut publisher);
    assert!(image.plans.shared().unwrap().is_suspect(0));
}

/// Errors or wrong bytes are allowed, but no panic: the writer is trusted, but may be killed at any time.
#[test]
fn corrupt_memory_is_read_without_panic() {
    let dir = deep_store();
    let image = rightly_registered(dir.path());
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(200));
    let nonsense = (
        0..12_000_usize,
        proptest::collection::vec(any::<u8>(), 1..64),
    );
    let check = |(at, bytes): (usize, Vec<u8>)| {
        let mut publisher = image.share_plans().unwrap();
        publish_all(&image, &mut publisher);
        publisher.scribble(at, &bytes);
        let reader = reader_of(&image, dir.path());
        let region = reader.space().region(0);
        for start in [region.meta.start, region.data.start] {
            for block in 0..8 {
                let at = u64::from(start + block) * BLOCK_LEN_BYTES;
                let _ = reader.read_exact_at(&mut [0; 4096], at);
            }
        }
        let _ = reader.usage(0);
        Ok(())
    };
    runner.run(&nonsense, check).unwrap();
}

/// Regression test: otherwise the second VM reads them from the host again.
#[test]
fn small_files_read_by_an_own_plan_are_published_too() {
    let dir = full_store();
    let image = rightly_registered(dir.path());
    let mut publisher = image.share_plans().unwrap();
    let first = reader_of(&image, dir.path());
    let ranges = all_used(&first);
    let (at, len) = ranges[0];
    let before = read(&first, at, len);
    while publisher.turn(&image) {}
    let second = reader_of(&image, dir.path());
    fs::remove_dir_all(dir.path().join("a")).unwrap();
    assert!(read(&second, at, len) == before);
}
