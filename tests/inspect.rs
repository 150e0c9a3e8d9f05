//! `inspect` locates what is at each place of a disk. Checked against an independent reader.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;

use crate::common::reader::{now, open};
use crate::common::tree::any_dir;
use crate::common::{cases, memory_dir, nar, store_image, tree_image};
use lazystore::erofs::volume::{Place, nid_offset};
use lazystore::image::Image;
use lazystore::tree::FileKind;
use proptest::prelude::*;

/// The path of every nid according to erofs-rs.
fn nids(image: &Arc<Image>) -> HashMap<u64, Vec<u8>> {
    let fs = open(image);
    let mut found = HashMap::new();
    let mut walk = now(fs.walk_dir("/")).unwrap();
    while let Some(entry) = now(walk.next_entry()) {
        let entry = entry.unwrap();
        let path = entry.dir_entry.path();
        found.insert(entry.dir_entry.nid(), path.as_bytes()[1..].to_vec());
    }
    found
}

/// All spots in the used ranges of the paths. They must be contiguous.
fn spots(image: &Image) -> Vec<(Place, std::ops::Range<u64>)> {
    let mut found = Vec::new();
    let mut walk = |from: u64, to: u64| {
        let mut at = from;
        while at < to {
            let spot = image.locate(at).unwrap();
            assert_eq!(spot.range.start, at, "{spot:?}");
            assert_eq!(image.locate(spot.range.end - 1).unwrap(), spot);
            at = spot.range.end;
            found.push((spot.place, spot.range));
        }
    };
    for (index, region) in (0..).zip(image.space().regions()) {
        let usage = image.usage(index).unwrap();
        for (start, used) in [
            (region.meta.start, usage.meta_blocks),
            (region.data.start, usage.data_blocks),
        ] {
            walk(u64::from(start) * 4096, u64::from(start + used) * 4096);
        }
    }
    found
}

/// The contents of a file, or the target of a symlink, on the host.
fn host_bytes(dir: &Path, path: &[u8], kind: FileKind) -> Vec<u8> {
    use std::os::unix::ffi::OsStrExt;
    let path = dir.join(std::ffi::OsStr::from_bytes(path));
    match kind {
        FileKind::Symlink => fs::read_link(path).unwrap().as_os_str().as_bytes().to_vec(),
        _ => fs::read(path).unwrap(),
    }
}

fn check(image: &Arc<Image>, dir: &Path) {
    let nids = nids(image);
    for (nid, path) in &nids {
        let spot = image.locate_nid(*nid).unwrap();
        assert_eq!(spot.range.start, nid_offset(*nid));
        let Place::Inode(file) = spot.place else {
            panic!("{spot:?}")
        };
        assert_eq!((&file.path, file.nid), (path, *nid));
    }
    let (mut inodes, mut with_bytes) = (0, 0);
    for (place, range) in spots(image) {
        let mut bytes = vec![0; usize::try_from(range.end - range.start).unwrap()];
        image.read_exact_at(&mut bytes, range.start).unwrap();
        match place {
            Place::Inode(file) if file.path.is_empty() => {}
            Place::Inode(file) => {
                inodes += 1;
                assert_eq!(nids[&file.nid], file.path);
            }
            Place::InlineData(file) | Place::Data(file) | Place::Target(file) => {
                with_bytes += 1;
                assert_eq!(bytes, host_bytes(dir, &file.path, file.kind));
            }
            Place::Entries { dir, .. } => assert_eq!(dir.kind, FileKind::Directory),
            Place::Padding(_) | Place::Unused { .. } => {
                assert!(bytes.iter().all(|byte| *byte == 0), "{range:?} is used");
            }
            Place::Superblock => panic!("a superblock at {range:?}"),
        }
    }
    assert_eq!(inodes, nids.len());
    assert_eq!(with_bytes, crate::common::count_with_bytes(dir));
}

proptest! {
    #![proptest_config(cases(24))]

    #[test]
    fn every_block_of_a_store_is_located(tree in any_dir()) {
        let dir = memory_dir();
        tree.write(dir.path());
        let image = store_image(dir.path(), |path| Some(nar::size_bytes(path)));
        check(&Arc::new(image), dir.path());
    }

    #[test]
    fn every_block_of_a_tree_is_located(tree in any_dir()) {
        let dir = memory_dir();
        tree.write(dir.path());
        check(&Arc::new(tree_image(dir.path())), dir.path());
    }
}

/// `lazystore inspect` for the tree `dir`.
fn inspect(dir: &Path, args: &[&str]) -> (Output, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lazystore"));
    command.args(["inspect", "--tree"]).arg(dir).args(args);
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    (output, text)
}

fn fixture() -> tempfile::TempDir {
    let dir = memory_dir();
    fs::create_dir(dir.path().join("sub")).unwrap();
    fs::write(dir.path().join("sub/file"), [1; 10_000]).unwrap();
    dir
}

#[test]
fn the_command_names_a_byte_a_block_and_a_nid() {
    let dir = fixture();
    let image = Arc::new(tree_image(dir.path()));
    let (nid, _) = nids(&image)
        .into_iter()
        .find(|(_, path)| path == b"sub/file")
        .unwrap();
    let data = u64::from(image.space().regions()[0].data.start);
    let file = dir.path().join("sub/file").display().to_string();
    let cases = [
        (
            ["--at", &(data * 4096 + 5000).to_string()],
            vec!["data of", &file, "offset 5000"],
        ),
        (
            ["--block", &(data + 1).to_string()],
            vec!["data of", &file, "offset 4096"],
        ),
        (
            ["--nid", &nid.to_string()],
            vec!["the inode of", &file, "10000 bytes"],
        ),
        (["--at", "1030"], vec!["the superblock"]),
        (
            ["--at", &(data * 4096 + 10_000).to_string()],
            vec!["zeros after the end of", &file],
        ),
        (["--block", &(data + 3).to_string()], vec!["unused"]),
    ];
    for (args, expected) in cases {
        let (output, text) = inspect(dir.path(), &args);
        assert!(output.status.success(), "{args:?}: {output:?}");
        for part in expected {
            assert!(text.contains(part), "{args:?}: {text}");
        }
    }
}

#[test]
fn an_invalid_nid_fails_and_says_what_is_there() {
    let dir = fixture();
    let (output, text) = inspect(dir.path(), &["--nid", "129"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text.starts_with("nid 129 is not an inode"), "{text}");
    let (output, _) = inspect(dir.path(), &["--nid", "18446744073709551615"]);
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("outside the disk"), "{error}");
}

#[test]
fn sizes_in_the_map_add_up() {
    let dir = fixture();
    let (output, text) = inspect(dir.path(), &[]);
    assert!(output.status.success());
    assert!(
        text.contains("uuid      eb176051-bd15-49b7-9e6b-462e0b467019"),
        "{text}"
    );
    assert!(text.contains("1 path, 3 files"), "{text}");
    // The output explains its columns, and sizes have units.
    assert!(text.contains("a bound from the NAR size"), "{text}");
    assert!(text.contains("used, 12.3 kB"), "{text}");
    let (_, json) = inspect(dir.path(), &["--json"]);
    let map: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(map["superblock"]["label"], "nix-store");
    assert_eq!(map["totals"]["data_blocks_used"], 3);
    assert_eq!(map["paths"][0]["files"], 3);
    assert_eq!(map["paths"][0]["exact"], false);
}

#[test]
fn json_and_text_agree_about_a_location() {
    let dir = fixture();
    let (_, json) = inspect(dir.path(), &["--nid", "128", "--json"]);
    let spot: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(spot["kind"], "inode");
    assert_eq!(spot["file"]["path"], dir.path().display().to_string());
    assert_eq!(spot["file"]["type"], "directory");
    assert_eq!((&spot["start"], &spot["at"]), (&spot["at"], &4096.into()));
}

#[test]
fn a_path_that_cannot_be_planned_is_named_in_the_map() {
    let dir = memory_dir();
    let store = dir.path().join("nix/store");
    fs::create_dir_all(store.join("bad")).unwrap();
    for index in 0..500 {
        fs::write(store.join(format!("bad/{index}")), [0; 3000]).unwrap();
    }
    fs::write(store.join("good"), "x").unwrap();
    fs::write(
        dir.path().join("store-paths"),
        "/nix/store/bad\n/nix/store/good\n",
    )
    .unwrap();
    let record = |name: &str, size: u64| {
        format!(
            "/nix/store/{name}\nsha256:{}\n{size}\n\n0\n",
            "0".repeat(64)
        )
    };
    fs::write(
        dir.path().join("registration"),
        record("bad", 200) + &record("good", 120),
    )
    .unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_lazystore"));
    command.current_dir(dir.path());
    command.args(["inspect", "--store-root", ".", "--closure-info", "."]);
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("/nix/store/bad: "), "{text}");
    assert!(text.contains("1 path cannot be planned"), "{text}");
}
