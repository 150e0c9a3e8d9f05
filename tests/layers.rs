//! Data flows one way: a module uses only modules to its left.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::path::{Path, PathBuf};

/// From left to right; `erofs` has an order of its own inside.
const LAYERS: [&str; 10] = [
    "process", "store", "closure", "erofs", "image", "verify", "sandbox", "device", "server", "cli",
];
const EROFS_LAYERS: [&str; 4] = ["format", "dirent", "layout", "encode"];

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Names right behind `prefix` in `text`.
fn uses<'a>(text: &'a str, prefix: &'a str) -> impl Iterator<Item = &'a str> {
    let name = |rest: &'a str| {
        rest.split(|c: char| !c.is_alphanumeric() && c != '_')
            .next()
            .unwrap()
    };
    text.match_indices(prefix)
        .map(move |(at, _)| name(&text[at + prefix.len()..]))
}

/// Uses in `dir/<layer>` of what stands further right.
fn violations(root: &Path, prefix: &str, layers: &[&str]) -> Vec<String> {
    let mut files = Vec::new();
    sources(root, &mut files);
    let mut wrong = Vec::new();
    for file in files {
        // Tests may look from all sides.
        if file.ends_with("tests.rs") || file.ends_with("testing.rs") {
            continue;
        }
        let inside = file.strip_prefix(root).unwrap().with_extension("");
        let first = inside.iter().next().unwrap().to_str().unwrap();
        let Some(own) = layers.iter().position(|layer| *layer == first) else {
            continue;
        };
        let text = fs::read_to_string(&file).unwrap();
        let right = uses(&text, prefix).filter(|name| layers[own + 1..].contains(name));
        wrong.extend(right.map(|name| format!("{} uses {name}", file.display())));
    }
    wrong
}

fn src() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

#[test]
fn no_module_uses_what_stands_to_its_right() {
    assert_eq!(violations(&src(), "crate::", &LAYERS), Vec::<String>::new());
    assert_eq!(
        violations(&src().join("erofs"), "erofs::", &EROFS_LAYERS),
        Vec::<String>::new()
    );
    assert_eq!(
        violations(&src().join("erofs"), "super::", &EROFS_LAYERS),
        Vec::<String>::new()
    );
}

#[test]
fn every_module_has_a_layer() {
    for entry in fs::read_dir(src()).unwrap() {
        let name = entry.unwrap().path().with_extension("");
        let name = name.file_name().unwrap().to_str().unwrap();
        assert!(
            ["lib", "main"].contains(&name) || LAYERS.contains(&name),
            "{name} has no layer"
        );
    }
}

#[test]
fn a_use_to_the_right_is_found() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("store")).unwrap();
    fs::write(dir.path().join("store/mod.rs"), "use crate::image::Image;").unwrap();
    assert_eq!(violations(dir.path(), "crate::", &LAYERS).len(), 1);
}
