//! The closure as a real Nix registers it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "clippy.toml allows both in tests, but clippy does not see that helpers here are part of one"
)]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use lazystore::closure::{Closure, Contents, Source, StoreLocation, StorePath};
use sha2::{Digest, Sha256};

/// A store of its own in a temporary directory, made and asked by `nix-store`.
struct ChrootStore {
    dir: tempfile::TempDir,
}

impl ChrootStore {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("home")).unwrap();
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What `nix-store` prints when it is run on this store with `args` and the file `stdin`.
    fn nix_store(&self, args: &[&str], stdin: Stdio) -> Vec<u8> {
        let output = Command::new("nix-store")
            .arg("--store")
            .arg(self.path("root"))
            .args(args)
            .env("HOME", self.path("home"))
            .env("NIX_CONFIG", "build-users-group =\nsandbox = false")
            .stdin(stdin)
            .output()
            .expect("nix-store cannot be run: install the Debian package nix-bin");
        assert!(
            output.status.success(),
            "nix-store {args:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        output.stdout
    }

    /// Adds a file with `text` to the store: its logical store path.
    fn add(&self, name: &str, text: &str) -> String {
        fs::write(self.path(name), text).unwrap();
        let added = self.nix_store(&["--add", self.path(name).to_str().unwrap()], Stdio::null());
        String::from_utf8(added).unwrap().trim_end().to_owned()
    }

    /// Loads the closure from two files with these contents.
    fn load(&self, list: &str, registration: &[u8]) -> Vec<StorePath> {
        let (list_file, registration_file) = (self.path("store-paths"), self.path("registration"));
        fs::write(&list_file, list).unwrap();
        fs::write(&registration_file, registration).unwrap();
        let source = Source::StorePaths {
            list: list_file,
            registration: Some(registration_file),
        };
        let location = StoreLocation {
            store_root: Some(self.path("root")),
            ..Default::default()
        };
        let closure = Closure::load(&source, &location).unwrap();
        let Contents::StorePaths(paths) = closure.contents else {
            panic!("not a list: {closure:?}")
        };
        assert!(
            paths
                .iter()
                .all(|path| closure.dir.join(text(&path.name)).is_file())
        );
        paths
    }

    /// Size and hash of the NAR that `nix-store --dump` makes of a store path.
    fn nar(&self, name: &str) -> (u64, [u8; 32]) {
        let file = self.path("root/nix/store").join(name);
        let nar = self.nix_store(&["--dump", file.to_str().unwrap()], Stdio::null());
        (nar.len().try_into().unwrap(), Sha256::digest(&nar).into())
    }
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

fn name(store_path: &str) -> &str {
    Path::new(store_path).file_name().unwrap().to_str().unwrap()
}

#[test]
fn what_dump_db_prints_gives_every_size_and_hash() {
    let store = ChrootStore::new();
    let added = ["one", "two", "three"].map(|file| store.add(file, &file.repeat(1000)));
    let paths = store.load(
        &added[..2].join("\n"),
        &store.nix_store(&["--dump-db"], Stdio::null()),
    );
    let mut expected = [name(&added[0]), name(&added[1])];
    expected.sort_unstable();
    assert_eq!(
        paths
            .iter()
            .map(|path| text(&path.name))
            .collect::<Vec<_>>(),
        expected
    );
    for path in &paths {
        let (size, hash) = store.nar(text(&path.name));
        assert_eq!((path.nar_size, path.nar_hash), (Some(size), Some(hash)));
    }
}

#[test]
fn what_load_db_accepts_means_the_same_here() {
    let store = ChrootStore::new();
    let [one, two] = ["one", "two"].map(|file| store.add(file, file));
    // As closureInfo writes it: nix32 after the algorithm's name, references, no deriver.
    let written = format!(
        "{one}\nsha256:1b8m03r63zqhnjf7l5wnldhh7c134ap5vpj0850ymkq1iyzicy5s\n120\n\n2\n{one}\n{two}\n\
         {two}\nsha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n0\n\n0\n"
    );
    fs::write(store.path("closure-info"), &written).unwrap();
    store.nix_store(
        &["--load-db"],
        File::open(store.path("closure-info")).unwrap().into(),
    );
    let dumped = store.nix_store(&["--dump-db"], Stdio::null());
    assert_ne!(dumped, written.as_bytes());
    let list = format!("{one}\n{two}\n");
    assert_eq!(
        store.load(&list, &dumped),
        store.load(&list, written.as_bytes())
    );
}
