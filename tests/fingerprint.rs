//! The fingerprint of a disk: the same wherever the same bytes are served, and different for every change of a byte.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use crate::binary_cache::{copy, record};
use crate::common::http::HttpServer;
use crate::common::remote::RemoteStore;

const NAMES: [&str; 2] = ["aaa-one", "bbb-two"];

/// A host with a store of two paths and their registration.
struct Host(tempfile::TempDir);

impl Host {
    fn new() -> Self {
        let host = Self(tempfile::tempdir().unwrap());
        for name in NAMES {
            let dir = host.0.path().join("nix/store").join(name);
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("file"), name.repeat(1000)).unwrap();
        }
        host.list(&NAMES);
        host.register([1000, 8000], ["1", "2"]);
        host
    }

    fn list(&self, names: &[&str]) {
        let lines: String = names
            .iter()
            .map(|name| format!("/nix/store/{name}\n"))
            .collect();
        fs::write(self.0.path().join("store-paths"), lines).unwrap();
    }

    fn register(&self, extra: [u64; 2], digits: [&str; 2]) {
        let record = |index: usize| {
            let (name, hash) = (NAMES[index], digits[index].repeat(64));
            format!(
                "/nix/store/{name}\nsha256:{hash}\n{}\n\n0\n",
                8000 + extra[index]
            )
        };
        let text = record(1) + &record(0);
        fs::write(self.0.path().join("registration"), text).unwrap();
    }

    fn run(&self, subcommand: &str, args: &[&str]) -> Output {
        let root = self.0.path().to_str().unwrap();
        lazystore(
            subcommand,
            &[&["--store-root", root], args].concat(),
            self.0.path(),
        )
    }

    /// The fingerprint with the complete registration.
    fn fingerprint(&self, more: &[&str]) -> String {
        let output = self.run("fingerprint", &[&["--closure-info", "."], more].concat());
        assert!(output.stderr.is_empty(), "{output:?}");
        printed(&output)
    }
}

fn lazystore(subcommand: &str, args: &[&str], dir: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lazystore"));
    command.current_dir(dir).arg(subcommand).args(args);
    command.output().unwrap()
}

fn printed(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    let line = text.strip_suffix('\n').unwrap();
    assert!(!line.contains(char::is_whitespace), "{text}");
    line.to_owned()
}

fn stderr_of(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn two_hosts_with_one_closure_agree() {
    let (one, other) = (Host::new(), Host::new());
    other.list(&["bbb-two", "aaa-one", "bbb-two"]);
    assert_eq!(
        one.fingerprint(&[]),
        other.fingerprint(&["--plan-cache", "1"])
    );
    assert_eq!(one.fingerprint(&[]).len(), 32);
}

#[test]
fn every_change_of_a_byte_changes_the_fingerprint() {
    let host = Host::new();
    let registered = ["--with-registration"];
    let mut all = vec![host.fingerprint(&[]), host.fingerprint(&registered)];
    for option in ["--label=x", "--mtime=2", "--uid=1", "--gid=1"] {
        all.push(host.fingerprint(&[option]));
    }
    all.push(host.fingerprint(&["--uuid", "eb176051-bd15-49b7-9e6b-462e0b467010"]));
    host.register([1000, 8000], ["1", "3"]);
    all.push(host.fingerprint(&[]));
    host.register([1000, 80_000], ["1", "2"]);
    all.push(host.fingerprint(&[]));
    host.register([1000, 8000], ["1", "2"]);
    host.list(&["aaa-one"]);
    all.push(host.fingerprint(&[]));
    let count = all.len();
    all.sort();
    all.dedup();
    assert_eq!(
        all.len(),
        count,
        "two disks that differ have one fingerprint"
    );
}

#[test]
fn without_hashes_the_fingerprint_is_weak_and_a_warning_says_so() {
    let (one, other) = (Host::new(), Host::new());
    let args = ["--store-paths", "store-paths"];
    let output = one.run("fingerprint", &args);
    let weak = printed(&output);
    assert!(weak.starts_with("weak-"), "{weak}");
    assert!(
        stderr_of(&output).contains("for 2 of 2 paths"),
        "{output:?}"
    );
    assert_eq!(printed(&other.run("fingerprint", &args)), weak);
    // Only the size distinguishes it from another disk.
    let file = other.0.path().join("nix/store/bbb-two/file");
    fs::write(file, "x".repeat(20_000)).unwrap();
    assert_ne!(printed(&other.run("fingerprint", &args)), weak);
    assert_ne!(one.fingerprint(&[]), weak);
    let output = lazystore("fingerprint", &["--tree", "."], one.0.path());
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr_of(&output).contains("a tree has no fingerprint"),
        "{output:?}"
    );
}

#[test]
fn a_disk_with_another_fingerprint_is_refused() {
    let host = Host::new();
    let expected = host.fingerprint(&[]);
    let serve = |more: &[&str]| {
        let args = [
            "--closure-info",
            ".",
            "--vhost-user",
            "socket",
            "--expect",
            &expected,
        ];
        host.run("serve", &[&args, more].concat())
    };
    let output = serve(&["--mtime=2"]);
    assert_eq!(output.status.code(), Some(1));
    let found = host.fingerprint(&["--mtime=2"]);
    let sentence = format!("lazystore: the disk has the fingerprint {found} and not {expected}: ");
    assert!(stderr_of(&output).starts_with(&sentence), "{output:?}");
    assert_eq!(stderr_of(&output).lines().count(), 1, "{output:?}");
    assert!(!host.0.path().join("socket").exists());
    for wrong in ["", "weak-", "x", &expected[1..]] {
        let output = host.run("inspect", &["--closure-info", ".", "--expect", wrong]);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
    }
    assert_eq!(host.fingerprint(&["--expect", &expected]), expected);
}

/// With a binary cache the layout differs, and does not depend on which paths are on this host.
#[test]
fn a_binary_cache_changes_the_fingerprint_wherever_the_paths_are() {
    let store = RemoteStore::new(&["top", "middle", "bottom"]);
    let http = HttpServer::start(&store.cache.dir);
    let lines = store.paths.iter().map(|added| added.path() + "\n");
    fs::write(store.root().join("store-paths"), lines.collect::<String>()).unwrap();
    let records: String = store.paths.iter().map(record).collect();
    fs::write(store.root().join("registration"), records).unwrap();
    let remote = store.args(&[&http.url()]);
    let fingerprint = |more: &[String]| {
        let args = ["--closure-info", "."].into_iter();
        let args: Vec<&str> = args.chain(more.iter().map(String::as_str)).collect();
        printed(&lazystore("fingerprint", &args, &store.root()))
    };
    let none_here = fingerprint(&remote[1..]);
    let from_narinfos = store.args(&[&http.url()]);
    let from_narinfos: Vec<&str> = from_narinfos.iter().map(String::as_str).collect();
    let output = lazystore("fingerprint", &from_narinfos, &store.root());
    assert_eq!(printed(&output), none_here);
    for path in &store.paths {
        let to = store.root().join("nix/store").join(&path.name);
        copy(&store.trees().join(&path.name), &to);
        assert_eq!(fingerprint(&remote[1..]), none_here);
    }
    let root = ["--store-root".to_owned(), ".".to_owned()];
    assert_ne!(fingerprint(&root), none_here);
}
