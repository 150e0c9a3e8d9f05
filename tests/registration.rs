//! Registrations written by a real Nix.

use std::fs;
use std::path::Path;
use std::process::Stdio;

use crate::common::nix::{ChrootStore, stdin};
use lazystore::closure::{Closure, Contents, Source, StoreLocation, StorePath};
use sha2::{Digest, Sha256};

/// Loads a closure from a list and a registration with these contents.
fn load(store: &ChrootStore, list: &str, registration: &[u8]) -> Vec<StorePath> {
    let (list_file, registration_file) = (store.path("store-paths"), store.path("registration"));
    fs::write(&list_file, list).unwrap();
    fs::write(&registration_file, registration).unwrap();
    let source = Source::StorePaths {
        list: list_file,
        registration: Some(registration_file),
    };
    let location = StoreLocation {
        store_root: Some(store.root()),
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

/// Size and hash of the NAR that `nix-store --dump` writes for a store path.
fn nar(store: &ChrootStore, name: &str) -> (u64, [u8; 32]) {
    let file = store.root().join("nix/store").join(name);
    let nar = store.nix_store(&["--dump", file.to_str().unwrap()], Stdio::null());
    (nar.len().try_into().unwrap(), Sha256::digest(&nar).into())
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

fn name(store_path: &str) -> &str {
    Path::new(store_path).file_name().unwrap().to_str().unwrap()
}

#[test]
#[ignore = "needs Nix"]
fn the_output_of_dump_db_has_every_size_and_hash() {
    let store = ChrootStore::new();
    let added = ["one", "two", "three"].map(|file| store.add(file, &file.repeat(1000)));
    let paths = load(
        &store,
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
        let (size, hash) = nar(&store, text(&path.name));
        assert_eq!((path.nar_size, path.nar_hash), (Some(size), Some(hash)));
    }
}

#[test]
#[ignore = "needs Nix"]
fn input_and_output_of_load_db_are_read_alike() {
    let store = ChrootStore::new();
    let [one, two] = ["one", "two"].map(|file| store.add(file, file));
    // Format of closureInfo: nix32 after the algorithm's name, references, no deriver.
    let written = format!(
        "{one}\nsha256:1b8m03r63zqhnjf7l5wnldhh7c134ap5vpj0850ymkq1iyzicy5s\n120\n\n2\n{one}\n{two}\n\
         {two}\nsha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n0\n\n0\n"
    );
    fs::write(store.path("closure-info"), &written).unwrap();
    store.nix_store(&["--load-db"], stdin(&store.path("closure-info")));
    let dumped = store.nix_store(&["--dump-db"], Stdio::null());
    assert_ne!(dumped, written.as_bytes());
    let list = format!("{one}\n{two}\n");
    assert_eq!(
        load(&store, &list, &dumped),
        load(&store, &list, written.as_bytes())
    );
}
