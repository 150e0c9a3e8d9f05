//! `verify` finds every difference, names its path, and has no false positives.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::num::NonZeroUsize;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Output};

use crate::common::tree::any_dir;
use crate::common::{cases, memory_dir, nar};
use lazystore::closure::{Closure, Contents, StorePath};
use lazystore::image::{Image, ImageOptions};
use lazystore::verify::{Difference, Report, Side, VerifyOptions, verify};
use proptest::prelude::*;
use sha2::{Digest, Sha256};

fn store_path(dir: &Path, name: &OsStr) -> StorePath {
    let mut bytes = Vec::new();
    nar::write(&dir.join(name), &mut bytes).unwrap();
    StorePath {
        name: name.as_bytes().into(),
        nar_size: Some(bytes.len() as u64),
        nar_hash: Some(Sha256::digest(&bytes).into()),
    }
}

/// All entries of `dir` as store paths with the correct registration.
fn closure(dir: &Path) -> Closure {
    let names: BTreeSet<_> = fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    Closure {
        dir: dir.to_owned(),
        store_dir: "/nix/store".into(),
        contents: Contents::StorePaths(names.iter().map(|name| store_path(dir, name)).collect()),
    }
}

fn tree(dir: &Path) -> Closure {
    Closure {
        dir: dir.to_owned(),
        store_dir: dir.to_owned(),
        contents: Contents::Tree,
    }
}

fn paths(closure: &mut Closure) -> &mut Vec<StorePath> {
    match &mut closure.contents {
        Contents::StorePaths(paths) => paths,
        Contents::Tree => panic!("a tree has no paths"),
    }
}

fn image(closure: &Closure) -> Image {
    Image::new(closure, &ImageOptions::default()).unwrap()
}

fn report(image: &Image, closure: &Closure, options: &VerifyOptions) -> Report {
    verify(image, closure, &ImageOptions::default(), options, &|_| {}).unwrap()
}

/// Verifies, with the defaults, the disk of `closure` against itself.
fn verified(closure: &Closure) -> Report {
    report(&image(closure), closure, &VerifyOptions::default())
}

/// A store of three paths.
fn small_store() -> tempfile::TempDir {
    let dir = memory_dir();
    for name in ["aaa", "bbb", "ccc"] {
        fs::create_dir_all(dir.path().join(name).join("sub")).unwrap();
        fs::write(dir.path().join(name).join("big"), [1; 300_000]).unwrap();
        fs::write(dir.path().join(name).join("sub/small"), name).unwrap();
        symlink("big", dir.path().join(name).join("link")).unwrap();
    }
    dir
}

/// Compares the disk of a store with another store, which `change` has changed. Returns all differences as text.
fn changed(change: impl Fn(&Path)) -> Vec<String> {
    let (one, other) = (small_store(), small_store());
    let disk = image(&closure(one.path()));
    let mut host = closure(one.path());
    host.dir = other.path().to_owned();
    change(other.path());
    let report = report(&disk, &host, &VerifyOptions::default());
    let lines = report.faulty.iter().flat_map(|path| {
        let name = String::from_utf8_lossy(&path.name).into_owned();
        path.differences.iter().map(move |(file, difference)| {
            format!("{name} {} {difference}", String::from_utf8_lossy(file))
        })
    });
    lines.collect()
}

proptest! {
    #![proptest_config(cases(32))]

    #[test]
    fn random_stores_match_their_registration(tree in any_dir()) {
        let dir = memory_dir();
        tree.write(dir.path());
        let closure = closure(dir.path());
        let report = verified(&closure);
        prop_assert_eq!(&report.faulty, &[]);
        prop_assert_eq!(report.tally.nar_hashes, report.paths as u64);
        prop_assert_eq!(report.tally.files, crate::common::count(dir.path()));
    }

    #[test]
    fn random_trees_match_the_host(random in any_dir()) {
        let dir = memory_dir();
        random.write(dir.path());
        let report = verified(&tree(dir.path()));
        prop_assert_eq!(&report.faulty, &[]);
        prop_assert_eq!(report.tally.files, crate::common::count(dir.path()));
    }
}

#[test]
fn a_disk_has_no_difference_from_itself() {
    assert_eq!(changed(|_| {}), Vec::<String>::new());
}

#[test]
fn every_kind_of_difference_is_reported() {
    type Case = (fn(&Path), &'static [&'static str]);
    let changes: [Case; 8] = [
        (
            |dir| {
                let mut bytes = vec![1; 300_000];
                bytes[200_001] = 2;
                fs::write(dir.join("bbb/big"), bytes).unwrap();
            },
            &["bbb big differs from the host at byte 200001"],
        ),
        (
            |dir| fs::write(dir.join("bbb/big"), [1; 299_999]).unwrap(),
            &["bbb big its size is 300000 on the disk and should be 299999"],
        ),
        (
            |dir| fs::write(dir.join("ccc/sub/new"), "").unwrap(),
            &["ccc sub/new is not on the disk"],
        ),
        (
            |dir| fs::remove_file(dir.join("aaa/sub/small")).unwrap(),
            &["aaa sub/small is not on the host"],
        ),
        (
            |dir| {
                let mode = fs::Permissions::from_mode(0o755);
                fs::set_permissions(dir.join("aaa/big"), mode).unwrap();
            },
            &["aaa big its mode is 0444 on the disk and should be 0555"],
        ),
        (
            |dir| {
                fs::remove_file(dir.join("aaa/link")).unwrap();
                symlink("bag", dir.join("aaa/link")).unwrap();
            },
            &["aaa link its target is big on the disk and should be bag"],
        ),
        (
            |dir| {
                fs::remove_dir_all(dir.join("aaa/sub")).unwrap();
                fs::write(dir.join("aaa/sub"), "").unwrap();
            },
            &["aaa sub its type is directory on the disk and should be regular file"],
        ),
        (
            |dir| fs::remove_dir_all(dir.join("aaa")).unwrap(),
            &["aaa  is not on the host"],
        ),
    ];
    for (change, expected) in changes {
        assert_eq!(changed(change), expected);
    }
}

#[test]
fn a_byte_changed_since_registration_changes_only_the_hash() {
    let dir = small_store();
    let closure = closure(dir.path());
    fs::write(dir.path().join("bbb/sub/small"), "bbB").unwrap();
    let report = verified(&closure);
    let [path] = &report.faulty[..] else {
        panic!("{report:?}")
    };
    assert_eq!(path.name, b"bbb");
    assert!(
        matches!(path.differences[..], [(_, Difference::NarHash { .. })]),
        "{path:?}"
    );
    assert_eq!(report.tally.nar_hashes, 2);
    let no_hash = VerifyOptions {
        hash: false,
        ..VerifyOptions::default()
    };
    assert!(self::report(&image(&closure), &closure, &no_hash).is_clean());
}

#[test]
fn a_file_changed_since_planning_cannot_be_read() {
    let dir = small_store();
    let closure = closure(dir.path());
    let image = image(&closure);
    image.usage(0).unwrap();
    fs::write(dir.path().join("aaa/big"), [1; 300_001]).unwrap();
    let report = report(&image, &closure, &VerifyOptions::default());
    let [path] = &report.faulty[..] else {
        panic!("{report:?}")
    };
    assert_eq!(path.name, b"aaa");
    let unreadable = path
        .differences
        .iter()
        .find_map(|(file, difference)| match difference {
            Difference::Unreadable {
                side: Side::Disk,
                error,
            } => Some((file, error)),
            _ => None,
        });
    let (file, error) = unreadable.unwrap();
    assert_eq!(file, b"big");
    assert!(error.contains("changed while it was served"), "{error}");
}

#[test]
fn a_wrong_registration_is_reported_with_its_path() {
    let dir = small_store();
    let mut wrong_hash = closure(dir.path());
    paths(&mut wrong_hash)[1].nar_hash = Some([7; 32]);
    let mut off_by_eight = closure(dir.path());
    paths(&mut off_by_eight)[1].nar_size = off_by_eight_size(dir.path());
    let mut too_small = closure(dir.path());
    paths(&mut too_small)[1].nar_size = Some(100);
    for (closure, expected) in [
        (wrong_hash, "its NAR hash is sha256:"),
        (off_by_eight, "are registered"),
        (
            too_small,
            "needs more blocks than its registered NAR size allows",
        ),
    ] {
        let report = verified(&closure);
        let [path] = &report.faulty[..] else {
            panic!("{report:?}")
        };
        assert_eq!(path.name, b"bbb");
        let text: Vec<_> = path
            .differences
            .iter()
            .map(|(_, d)| d.to_string())
            .collect();
        assert!(text.iter().any(|text| text.contains(expected)), "{text:?}");
        assert_eq!(report.tally.nar_hashes, 2);
    }
}

fn off_by_eight_size(dir: &Path) -> Option<u64> {
    Some(nar::size_bytes(&dir.join("bbb")) + 8)
}

#[test]
fn missing_and_additional_paths_are_reported() {
    let dir = small_store();
    let (mut fewer, all) = (closure(dir.path()), closure(dir.path()));
    paths(&mut fewer).remove(0);
    let options = VerifyOptions::default();
    for (disk, host, side) in [(&fewer, &all, Side::Disk), (&all, &fewer, Side::Host)] {
        let report = report(&image(disk), host, &options);
        let [path] = &report.faulty[..] else {
            panic!("{report:?}")
        };
        assert_eq!(path.name, b"aaa");
        assert_eq!(path.differences, [(Vec::new(), Difference::Missing(side))]);
    }
}

#[test]
fn all_differences_are_counted_and_the_first_ones_kept() {
    let (one, other) = (memory_dir(), memory_dir());
    for dir in [&one, &other] {
        fs::create_dir(dir.path().join("path")).unwrap();
    }
    for index in 0..100 {
        fs::write(other.path().join(format!("path/{index:03}")), "").unwrap();
    }
    let (disk, mut host) = (image(&closure(one.path())), closure(one.path()));
    host.dir = other.path().to_owned();
    let report = report(&disk, &host, &VerifyOptions::default());
    assert_eq!(report.faulty[0].count, 100);
    assert_eq!(report.faulty[0].differences.len(), 10);
    assert_eq!(report.faulty[0].differences[9].0, b"009");
}

#[test]
fn a_sample_has_the_requested_number_of_paths() {
    let dir = small_store();
    let closure = closure(dir.path());
    let sample = VerifyOptions {
        sample: NonZeroUsize::new(2),
        ..VerifyOptions::default()
    };
    let report = report(&image(&closure), &closure, &sample);
    assert_eq!((report.paths, report.tally.nar_hashes), (2, 2));
}

#[test]
#[ignore = "needs root"]
fn attributes_that_only_trees_have_are_compared() {
    let dir = memory_dir();
    let at = |name: &str| dir.path().join(name);
    let mknod = |args: &[&str]| {
        let status = Command::new("mknod")
            .current_dir(dir.path())
            .args(args)
            .status();
        assert!(status.unwrap().success(), "mknod {args:?} needs root");
    };
    mknod(&["pipe", "p"]);
    mknod(&["char", "c", "10", "229"]);
    mknod(&["block", "b", "259", "300000"]);
    fs::write(at("suid"), "x").unwrap();
    std::os::unix::fs::chown(at("suid"), Some(70_000), Some(5)).unwrap();
    fs::set_permissions(at("suid"), fs::Permissions::from_mode(0o6755)).unwrap();
    let mut deep = dir.path().to_owned();
    let name = "d".repeat(20);
    for _ in 0..150 {
        deep.push(&name);
    }
    fs::create_dir_all(&deep).unwrap();
    let report = verified(&tree(dir.path()));
    assert_eq!(report.faulty, []);
    assert_eq!(report.tally.files, 154);
}

/// `lazystore verify` for the store in `dir`.
fn command(dir: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lazystore"));
    command.current_dir(dir);
    command.args(["verify", "--store-root", ".", "--closure-info", "."]);
    command.args(args).output().unwrap()
}

#[test]
fn the_command_prints_differences_and_exits_accordingly() {
    let dir = memory_dir();
    let store = dir.path().join("nix/store");
    fs::create_dir_all(store.join("aaa-one/bin")).unwrap();
    fs::write(store.join("aaa-one/bin/tool"), "tool").unwrap();
    fs::write(store.join("bbb-two"), [5; 9000]).unwrap();
    let (mut list, mut registration) = (String::new(), String::new());
    for path in paths(&mut closure(&store)) {
        let name = String::from_utf8_lossy(&path.name).into_owned();
        let hash: String = path
            .nar_hash
            .unwrap()
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect();
        let size = path.nar_size.unwrap();
        list += &format!("/nix/store/{name}\n");
        registration += &format!("/nix/store/{name}\nsha256:{hash}\n{size}\n\n0\n");
    }
    fs::write(dir.path().join("store-paths"), list).unwrap();
    fs::write(dir.path().join("registration"), registration).unwrap();

    let output = command(dir.path(), &[]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.contains("2 paths, 4 files, 9.0 kB in "), "{text}");
    assert!(
        text.contains("2 NAR hashes as registered\nno differences"),
        "{text}"
    );
    assert!(output.stderr.is_empty());

    fs::write(store.join("aaa-one/bin/tool"), "tOol").unwrap();
    let output = command(dir.path(), &[]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(
        text.starts_with("/nix/store/aaa-one\n  its NAR hash is sha256:"),
        "{text}"
    );
    assert!(text.ends_with("1 path differs\n"), "{text}");

    let output = command(dir.path(), &["--json"]);
    assert_eq!(output.status.code(), Some(1));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&report["is_clean"], &report["paths"]),
        (&false.into(), &2.into())
    );
    assert_eq!(
        (&report["files"], &report["bytes"]),
        (&4.into(), &9004.into())
    );
    let faulty = &report["faulty"][0];
    assert_eq!(
        (&faulty["path"], &faulty["count"]),
        (&"/nix/store/aaa-one".into(), &1.into())
    );
    let difference = faulty["differences"][0]["difference"].as_str().unwrap();
    assert!(
        difference.starts_with("its NAR hash is sha256:"),
        "{report}"
    );
}
