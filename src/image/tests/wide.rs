//! Trees with so many directories that several are listed in parallel.

use super::super::plans::Need;
use super::*;

const DIRS: usize = 320;

/// Returns a tree of [`DIRS`] directories with one file each. The last ones are listed in parallel.
fn wide_tree() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for number in 0..DIRS {
        let inside = dir.path().join(format!("{number:03}"));
        fs::create_dir_all(&inside).unwrap();
        fs::write(inside.join(format!("file{number}")), vec![7; 3000]).unwrap();
    }
    dir
}

#[test]
fn directories_listed_in_parallel_are_planned_in_the_same_order() {
    let dir = wide_tree();
    let image = tree_image(dir.path());
    let one_by_one = walk::plan_whole(&image.tree(0), image.plans.attributes(), None).unwrap();
    let digest = image
        .with_plan(IoMode::Blocking, 0, Need::All, |plan| plan.digest(u32::MAX))
        .unwrap();
    assert_eq!(digest, one_by_one.digest(u32::MAX));
}

/// The directory is listed in parallel with others before it.
#[test]
fn only_a_missing_directory_itself_fails() {
    let dir = wide_tree();
    let image = tree_image(dir.path());
    let data = u64::from(image.space().regions()[0].data.start) * BLOCK_LEN_BYTES;
    let block = |number: usize| data + number as u64 * BLOCK_LEN_BYTES;
    // The top directory and its first subdirectories have been listed.
    assert_eq!(read(&image, block(0), 1), [7]);
    let last = dir.path().join(format!("{:03}", DIRS - 1));
    let elsewhere = tempfile::tempdir().unwrap();
    let aside = elsewhere.path().join("aside");
    fs::rename(&last, &aside).unwrap();
    for number in 0..DIRS - 1 {
        assert_eq!(read(&image, block(number), 1), [7], "{number}");
    }
    let error = image
        .read_exact_at(&mut [0; 1], block(DIRS - 1))
        .unwrap_err();
    assert!(error.to_string().contains("/319"), "{error}");
    fs::rename(&aside, &last).unwrap();
    assert_eq!(read(&image, block(DIRS - 1), 1), [7]);
}
