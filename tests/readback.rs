//! Random trees are read back through erofs-rs and compared entry by entry.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;

use crate::common::reader::{Expect, compare, now, open};
use crate::common::tree::{SIZES, Tree, any_dir, contents};
use crate::common::{cases, memory_dir, nar, store_image, tool, tree_image};
use lazystore::closure::{Closure, Source, StoreLocation};
use lazystore::image::{Image, ImageOptions};
use proptest::prelude::*;

proptest! {
    #![proptest_config(cases(48))]

    #[test]
    fn a_tree_reads_back(tree in any_dir()) {
        let dir = memory_dir();
        tree.write(dir.path());
        compare(&Arc::new(tree_image(dir.path())), dir.path(), Expect::Host);
    }

    #[test]
    fn store_paths_of_known_nar_size_read_back(tree in any_dir()) {
        let dir = memory_dir();
        tree.write(dir.path());
        let image = store_image(dir.path(), |path| Some(nar::size_bytes(path)));
        compare(&Arc::new(image), dir.path(), Expect::Nar);
    }

    #[test]
    fn store_paths_of_unknown_nar_size_read_back(tree in any_dir()) {
        let dir = memory_dir();
        tree.write(dir.path());
        compare(&Arc::new(store_image(dir.path(), |_| None)), dir.path(), Expect::Nar);
    }
}

#[test]
fn every_size_around_a_limit_reads_back() {
    let dir = memory_dir();
    for len in SIZES {
        fs::write(dir.path().join(len.to_string()), contents(len, len)).unwrap();
    }
    for len in 1..=4095 {
        symlink("x".repeat(len), dir.path().join(format!("to-{len}"))).unwrap();
    }
    assert_eq!(
        compare(&Arc::new(tree_image(dir.path())), dir.path(), Expect::Host),
        SIZES.len() + 4095
    );
    assert_eq!(
        compare(
            &Arc::new(store_image(dir.path(), |_| None)),
            dir.path(),
            Expect::Nar
        ),
        SIZES.len() + 4095
    );
}

#[test]
fn a_directory_of_100_000_entries_reads_back() {
    let dir = memory_dir();
    let big = dir.path().join("big");
    fs::create_dir(&big).unwrap();
    let first = big.join("entry-000000");
    fs::write(&first, "x").unwrap();
    for index in 1..100_000 {
        // Hard links are created faster than files, and make no difference for a directory. ext4 allows 65,000 of them.
        if index % 60_000 == 0 {
            fs::write(big.join(format!("entry-{index:06}")), "x").unwrap();
        } else {
            let source = big.join(format!("entry-{:06}", index / 60_000 * 60_000));
            fs::hard_link(source, big.join(format!("entry-{index:06}"))).unwrap();
        }
    }
    let image = Arc::new(store_image(dir.path(), |_| None));
    assert_eq!(compare(&image, dir.path(), Expect::Nar), 100_001);
}

#[test]
fn an_empty_directory_reads_back() {
    let dir = memory_dir();
    fs::create_dir_all(dir.path().join("path/empty")).unwrap();
    assert_eq!(
        compare(&Arc::new(tree_image(dir.path())), dir.path(), Expect::Host),
        2
    );
    let nothing = memory_dir();
    assert_eq!(
        compare(
            &Arc::new(tree_image(nothing.path())),
            nothing.path(),
            Expect::Host
        ),
        0
    );
}

#[test]
fn a_root_directory_of_many_blocks_reads_back() {
    let dir = memory_dir();
    for index in 0..3000 {
        let name = format!("{index:032}-package-{}", "n".repeat(index % 150));
        fs::write(dir.path().join(name), contents(index, index)).unwrap();
    }
    let image = store_image(dir.path(), |path| Some(nar::size_bytes(path)));
    assert_eq!(compare(&Arc::new(image), dir.path(), Expect::Nar), 3000);
}

#[test]
fn a_file_over_4_gib_reads_back() {
    use std::os::unix::fs::FileExt;
    let dir = memory_dir();
    let len = 5 << 30;
    let file = fs::File::create(dir.path().join("huge")).unwrap();
    file.set_len(len).unwrap();
    file.write_all_at(b"end", len - 3).unwrap();
    file.write_all_at(b"middle", 4 << 30).unwrap();
    for image in [tree_image(dir.path()), store_image(dir.path(), |_| None)] {
        let fs = open(&Arc::new(image));
        let huge = now(fs.open("/huge")).unwrap();
        assert_eq!(huge.size(), len);
        let mut buf = [0; 6];
        now(huge.read_at(&mut buf, 4 << 30)).unwrap();
        assert_eq!(&buf, b"middle");
        now(huge.read_at(&mut buf, len - 6)).unwrap();
        assert_eq!(&buf, b"\0\0\0end");
    }
}

#[test]
#[ignore = "needs root"]
fn special_files_of_a_tree_read_back() {
    let dir = memory_dir();
    let make = |args: &[&str]| {
        let status = std::process::Command::new(tool("mknod", "coreutils"))
            .current_dir(dir.path())
            .args(args)
            .status();
        assert!(status.unwrap().success(), "mknod {args:?} needs root");
    };
    make(&["fifo", "p"]);
    make(&["char", "c", "10", "229"]);
    make(&["block", "b", "259", "300000"]);
    let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("socket")).unwrap();
    fs::write(dir.path().join("suid"), "").unwrap();
    fs::set_permissions(dir.path().join("suid"), fs::Permissions::from_mode(0o6755)).unwrap();
    std::os::unix::fs::chown(dir.path().join("suid"), Some(70_000), Some(5)).unwrap();
    let image = Arc::new(tree_image(dir.path()));
    assert_eq!(compare(&image, dir.path(), Expect::Host), 5);
    let fs = open(&image);
    let mut devices = Vec::new();
    let mut entries = now(fs.read_dir("/")).unwrap();
    while let Some(entry) = now(entries.next_entry()) {
        devices.extend(entry.unwrap().inode.device());
    }
    assert_eq!(devices, [(259, 300_000), (10, 229)]);
}

#[test]
fn a_special_file_in_a_store_path_is_an_error_that_names_the_path() {
    let dir = memory_dir();
    fs::create_dir(dir.path().join("path")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("path/socket")).unwrap();
    let image = store_image(dir.path(), |_| Some(1000));
    let mut buf = [0; 512];
    let offset = u64::from(image.space().regions()[0].meta.start) * 4096;
    let error = image
        .read_exact_at(&mut buf, offset)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("/path: contains a device, socket or FIFO"),
        "{error}"
    );
}

#[test]
fn a_too_small_nar_size_is_an_error_of_that_path_only() {
    let dir = memory_dir();
    for name in ["a", "b", "c"] {
        fs::create_dir(dir.path().join(name)).unwrap();
        for index in 0..500 {
            fs::write(
                dir.path().join(format!("{name}/file-{index}")),
                contents(index, 2000),
            )
            .unwrap();
        }
    }
    let sizes = |path: &Path| {
        if path.ends_with("b") {
            Some(1000)
        } else {
            Some(nar::size_bytes(path))
        }
    };
    let image = store_image(dir.path(), sizes);
    let mut buf = [0; 4096];
    let outcome: Vec<bool> = image
        .space()
        .regions()
        .iter()
        .map(|region| {
            image
                .read_exact_at(&mut buf, u64::from(region.meta.start) * 4096)
                .is_ok()
        })
        .collect();
    assert_eq!(outcome, [true, false, true]);
}

#[test]
fn the_disk_does_not_depend_on_where_the_store_is() {
    let (one, other) = (tempfile::tempdir().unwrap(), memory_dir());
    for dir in [one.path(), other.path()] {
        let entry = |(index, len): (usize, usize)| {
            (
                index.to_string().into_bytes(),
                Tree::File {
                    len,
                    executable: false,
                },
            )
        };
        let names = Tree::Dir(SIZES.into_iter().enumerate().map(entry).collect());
        names.write(&dir.join("path"));
        fs::write(dir.join("file"), "x").unwrap();
    }
    // File contents depend on the length of their path, so use paths of the same length.
    for index in 0..SIZES.len() {
        let name = format!("path/{index}");
        fs::copy(one.path().join(&name), other.path().join(&name)).unwrap();
    }
    let disks =
        [one.path(), other.path()].map(|dir| store_image(dir, |path| Some(nar::size_bytes(path))));
    let end = disks[0].space().regions().last().unwrap().meta.end;
    let data = disks[0].space().regions()[0].data.start;
    for block in (0..end).chain(data..data + 20) {
        let [a, b] = [0, 1].map(|index| {
            let mut buf = vec![0; 4096];
            disks[index]
                .read_exact_at(&mut buf, u64::from(block) * 4096)
                .unwrap();
            buf
        });
        assert!(a == b, "block {block} differs");
    }
}

/// Used blocks of a store's disk.
fn used_blocks(image: &Image) -> Vec<u32> {
    let regions = image.space().regions();
    let (first, last) = (&regions[0], regions.last().unwrap());
    (0..last.meta.end)
        .chain(first.data.start..last.data.end)
        .collect()
}

proptest! {
    #![proptest_config(cases(12))]

    /// The list is shuffled and has duplicates. The image is created again and read in another order and other steps.
    #[test]
    fn the_disk_does_not_depend_on_the_order_of_the_list(tree in any_dir(), seed in any::<u64>()) {
        let dir = memory_dir();
        tree.write(dir.path());
        let names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        // The format of the list cannot represent a newline.
        prop_assume!(names.iter().all(|name| !name.as_bytes().contains(&b'\n')));
        let shuffled = |seed: u64| {
            let mut list: Vec<_> = names.iter().chain(&names[..names.len() / 2]).collect();
            list.sort_by_key(|name| (seed ^ name.as_bytes().iter().map(|b| u64::from(*b)).sum::<u64>()).wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let lines: Vec<u8> = list.iter().flat_map(|name| [b"/nix/store/", name.as_bytes(), b"\n"].concat()).collect();
            let file = tempfile::NamedTempFile::new().unwrap();
            fs::write(file.path(), lines).unwrap();
            let source = Source::StorePaths { list: file.path().to_owned(), registration: None };
            let closure = Closure::load(&source, &StoreLocation::default()).unwrap();
            Image::new(&Closure { dir: dir.path().to_owned(), ..closure }, &ImageOptions::default()).unwrap()
        };
        let (one, other) = (shuffled(0), shuffled(seed));
        prop_assert_eq!(one.len_bytes(), other.len_bytes());
        let (mut a, mut b) = ([0; 4096], [0; 4096]);
        let blocks = used_blocks(&one);
        for block in blocks.iter().rev() {
            other.read_exact_at(&mut b, u64::from(*block) * 4096).unwrap();
        }
        for block in blocks {
            one.read_exact_at(&mut a, u64::from(block) * 4096).unwrap();
            other.read_exact_at(&mut b, u64::from(block) * 4096).unwrap();
            prop_assert!(a == b, "block {} differs", block);
        }
    }
}

#[test]
fn ids_and_mtime_can_be_set() {
    let dir = memory_dir();
    fs::create_dir(dir.path().join("d")).unwrap();
    fs::write(dir.path().join("d/f"), "x").unwrap();
    let closure = Closure::load(
        &Source::Tree(dir.path().to_owned()),
        &StoreLocation::default(),
    )
    .unwrap();
    let options = ImageOptions {
        uid: Some(100_000),
        gid: Some(7),
        mtime_sec: Some(12345),
        ..ImageOptions::default()
    };
    let fs = open(&Arc::new(Image::new(&closure, &options).unwrap()));
    let mut entries = now(fs.walk_dir("/")).unwrap();
    while let Some(entry) = now(entries.next_entry()) {
        let inode = entry.unwrap().inode;
        assert_eq!(
            (inode.uid(), inode.gid(), inode.modified_unix()),
            (100_000, 7, (12345, 0))
        );
    }
}
