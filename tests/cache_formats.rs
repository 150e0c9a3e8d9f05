//! Parsing the formats of a binary cache: narinfos, NARs, listings and compressions. Compared with what Nix writes and
//! with the original trees.

mod faults;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use lazystore::closure::narinfo::{Compression, Narinfo, PublicKey, Trust};
use lazystore::source::decompress::decompress;
use lazystore::source::nar::{ListingError, NarNode, NarTree};
use lazystore::tree::FileKind;
use proptest::prelude::*;
use sha2::{Digest, Sha256};

use crate::common::cache::{Cache, Key, store_name};
use crate::common::nix::{ChrootStore, NIX_CONFIG, succeed};
use crate::common::tree::{any_tree, contents};
use crate::common::{cases, memory_dir, nar, nasty};

const STORE: &[u8] = b"/nix/store";

/// Checks that `tree` equals the tree at `path`, and that `nar` has the files' bytes at the given offsets.
fn assert_is(tree: &NarTree, nar: &[u8], path: &Path) {
    let mut nodes = 0;
    let mut next = vec![Vec::new()];
    while let Some(inside) = next.pop() {
        nodes += 1;
        let path = match inside.is_empty() {
            true => path.to_owned(),
            false => path.join(OsStr::from_bytes(&inside)),
        };
        let metadata = fs::symlink_metadata(&path).unwrap();
        match tree.node(&inside).unwrap() {
            NarNode::Regular {
                size_bytes,
                offset,
                executable,
            } => {
                let [start, len] = [offset, size_bytes].map(|n| usize::try_from(n).unwrap());
                assert!(nar[start..start + len] == fs::read(&path).unwrap());
                assert_eq!(executable, metadata.permissions().mode() & 0o100 != 0);
            }
            NarNode::Symlink { target } => {
                assert_eq!(fs::read_link(&path).unwrap().as_os_str().as_bytes(), target);
            }
            NarNode::Directory => {
                let listing = tree.list(&inside).unwrap();
                let on_disk = fs::read_dir(&path).unwrap();
                assert_eq!(on_disk.count(), listing.entries().len());
                next.extend(listing.entries().iter().map(|entry| {
                    let names = [&inside[..], listing.name(entry)];
                    names[usize::from(inside.is_empty())..].join(&b'/')
                }));
            }
        }
    }
    assert_eq!(nodes, tree.node_count());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..cases(40) })]

    #[test]
    fn nars_and_listings_describe_the_tree(tree in any_tree()) {
        let dir = memory_dir();
        let path = dir.path().join("tree");
        tree.write(&path);
        let (nar, listing) = nar::with_listing(&path);
        let parsed = NarTree::parse(&nar[..], nar.len() as u64).unwrap();
        assert_is(&parsed, &nar, &path);
        let listed = NarTree::from_listing(listing.to_string().as_bytes(), nar.len() as u64);
        let lossy = listing.to_string().contains('\u{fffd}');
        match listed {
            Ok(listed) => prop_assert!(!lossy && listed == parsed),
            Err(error) => prop_assert!(lossy && matches!(error, ListingError::Lossy { .. }), "{error}"),
        }
    }
}

/// The parsed files of one store path of a cache.
struct FromCache {
    narinfo: Narinfo,
    nar: Vec<u8>,
    tree: NarTree,
}

impl FromCache {
    fn read(dir: &Path, name: &str) -> Self {
        let text = fs::read(dir.join(format!("{}.narinfo", &name[..32]))).unwrap();
        let narinfo = Narinfo::parse(&text, name.as_bytes(), STORE).unwrap();
        let file = File::open(dir.join(&narinfo.url)).unwrap();
        let mut nar = Vec::new();
        let mut reader = decompress(narinfo.compression, file).unwrap();
        reader.read_to_end(&mut nar).unwrap();
        assert_eq!(nar.len() as u64, narinfo.nar_size);
        assert_eq!(narinfo.nar_hash[..], Sha256::digest(&nar)[..]);
        let tree = NarTree::parse(&nar[..], narinfo.nar_size).unwrap();
        Self { narinfo, nar, tree }
    }

    fn is_signed_by(&self, key: &str) -> bool {
        let keys = PublicKey::parse_list(key).unwrap();
        matches!(self.narinfo.verify(STORE, &keys), Ok(Trust::Signed { .. }))
    }
}

/// Compressions with their names in Nix.
const COMPRESSIONS: [(Compression, &str); 5] = [
    (Compression::None, "none"),
    (Compression::Xz, "xz"),
    (Compression::Zstd, "zstd"),
    (Compression::Brotli, "br"),
    (Compression::Bzip2, "bzip2"),
];

/// A few files of all kinds.
fn write_tree(path: &Path) {
    fs::create_dir_all(path.join("bin/empty")).unwrap();
    fs::write(path.join("bin/tool"), contents(1, 200_000)).unwrap();
    fs::set_permissions(path.join("bin/tool"), PermissionsExt::from_mode(0o755)).unwrap();
    fs::write(path.join("text"), "text ".repeat(10_000)).unwrap();
    fs::write(path.join("none"), "").unwrap();
    std::os::unix::fs::symlink("bin/tool", path.join("link")).unwrap();
}

#[test]
fn caches_of_every_compression_are_read() {
    let dir = memory_dir();
    let tree = dir.path().join("tree");
    write_tree(&tree);
    for (compression, _) in COMPRESSIONS {
        let mut cache = Cache::new(&dir.path().join(format!("{compression:?}")));
        cache.compression = compression;
        let added = cache.add("tool", &tree, &["tool"]);
        let read = FromCache::read(&cache.dir, &added.name);
        assert_is(&read.tree, &read.nar, &tree);
        let listing = fs::read(cache.listing_file(&added)).unwrap();
        let listed = NarTree::from_listing(&listing, read.narinfo.nar_size).unwrap();
        assert!(listed == read.tree);
        assert!(read.is_signed_by(&cache.key.public()));
        assert!(!read.is_signed_by(&Key::new("test-1", 8).public()));
    }
}

/// Store paths with their paths on the host.
type Paths = BTreeMap<String, PathBuf>;

fn add(store: &ChrootStore, hosts: impl IntoIterator<Item = PathBuf>) -> Paths {
    let hosts = hosts.into_iter();
    hosts.map(|host| (store.add_file(&host), host)).collect()
}

fn copy(store: &ChrootStore, args: &[&str]) {
    let mut command = Command::new("nix");
    command
        .args(["copy", "--store"])
        .arg(store.root())
        .args(args);
    command
        .env_remove("NIX_REMOTE")
        .env("HOME", store.path("home"));
    let config = format!("{NIX_CONFIG}\nexperimental-features = nix-command");
    succeed(command.env("NIX_CONFIG", config).stdin(Stdio::null()));
}

/// Paths with names that JSON cannot represent, for which Nix 2.8 writes no listing.
fn has_no_listing(host: &Path) -> bool {
    ["aaa-names", nasty::LONGEST]
        .iter()
        .any(|name| host.ends_with(name))
}

#[test]
#[ignore = "needs Nix"]
fn a_cache_written_by_nix_copy_is_read() {
    let store = ChrootStore::new();
    let [secret, public] = ["secret", "public"].map(|name| store.path(name));
    let files = [&secret, &public].map(|path| path.to_str().unwrap());
    let generate = ["--generate-binary-cache-key", "nix-1", files[0], files[1]];
    store.nix_store(&generate, Stdio::null());
    let key = fs::read_to_string(public).unwrap();
    let [file, tree] = ["file", "tree"].map(|name| store.path(name));
    fs::write(&file, "a file").unwrap();
    write_tree(&tree);
    let small = add(&store, [file, tree]);
    // Without the 100,000 files, for which Nix takes minutes.
    let nasty = nasty::PATHS.into_iter().filter(|name| *name != "ccc-dirs");
    let nasty = add(&store, nasty.map(|name| nasty::store().join(name)));
    for (compression, name) in COMPRESSIONS {
        let paths = match compression {
            Compression::Zstd => &nasty,
            _ => &small,
        };
        let cache = store.path(&format!("cache-{name}"));
        for (listing, without) in [("1", false), ("0", true)] {
            let to = format!(
                "file://{}?compression={name}&write-nar-listing={listing}&secret-key={}",
                cache.display(),
                secret.display()
            );
            let paths = paths.iter();
            let paths = paths.filter(|(_, host)| has_no_listing(host) == without);
            let paths: Vec<&str> = paths.map(|(path, _)| &**path).collect();
            if !paths.is_empty() {
                copy(&store, &[&["--to", &to], &paths[..]].concat());
            }
        }
        for (path, host) in paths {
            let read = assert_copied(&cache, path, host);
            assert_eq!(read.narinfo.compression, compression);
            assert!(read.is_signed_by(&key), "{path}");
        }
    }
}

/// Checks that the files of the store path `path` in `cache` describe the tree at `host`.
fn assert_copied(cache: &Path, path: &str, host: &Path) -> FromCache {
    let name = path.strip_prefix("/nix/store/").unwrap();
    let read = FromCache::read(cache, name);
    assert_is(&read.tree, &read.nar, host);
    // `nix-store --add` derives the hash in the name from the contents.
    let trust = read.narinfo.verify(STORE, &[]);
    assert_eq!(trust, Ok(Trust::ContentAddressed), "{path}");
    let listing = fs::read(cache.join(format!("{}.ls", &name[..32])));
    assert_eq!(listing.is_err(), has_no_listing(host));
    if let Ok(listing) = listing {
        let listed = NarTree::from_listing(&listing, read.narinfo.nar_size).unwrap();
        assert!(listed == read.tree, "{path}");
    }
    read
}

/// Nix accepts everything in a cache of the tests' own writer. It checks sizes, hashes and signatures.
#[test]
#[ignore = "needs Nix"]
fn nix_takes_the_cache_that_the_tests_write() {
    let store = ChrootStore::new();
    let tree = store.path("tree");
    write_tree(&tree);
    for (compression, name) in COMPRESSIONS {
        let mut cache = Cache::new(&store.path(&format!("cache-{name}")));
        cache.compression = compression;
        let library = format!("library-{name}");
        cache.add(&library, &tree, &[]);
        let added = cache.add(
            &format!("tool-{name}"),
            &tree,
            &[&library, &format!("tool-{name}")],
        );
        let from = format!("file://{}", cache.dir.display());
        let [key, path] = [cache.key.public(), added.path()];
        copy(
            &store,
            &[
                "--from",
                &from,
                "--option",
                "trusted-public-keys",
                &key,
                &path,
            ],
        );
        let closure = store.lines(&["-qR", &path]);
        assert_eq!(closure.len(), 2);
        assert!(closure.contains(&format!("/nix/store/{}", store_name(&library))));
        let parsed = NarTree::parse(&added.nar[..], added.nar.len() as u64).unwrap();
        assert_is(&parsed, &added.nar, &store.physical(&path));
    }
}

#[test]
#[ignore = "needs Nix"]
fn nars_equal_those_of_nix_store_dump() {
    let store = ChrootStore::new();
    for host in nasty::PATHS.map(|name| nasty::store().join(name)) {
        let dump = store.nix_store(&["--dump", host.to_str().unwrap()], Stdio::null());
        let (nar, _) = nar::with_listing(&host);
        assert!(dump == nar, "{}", host.display());
        assert_is(
            &NarTree::parse(&nar[..], nar.len() as u64).unwrap(),
            &nar,
            &host,
        );
    }
}

#[test]
fn attributes_in_a_nar_are_those_of_a_store_path() {
    let dir = memory_dir();
    write_tree(dir.path());
    let (nar, _) = nar::with_listing(dir.path());
    let tree = NarTree::parse(&nar[..], nar.len() as u64).unwrap();
    let kinds = [
        ("bin", FileKind::Directory, 0o555),
        ("bin/tool", FileKind::Regular, 0o555),
        ("text", FileKind::Regular, 0o444),
        ("link", FileKind::Symlink, 0o777),
    ];
    for (path, kind, permissions) in kinds {
        let stat = tree.stat(path.as_bytes()).unwrap();
        assert_eq!((stat.kind, stat.permissions), (kind, permissions));
    }
}
