//! What planning a path costs in system calls, by the kind of its files, counted by strace.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use tempfile::NamedTempFile;

use crate::common::small_store::SmallStore;
use crate::common::tool;

/// Files of each kind, in one directory: their entries fit into one buffer, and so few directories are listed by one thread.
const COUNT: usize = 50;

/// Calls of a walk.
const CALLS: [&str; 5] = ["close", "getdents64", "openat2", "readlinkat", "statx"];

/// Number of calls by name.
type Calls = BTreeMap<String, usize>;

/// Runs `lazystore inspect`, which plans everything in one process.
fn calls_of_inspect(closure: &[&str]) -> Calls {
    let trace = NamedTempFile::new().unwrap();
    let status = Command::new(tool("strace", "strace"))
        .args(["-f", "-e", &format!("trace={}", CALLS.join(","))])
        .args(["-o", trace.path().to_str().unwrap()])
        .args([env!("CARGO_BIN_EXE_lazystore"), "inspect", "--json"])
        .args(closure)
        .output()
        .unwrap();
    assert!(status.status.success(), "{status:?}");
    let text = fs::read_to_string(trace.path()).unwrap();
    let mut calls: Calls = CALLS.map(|call| (call.to_owned(), 0)).into();
    for line in text.lines() {
        let word = line.split_whitespace().nth(1).unwrap_or_default();
        let name = word.split_once('(').map_or(word, |(name, _)| name);
        // With several threads a line may be split in two; the second begins with `<...`.
        if let Some(count) = calls.get_mut(name) {
            *count += 1;
        }
    }
    calls
}

fn file(path: &Path, mode: u32) {
    fs::write(path, "content").unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// A kind of file, and how to create one.
type Kind = (&'static str, fn(&Path));

const KINDS: [Kind; 4] = [
    ("file", |path| file(path, 0o444)),
    ("executable", |path| file(path, 0o555)),
    ("symlink", |path| symlink("../target", path).unwrap()),
    ("directory", |path| fs::create_dir(path).unwrap()),
];

/// Returns the calls for each of [`COUNT`] files, by kind. `closure` returns the arguments for one of the store's paths.
fn calls_per_file(
    closure: impl Fn(&SmallStore, &str) -> Vec<String>,
) -> BTreeMap<&'static str, String> {
    let store = SmallStore::of_small_paths(0);
    let calls = |name: &str| {
        let arguments = closure(&store, name);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        calls_of_inspect(&arguments)
    };
    let dir = |name: &str| store.store().join(name).join("dir");
    fs::create_dir_all(dir("empty")).unwrap();
    let none = calls("empty");
    let mut found = BTreeMap::new();
    for (name, create) in KINDS {
        fs::create_dir_all(dir(name)).unwrap();
        (0..COUNT).for_each(|index| create(&dir(name).join(format!("{index}"))));
        let with = calls(name);
        let each = CALLS.iter().filter_map(|call| {
            let more = with[*call] - none[*call];
            assert_eq!(more % COUNT, 0, "{name}: {call} {with:?} {none:?}");
            (more > 0).then(|| format!("{} {call}", more / COUNT))
        });
        found.insert(name, each.collect::<Vec<_>>().join(", "));
    }
    found
}

#[test]
#[ignore = "needs strace"]
fn a_file_of_a_store_path_costs_one_call_and_a_directory_four() {
    let calls = calls_per_file(|store, name| {
        let list = store.part(&format!("list-of-{name}"), &[name]);
        let mut arguments = store.args();
        arguments[1] = list.to_str().unwrap().to_owned();
        arguments
    });
    assert_eq!(calls["file"], "1 statx");
    assert_eq!(calls["executable"], "1 statx");
    assert_eq!(calls["symlink"], "1 readlinkat");
    assert_eq!(calls["directory"], "1 close, 2 getdents64, 1 openat2");
}

/// A disk of a tree has the host's owners, modes and mtimes, and what is mounted inside is not looked at.
#[test]
#[ignore = "needs strace"]
fn a_tree_keeps_metadata_that_takes_further_calls() {
    let calls = calls_per_file(|store, name| {
        let tree = store.store().join(name);
        vec!["--tree".to_owned(), tree.to_str().unwrap().to_owned()]
    });
    assert_eq!(calls["file"], "1 statx");
    assert_eq!(calls["executable"], "1 statx");
    assert_eq!(calls["symlink"], "1 readlinkat, 1 statx");
    assert_eq!(
        calls["directory"],
        "2 close, 2 getdents64, 2 openat2, 1 statx"
    );
}
