//! Plans kept for the next server. Each disk with its publisher stands for one server.

use std::path::{Path, PathBuf};

use super::nar_size::{deep_store, nar_size_of, registered, rightly_registered};
use super::published::{all_used, full_store, publish_all, reader_of};
use super::*;
use crate::image::published::Wish;

/// One server: a disk, and the publisher of its plans.
fn server(dir: &Path, plans: &Path) -> (Image, Publisher) {
    let image = rightly_registered(dir);
    let mut publisher = image.share_plans().unwrap();
    publisher.keep_in(PlanDir::open(plans).unwrap());
    (image, publisher)
}

/// Returns the only file with this extension in a directory of at most two files.
fn only_file(plans: &Path, extension: &str) -> Option<PathBuf> {
    let files = fs::read_dir(plans).ok()?;
    let mut files: Vec<_> = files.map(|entry| entry.unwrap().path()).collect();
    assert!(files.len() <= 2, "{files:?}");
    files.retain(|file| file.extension().is_some_and(|end| end == extension));
    assert!(files.len() < 2, "{files:?}");
    files.pop()
}

/// Returns the file of the small files.
fn small_files(plans: &Path) -> PathBuf {
    only_file(plans, "files").unwrap()
}

/// Makes a server keep the plan of path `a`, once it is old enough.
fn keep(dir: &Path, plans: &Path) -> PathBuf {
    loop {
        let (image, mut publisher) = server(dir, plans);
        publish_all(&image, &mut publisher);
        if let Some(file) = only_file(plans, "plan") {
            return file;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
}

/// Returns how often a new server walks path `a`: never, if it has a usable kept plan.
fn walks_of_next(dir: &Path, plans: &Path) -> u64 {
    let (image, mut publisher) = server(dir, plans);
    while publisher.turn(&image) {}
    publish_all(&image, &mut publisher);
    let reader = reader_of(&image, dir);
    for (at, len) in all_used(&rightly_registered(dir)) {
        assert!(read(&reader, at, len) == read(&rightly_registered(dir), at, len));
    }
    assert_eq!(reader.plans_begun(), 0);
    image.plans_begun()
}

#[test]
fn a_kept_plan_equals_a_walked_one_and_is_loaded_in_advance() {
    let (dir, temp) = (full_store(), tempfile::tempdir().unwrap());
    let plans = temp.path().join("plans");
    keep(dir.path(), &plans);
    let (image, mut publisher) = server(dir.path(), &plans);
    while publisher.turn(&image) {}
    let reader = reader_of(&image, dir.path());
    for (at, len) in all_used(&rightly_registered(dir.path())) {
        let right = read(&rightly_registered(dir.path()), at, len);
        assert!(read(&reader, at, len) == right);
    }
    assert_eq!((reader.plans_begun(), image.plans_begun()), (0, 0));
}

#[test]
fn a_damaged_file_is_walked_again_and_replaced() {
    let (dir, temp) = (full_store(), tempfile::tempdir().unwrap());
    let plans = temp.path().join("plans");
    let file = keep(dir.path(), &plans);
    let whole = fs::read(&file).unwrap();
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    for damaged in [&whole[..whole.len() / 2], &flipped, b"", &[0; 300]] {
        fs::write(&file, damaged).unwrap();
        assert_eq!(walks_of_next(dir.path(), &plans), 1);
        assert!(fs::read(&file).unwrap() == whole);
        assert_eq!(walks_of_next(dir.path(), &plans), 0);
    }
}

/// A directory with the same names and sizes.
#[test]
fn a_replaced_path_is_walked_again() {
    let (dir, temp) = (deep_store(), tempfile::tempdir().unwrap());
    let plans = temp.path().join("plans");
    keep(dir.path(), &plans);
    let (path, copy) = (dir.path().join("a"), temp.path().join("copy"));
    let copied = std::process::Command::new("cp")
        .arg("-a")
        .args([&path, &copy])
        .status();
    assert!(copied.unwrap().success());
    fs::remove_dir_all(&path).unwrap();
    fs::rename(&copy, &path).unwrap();
    assert_eq!(walks_of_next(dir.path(), &plans), 1);
}

/// The plan is kept under the right label, but has the wrong length.
#[test]
fn a_plan_of_another_length_than_registered_is_not_used() {
    let (dir, temp) = (deep_store(), tempfile::tempdir().unwrap());
    let plans = temp.path().join("plans");
    keep(dir.path(), &plans);
    let image = registered(dir.path(), nar_size_of(dir.path()) + 8);
    let mut publisher = image.share_plans().unwrap();
    publisher.keep_in(PlanDir::open(&plans).unwrap());
    publish_all(&image, &mut publisher);
    assert!(image.plans.shared().unwrap().is_suspect(0));
}

/// Otherwise every later server would return the same errors.
#[test]
fn a_plan_that_was_found_wrong_is_not_kept() {
    let (dir, temp) = (full_store(), tempfile::tempdir().unwrap());
    let plans = temp.path().join("plans");
    let file = keep(dir.path(), &plans);
    let size = nar_size_of(dir.path());
    let (one, aside) = (
        dir.path().join("a/many/file-of-299"),
        temp.path().join("aside"),
    );
    fs::rename(&one, &aside).unwrap();
    let image = registered(dir.path(), size);
    let mut publisher = image.share_plans().unwrap();
    publisher.keep_in(PlanDir::open(&plans).unwrap());
    while publisher.turn(&image) {}
    let reader = registered(dir.path(), size);
    reader.plans.share(image.plans.shared().unwrap());
    let data = image.space().region(0).data.start;
    let len = BLOCK_LEN_USIZE * 400;
    let at = u64::from(data) * BLOCK_LEN_BYTES;
    assert!(reader.read_exact_at(&mut vec![0; len], at).is_err());
    while publisher.turn(&image) {}
    assert!(!file.exists() && only_file(&plans, "files").is_none());
    // Once per server, however often a guest reads.
    fs::rename(&aside, &one).unwrap();
    let file = keep(dir.path(), &plans);
    image.plans.shared().unwrap().ask(0, Wish::Removal);
    while publisher.turn(&image) {}
    assert!(file.exists());
}

#[test]
fn failed_writes_do_no_harm() {
    let (dir, temp) = (deep_store(), tempfile::tempdir().unwrap());
    let plans = temp.path().join("plans");
    let file = keep(dir.path(), &plans);
    // A directory in its place can be neither read nor replaced.
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    fs::write(file.join("x"), "").unwrap();
    for _ in 0..2 {
        assert_eq!(walks_of_next(dir.path(), &plans), 1);
    }
    assert_eq!(
        only_file(&plans, "plan"),
        Some(file),
        "nothing is left behind"
    );
}

/// Returns whether a new server has all small files without reading one: they are removed before a VM reads.
fn has_small_files(dir: &Path, plans: &Path) -> bool {
    let right = rightly_registered(dir);
    let (at, len) = all_used(&right)[0];
    let right = read(&right, at, len);
    let (image, mut publisher) = server(dir, plans);
    while publisher.turn(&image) {}
    let (one, aside) = (dir.join("a/many/file-of-9"), dir.join("aside"));
    fs::rename(&one, &aside).unwrap();
    let reader = reader_of(&image, dir);
    let mut found = vec![0; len];
    let done = reader.read_exact_at(&mut found, at);
    fs::rename(&aside, &one).unwrap();
    assert!(done.is_err() || found == right);
    done.is_ok()
}

#[test]
fn small_files_that_a_vm_has_read_are_kept() {
    let (dir, temp) = (full_store(), tempfile::tempdir().unwrap());
    let plans = temp.path().join("plans");
    keep(dir.path(), &plans);
    assert!(has_small_files(dir.path(), &plans));
    // Nobody has read a small file.
    fs::remove_dir_all(&plans).unwrap();
    let (image, mut publisher) = server(dir.path(), &plans);
    image.plans.shared().unwrap().ask(0, Wish::Plan);
    while publisher.turn(&image) {}
    assert!(only_file(&plans, "plan").is_some());
    assert_eq!(only_file(&plans, "files"), None);
    assert!(!has_small_files(dir.path(), &plans));
}

#[test]
fn damaged_small_files_are_read_again_and_replaced() {
    let (dir, temp) = (full_store(), tempfile::tempdir().unwrap());
    let plans = temp.path().join("plans");
    let plan = keep(dir.path(), &plans);
    let file = small_files(&plans);
    let whole = fs::read(&file).unwrap();
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    let of_plan = fs::read(&plan).unwrap();
    for damaged in [&whole[..whole.len() / 2], &flipped, b"", &of_plan] {
        fs::write(&file, damaged).unwrap();
        assert!(!has_small_files(dir.path(), &plans));
        assert_eq!(walks_of_next(dir.path(), &plans), 0);
        assert!(fs::read(&file).unwrap() == whole);
        assert!(has_small_files(dir.path(), &plans));
    }
}

/// The checksum does not protect against a faulty writer.
#[test]
fn small_files_of_another_length_are_not_used() {
    let (dir, temp) = (full_store(), tempfile::tempdir().unwrap());
    let plans = temp.path().join("plans");
    keep(dir.path(), &plans);
    for contents in [&b"short"[..], &[9; 1 << 20]] {
        let (image, mut publisher) = server(dir.path(), &plans);
        while publisher.turn(&image) {}
        publisher.keep_as_small_files(&image, contents);
        assert!(!has_small_files(dir.path(), &plans));
        assert_eq!(walks_of_next(dir.path(), &plans), 0);
    }
}

/// Otherwise the next server would not notice the unreadable file.
#[test]
fn small_files_are_kept_only_if_all_can_be_read() {
    let (dir, temp) = (full_store(), tempfile::tempdir().unwrap());
    let plans = temp.path().join("plans");
    keep(dir.path(), &plans);
    fs::remove_file(small_files(&plans)).unwrap();
    let (image, mut publisher) = server(dir.path(), &plans);
    let one = dir.path().join("a/many/file-of-9");
    fs::remove_file(&one).unwrap();
    publish_all(&image, &mut publisher);
    assert_eq!(only_file(&plans, "files"), None);
}
