//! [`Closure::load`] on real files.

use std::ffi::OsStr;
use std::fs;

use tempfile::TempDir;

use super::*;

const HASH: &str = "sha256:1b8m03r63zqhnjf7l5wnldhh7c134ap5vpj0850ymkq1iyzicy5s";

fn directory(files: &[(&str, &str)]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(dir.path().join(name), text).unwrap();
    }
    dir
}

fn closure_info(list: &str, registration: &str) -> TempDir {
    directory(&[("store-paths", list), ("registration", registration)])
}

fn load(source: &Source) -> Result<Closure, String> {
    Closure::load(source, &StoreLocation::default()).map_err(|e| e.to_string())
}

fn store_paths(closure: &Closure) -> &[StorePath] {
    let Contents::StorePaths(paths) = &closure.contents else {
        panic!("{closure:?}")
    };
    paths
}

#[test]
fn closure_info_gives_sorted_names_with_sizes_and_hashes() {
    let registration = format!(
        "/nix/store/b\n{HASH}\n120\n\n1\n/nix/store/a\n/nix/store/a\n{HASH}\n0\n/nix/store/a.drv\n0\n\
         /nix/store/not-listed\n{HASH}\n7\n\n0\n"
    );
    let dir = closure_info(
        "/nix/store/c\n/nix/store/b\n/nix/store/a\n/nix/store/b\n",
        &registration,
    );
    let closure = load(&Source::ClosureInfo(dir.path().into())).unwrap();
    assert_eq!(closure.dir, Path::new("/nix/store"));
    assert_eq!(closure.store_dir, Path::new("/nix/store"));
    let hash = hash::decode(HASH.as_bytes());
    let path = |name: &[u8], nar_size, nar_hash| StorePath {
        name: name.into(),
        nar_size,
        nar_hash,
    };
    let expected = [
        path(b"a", None, hash),
        path(b"b", Some(120), hash),
        path(b"c", None, None),
    ];
    assert_eq!(store_paths(&closure), expected);
}

#[test]
fn a_list_without_registration_has_no_sizes() {
    let dir = directory(&[("list", "/gnu/store/a\n")]);
    let source = Source::StorePaths {
        list: dir.path().join("list"),
        registration: None,
    };
    let location = StoreLocation {
        store_dir: "/gnu/store/".into(),
        store_root: Some("/mnt".into()),
    };
    let closure = Closure::load(&source, &location).unwrap();
    assert_eq!(closure.dir, Path::new("/mnt/gnu/store"));
    assert_eq!(
        store_paths(&closure),
        [StorePath {
            name: (*b"a").into(),
            nar_size: None,
            nar_hash: None
        }]
    );
}

#[test]
fn a_physical_store_is_below_its_root() {
    let mut location = StoreLocation::default();
    assert_eq!(location.physical_dir(), Path::new("/nix/store"));
    location.store_root = Some("/mnt".into());
    assert_eq!(location.physical_dir(), Path::new("/mnt/nix/store"));
}

#[test]
fn errors_name_the_file_and_the_line() {
    let dir = closure_info(
        "/nix/store/a\n",
        &format!("/nix/store/a\n{HASH}\n12a\n\n0\n"),
    );
    let error = load(&Source::ClosureInfo(dir.path().into())).unwrap_err();
    let file = dir.path().join("registration");
    assert_eq!(
        error,
        format!(
            "registration {}, line 3: the NAR size \"12a\" is not a number",
            file.display()
        )
    );
}

#[test]
fn closure_info_needs_both_files() {
    let (no_list, no_registration) = (
        directory(&[("registration", "")]),
        directory(&[("store-paths", "")]),
    );
    for (dir, file) in [(no_list, "store-paths"), (no_registration, "registration")] {
        let dir = dir.path().display();
        let expected =
            format!("{dir} is not the output of nixpkgs' closureInfo: {dir}/{file} does not exist");
        assert_eq!(
            load(&Source::ClosureInfo(dir.to_string().into())).unwrap_err(),
            expected
        );
    }
}

#[test]
fn files_that_cannot_be_read() {
    let dir = directory(&[("list", "/nix/store/a\n")]);
    let (list, absent) = (dir.path().join("list"), dir.path().join("absent"));
    let error = load(&Source::StorePaths {
        list: absent.clone(),
        registration: None,
    })
    .unwrap_err();
    let expected = format!(
        "store-paths {} cannot be read: No such file or directory (os error 2)",
        absent.display()
    );
    assert_eq!(error, expected);
    // A directory can be opened, but not read.
    let error = load(&Source::StorePaths {
        list,
        registration: Some(dir.path().into()),
    })
    .unwrap_err();
    let expected = format!(
        "registration {} cannot be read: Is a directory (os error 21)",
        dir.path().display()
    );
    assert_eq!(error, expected);
}

#[test]
fn errors_name_standard_input() {
    let input = ClosureFile::StorePaths("<stdin>".into());
    let error = store_paths::read(Lines::new(input, &b"x\n"[..]), StoreDir::new(b"/nix/store"))
        .unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("store-paths <stdin>, line 1: x is not"),
        "{error}"
    );
}

#[test]
fn a_relative_store_directory_is_refused() {
    let source = Source::StorePaths {
        list: "-".into(),
        registration: None,
    };
    let location = StoreLocation {
        store_dir: "store".into(),
        store_root: None,
    };
    let error = Closure::load(&source, &location).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the store directory store must be an absolute path"
    );
}

#[test]
fn a_tree_is_a_directory_or_a_symlink_to_one() {
    let dir = directory(&[("file", "")]);
    let real = dir.path().canonicalize().unwrap();
    let (tree, link) = (real.join(OsStr::from_bytes(b"tree\xff")), real.join("link"));
    fs::create_dir(&tree).unwrap();
    std::os::unix::fs::symlink(&tree, &link).unwrap();
    let expected = Closure {
        dir: tree.clone(),
        store_dir: tree.clone(),
        contents: Contents::Tree,
    };
    assert_eq!(load(&Source::Tree(tree)), Ok(expected.clone()));
    assert_eq!(load(&Source::Tree(link)), Ok(expected));
}

#[test]
fn a_tree_that_is_not_a_directory_is_refused() {
    let dir = directory(&[("file", "")]);
    let (file, absent) = (dir.path().join("file"), dir.path().join("absent"));
    let expected = format!("the tree {} is not a directory", file.display());
    assert_eq!(load(&Source::Tree(file)).unwrap_err(), expected);
    let expected = format!(
        "the tree {} cannot be opened: No such file or directory (os error 2)",
        absent.display()
    );
    assert_eq!(load(&Source::Tree(absent)).unwrap_err(), expected);
}
