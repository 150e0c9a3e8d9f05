//! A disk contains only the closure. Every byte is checked.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime};

use lazystore::closure::{Closure, Source, StoreLocation};
use lazystore::image::{Image, ImageOptions, Piece, ReadError};
use lazystore::source::IoMode;
use tempfile::TempDir;

use crate::common::nar;

/// Marker in the names and contents of files that must not be on the disk.
const SECRET: &[u8] = b"unreferenced-and-secret";
/// Marker in the names and contents of files that must be on the disk.
const PUBLIC: &[u8] = b"referenced-and-public";

/// The image of some paths of the chroot store `root`, with NAR sizes if `registered`.
fn disk(root: &Path, names: &[&str], registered: bool) -> Image {
    let list = root.join("list");
    let registration = root.join("registration");
    let paths: Vec<String> = names
        .iter()
        .map(|name| format!("/nix/store/{name}"))
        .collect();
    fs::write(&list, paths.join("\n") + "\n").unwrap();
    let entry = |path: &String| {
        let size = nar::size_bytes(&root.join(path.trim_start_matches('/')));
        let hash = "0".repeat(64);
        format!("{path}\nsha256:{hash}\n{size}\n\n0\n")
    };
    fs::write(&registration, paths.iter().map(entry).collect::<String>()).unwrap();
    let source = Source::StorePaths {
        list,
        registration: registered.then_some(registration),
    };
    let location = StoreLocation {
        store_root: Some(root.to_owned()),
        ..StoreLocation::default()
    };
    let closure = Closure::load(&source, &location).unwrap();
    Image::new(&closure, &ImageOptions::default()).unwrap()
}

/// All bytes of the disk. Of holes, only the length is kept.
fn bytes(image: &Image) -> Vec<u8> {
    let (mut bytes, mut zeros, mut len) = (Vec::new(), 0, 0);
    let mut sink = |piece: Piece<'_>| -> Result<(), ReadError> {
        if let Piece::Zeros { len_bytes } = piece {
            zeros += len_bytes as u64;
            len += len_bytes as u64;
            return Ok(());
        }
        bytes.extend(std::mem::take(&mut zeros).to_le_bytes());
        let start = bytes.len();
        match piece {
            Piece::Metadata(metadata) => bytes.extend(metadata),
            Piece::File {
                file,
                offset,
                len_bytes,
            } => {
                bytes.resize(start + len_bytes, 0);
                let mut to = (&mut bytes[start..]).into();
                file.read_into(&mut to, offset, len_bytes as u64, IoMode::Blocking)?;
            }
            Piece::Zeros { .. } => {}
        }
        len += (bytes.len() - start) as u64;
        Ok(())
    };
    image.visit(0, image.len_bytes(), &mut sink).unwrap();
    assert_eq!(len, image.len_bytes());
    bytes
}

fn occurrences(bytes: &[u8], wanted: &[u8]) -> usize {
    let windows = bytes.windows(wanted.len());
    windows.filter(|window| *window == wanted).count()
}

/// Creates a store path with `marker` in all names, contents and targets.
fn write_path(store: &Path, prefix: &str, marker: &[u8]) -> String {
    let marker = str::from_utf8(marker).unwrap();
    let name = format!("{prefix}-{marker}");
    let path = store.join(&name);
    let dir = path.join(format!("{marker}-dir"));
    fs::create_dir_all(&dir).unwrap();
    for len in [1, 200, 5000] {
        let contents = marker.repeat(len);
        fs::write(dir.join(format!("{marker}-{len}")), contents).unwrap();
    }
    symlink(format!("/{marker}"), path.join(format!("{marker}-link"))).unwrap();
    name
}

#[test]
fn only_the_closure_is_on_the_disk() {
    let root = tempfile::tempdir().unwrap();
    let store = root.path().join("nix/store");
    let names = [
        write_path(&store, "bbb", PUBLIC),
        write_path(&store, "ddd", PUBLIC),
    ];
    // Other paths before, between and after them, and a symlink that leads outside.
    for prefix in ["aaa", "ccc", "eee", "bbb0"] {
        let secret = write_path(&store, prefix, SECRET);
        let link = store.join(&names[0]).join(format!("to-{prefix}"));
        symlink(format!("../{}", &secret[..3]), link).unwrap();
    }
    fs::write(root.path().join("nix/outside"), SECRET).unwrap();
    symlink("../../outside", store.join(&names[1]).join("up")).unwrap();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    for registered in [false, true] {
        let bytes = bytes(&disk(root.path(), &names, registered));
        // Two paths, each with three files with that number of markers.
        assert!(occurrences(&bytes, PUBLIC) > 2 * 5201);
        assert_eq!(occurrences(&bytes, SECRET), 0);
    }
}

/// A store whose metadata on the host depend on `odd`.
fn write_host(root: &Path, odd: bool) -> [String; 2] {
    let store = root.join("nix/store");
    let names = [
        write_path(&store, "bbb", PUBLIC),
        write_path(&store, "ddd", PUBLIC),
    ];
    let dirs = names.each_ref().map(|name| store.join(name));
    let twins = [dirs[0].join("twin"), dirs[1].join("twin")];
    fs::write(&twins[0], "the same in both").unwrap();
    if odd {
        // Inode numbers differ, too.
        fs::hard_link(&twins[0], &twins[1]).unwrap();
        let time = SystemTime::UNIX_EPOCH + Duration::new(1_234_567_890, 123_456_789);
        for path in [&dirs[0], &dirs[1], &twins[0]] {
            chown(path, Some(54_321), Some(43_210)).unwrap();
            fs::File::open(path).unwrap().set_modified(time).unwrap();
        }
        assert_eq!(fs::metadata(&twins[0]).unwrap().nlink(), 2);
    } else {
        fs::write(&twins[1], "the same in both").unwrap();
    }
    names
}

#[test]
#[ignore = "needs root"]
fn attributes_of_the_host_are_not_on_the_disk() {
    let disk_dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    // A tmpfs on every Linux system (shm_overview(7)).
    let memory_dir = TempDir::new_in("/dev/shm").unwrap();
    let device = |dir: &TempDir| fs::metadata(dir.path()).unwrap().dev();
    assert_ne!(device(&disk_dir), device(&memory_dir));
    let names = write_host(disk_dir.path(), false);
    assert_eq!(write_host(memory_dir.path(), true), names);
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    for registered in [false, true] {
        let here = bytes(&disk(disk_dir.path(), &names, registered));
        let there = bytes(&disk(memory_dir.path(), &names, registered));
        assert!(here == there, "registered: {registered}");
        for number in [54_321_u32, 43_210, 1_234_567_890, 123_456_789] {
            assert_eq!(occurrences(&there, &number.to_le_bytes()), 0, "{number}");
        }
    }
}
