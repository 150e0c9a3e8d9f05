//! Digests of all used blocks of fixed stores and trees. They must never change.
//!
//! A guest may have cached inodes of a disk that another version of this program has served, and a snapshot may contain
//! its page cache. So the bytes of a disk must stay the same. **If a digest here changes, the layout has changed.** If
//! that is intended, raise `LAYOUT_VERSION` and add rows for the new version to [`GOLDEN`]. Never edit old rows.
//!
//! A digest covers the layout version, the length of the disk, and the addresses and bytes of all used blocks. On
//! failure, the address and digest of each block are written to `golden-CASE.txt` in `target/tmp`. To get that list for
//! a good commit, change a digest there and run the test.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs::{self, File, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, chown, lchown, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use crate::common::{memory_dir, nar};
use lazystore::closure::{Closure, Graph, Source, StoreLocation};
use lazystore::erofs::layout::LAYOUT_VERSION;
use lazystore::image::{Image, ImageOptions, Seek};
use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, makedev, mknodat, utimensat};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

/// Layout version, case, digest.
const GOLDEN: [(u32, &str, &str); 33] = [
    (
        1,
        "sized",
        "0e0cbe0affc9e6ee923cc5cdb02351c2989c829755555edac6a146fbdba9c064",
    ),
    (
        1,
        "unsized",
        "78aa189ad3c94d2dcc101e373ccdf18564bbeff01c488bf9f28cfba793e6ee4d",
    ),
    (
        1,
        "too-big-bounds",
        "a483b6c77e3bafabae1a3aeb6850eb248de48daad517f05e53b63b5ddee51c28",
    ),
    (
        1,
        "options",
        "1235a5c1f3d9bf50f269e37b502128ebe3b53c9a35c401cdad75f64730f97396",
    ),
    (
        1,
        "registration-inline",
        "893645e780fe1c4da36470f3a7df1e5b2c56e95a62cff756493cd5b0d787b05f",
    ),
    (
        1,
        "registration-in-blocks",
        "dc0ecb27e252caa3c8c2ebb12e05edb6ba9ac5e18acec36fe5232997d8efbe8e",
    ),
    (
        1,
        "wide-root",
        "feb80a2b165b29a1218f7c8d369efb7054dad0d5d1741436203f9ec925aa5c03",
    ),
    (
        1,
        "huge-file",
        "922644f54259ef1464f18191e63b44ef1b3c3ad53fd046fae61ad01bca361423",
    ),
    (
        1,
        "tree",
        "35477af7f3970f200156c3aff242a5de955e03f83c31efa635a18640edaf5287",
    ),
    (
        1,
        "tree-of-root",
        "f44643b881e91fe1f5c3c30e588a4bfb73c8142ca1213b05dcb5dc80207edae1",
    ),
    (
        2,
        "sized",
        "6080dae1a614db61b80143e35b9320a8f22c78dd1dcf16e0bca9a7f10c6c17cc",
    ),
    (
        2,
        "unsized",
        "dffb16a32efa1170c23b103951a7217616e3ee2866c272a6959e72203fc1a2e9",
    ),
    (
        2,
        "too-big-bounds",
        "bffcdef63897d203d127be1ec9b05b77753639738f2f71b992eaedf8c999210a",
    ),
    (
        2,
        "bounds-too-big",
        "0dc102b7bc78df47bd690dc1cc80ad5ef9822ef1a806dc97ada75c1ca8e89f00",
    ),
    (
        2,
        "options",
        "6bcb6c161c22ccd1221b3d38884a029468bf206525c788c1a86d6c1ca149e87a",
    ),
    (
        2,
        "registration-inline",
        "0c714f87a920b9014457569de8542db0392abaf8f03de72a5090196832e30fc7",
    ),
    (
        2,
        "registration-in-blocks",
        "a9cbf78cc675e7bba35e185adbd5f74e0b6e6e49c234b38dd78f9dba718ed4bc",
    ),
    (
        2,
        "wide-root",
        "2707a6a7e9325c78dd02c87c23b5e2c5695830a8d807fc8c7ac88cbca960097d",
    ),
    (
        2,
        "huge-file",
        "4d525a086c551429b44f185420d054a424a97c398a5ad6b96500616e1c3391d0",
    ),
    (
        2,
        "tree",
        "04cb117c2d15201ccfd2e4c8a748f0b9650d3447b53d71d5af36adf3f021f747",
    ),
    (
        2,
        "tree-of-root",
        "8239c66a960cfb302991fec574c8f5757fc2b2545628d8d193319d74bbc698fd",
    ),
    (
        2,
        "dense",
        "8f315f599a38342aa2c509b4a9fbd6dca24f5c744cbffe3d925112dae50ac18c",
    ),
    (
        3,
        "sized",
        "de9c834ebf34c7e1bf221cee0bdd76a1dc0da902c6db02db3f06926314db029f",
    ),
    (
        3,
        "unsized",
        "496531dde076ee405caaa63135c24eb48d383c47aa5d598a5601d7ce35a18b17",
    ),
    (
        3,
        "bounds-too-big",
        "59b97912c36bdaa3b7c752f47adc058ff8e5e831d7dba5f604ec2b2b603cccf1",
    ),
    (
        3,
        "options",
        "bebc2b8acf27ba893451e83b931db746002a55e912b1a9ce5b737fef26f4fa31",
    ),
    (
        3,
        "registration-inline",
        "790fe51359b1ac7cd75d14c00184ef33dbf26d7536f1120d78cbab2ab79d6a46",
    ),
    (
        3,
        "registration-in-blocks",
        "acec319296f1d81bb1b5edca8ca8fb4cb589d48d009abe67b6d805ae8127c8f1",
    ),
    (
        3,
        "wide-root",
        "cd4139bf0d9a490188312398dec462c43dd21485bfe2bc0a1a52d60b7bd0e257",
    ),
    (
        3,
        "huge-file",
        "0966c81ead875204730db636f785e8f502d0e605fb1d462f06ee9f15c2d342c1",
    ),
    (
        3,
        "tree",
        "0e6513ff440cc71fd8bc5163aa4610a1fb92e62739351f96478e2b8d99291f9a",
    ),
    (
        3,
        "tree-of-root",
        "16d0a692ed002496e4ac86306ae06454278d1f552656472171a369387e1129c5",
    ),
    (
        3,
        "dense",
        "2114cb1d77f6b304cb1b0f6d34c66752552701dd21d394de0114f5c983ee7b52",
    ),
];

const BLOCK: usize = 4096;
/// Of a longer used range, only the ends and some blocks in the middle are read.
const WHOLE_BYTES: u64 = 64 << 20;
const END_BYTES: u64 = 1 << 20;
const MIDDLE_STEP_BYTES: u64 = 1 << 30;

/// Compares the digest of a disk with the row of the case.
fn check(case: &str, image: &Image) {
    let mut digest = Sha256::new();
    digest.update(LAYOUT_VERSION.to_le_bytes());
    digest.update(image.len_bytes().to_le_bytes());
    let mut blocks = String::new();
    for at in used_blocks(image) {
        let mut block = [0; BLOCK];
        image.read_exact_at(&mut block, at).unwrap();
        digest.update(at.to_le_bytes());
        digest.update(block);
        writeln!(blocks, "{at:#x} {}", hex(&Sha256::digest(block))).unwrap();
    }
    let found = hex(&digest.finalize());
    let row = GOLDEN
        .iter()
        .find(|(version, name, _)| (*version, *name) == (LAYOUT_VERSION, case));
    if row.is_some_and(|(_, _, expected)| *expected == found) {
        return;
    }
    let list = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("golden-{case}.txt"));
    fs::write(&list, blocks).unwrap();
    panic!(
        "{case}, layout version {LAYOUT_VERSION}: the digest is {found}, and not {row:?} (see the comment in this \
         file); its blocks are listed in {}",
        list.display()
    );
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

/// Addresses of the blocks to read, in ascending order.
fn used_blocks(image: &Image) -> Vec<u64> {
    let mut blocks = Vec::new();
    let mut at = 0;
    while let Some(start) = image.seek(at, Seek::Data) {
        let end = image.seek(start, Seek::Hole).unwrap();
        if end - start <= WHOLE_BYTES {
            blocks.extend((start..end).step_by(BLOCK));
        } else {
            let (head, tail) = (start + END_BYTES, end - END_BYTES);
            let step = usize::try_from(MIDDLE_STEP_BYTES).unwrap();
            blocks.extend((start..head).step_by(BLOCK));
            blocks.extend((head..tail).step_by(step));
            blocks.extend((tail..end).step_by(BLOCK));
        }
        at = end;
    }
    blocks
}

/// Bytes that differ for each place in each file. The digests depend on them.
fn contents(seed: usize, len: usize) -> Vec<u8> {
    let mut state = seed as u64 ^ 0x9e37_79b9_7f4a_7c15;
    let next = |_| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        state.to_be_bytes()[0]
    };
    (0..len).map(next).collect()
}

fn file(path: &Path, seed: usize, len: usize, mode: u32) {
    fs::write(path, contents(seed, len)).unwrap();
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

fn dir(parent: &Path, name: &str) -> PathBuf {
    let path = parent.join(name);
    fs::create_dir(&path).unwrap();
    path
}

/// Store paths in a directory, in the order of their creation, not sorted.
struct Store {
    root: TempDir,
    paths: Vec<(String, u64)>,
}

impl Store {
    fn new() -> Self {
        let root = memory_dir();
        fs::create_dir_all(root.path().join("nix/store")).unwrap();
        Self {
            root,
            paths: Vec::new(),
        }
    }

    /// Creates a store path and records its NAR size.
    fn add(&mut self, name: &str, make: impl FnOnce(&Path)) {
        let path = self.root.path().join("nix/store").join(name);
        make(&path);
        self.paths.push((name.to_owned(), nar::size_bytes(&path)));
    }

    /// A closure with the NAR sizes that `size` returns. Without a size, the path has no registration.
    fn closure(&self, size: impl Fn(&str, u64) -> Option<u64>) -> Closure {
        let (mut list, mut registration) = (String::new(), String::new());
        for (name, nar_size) in &self.paths {
            writeln!(list, "/nix/store/{name}").unwrap();
            if let Some(size) = size(name, *nar_size) {
                let hash = "0".repeat(64);
                write!(registration, "/nix/store/{name}\n{hash}\n{size}\n\n0\n").unwrap();
            }
        }
        Closure::parse(
            list.as_bytes(),
            Some(registration.as_bytes()),
            &self.location(),
        )
        .unwrap()
    }

    fn location(&self) -> StoreLocation {
        StoreLocation {
            store_root: Some(self.root.path().to_owned()),
            ..StoreLocation::default()
        }
    }

    /// A closure with all NAR sizes registered.
    fn registered(&self) -> Closure {
        self.closure(|_, size| Some(size))
    }
}

/// All kinds of store paths (directory, file, symlink), all kinds of files in them, and all limits of the format.
fn store_of_all_kinds() -> Store {
    let mut store = Store::new();
    store.add("zzz-last-script", |path| file(path, 1, 900, 0o755));
    store.add("0aa-sizes", sizes);
    store.add("-starts-with-a-dash", |path| file(path, 2, 5000, 0o600));
    store.add("+plus", |path| fs::create_dir(path).unwrap());
    store.add("mmm-link", |path| symlink("zzz-last-script", path).unwrap());
    store.add("mmm-link-that-is-long", |path| {
        symlink("/".repeat(4095), path).unwrap();
    });
    store.add("ddd-directories", directories);
    store.add("ccc-names", names);
    store.add("lll-links", links);
    store.add("eee-deep", |path| {
        let bottom = (0..120).fold(path.to_owned(), |path, _| path.join("d"));
        fs::create_dir_all(&bottom).unwrap();
        file(&bottom.join("file"), 3, 4, 0o644);
    });
    store.add(&"n".repeat(255), |path| file(path, 4, 0, 0o444));
    store.add("yyy-sparse", |path| {
        let file = File::create(path).unwrap();
        file.set_len(300_000).unwrap();
        file.write_all_at(&contents(5, 100), 150_000).unwrap();
    });
    store
}

/// Files with sizes around the limits of inline data and of a block. Executable only by the owner's bit.
fn sizes(path: &Path) {
    fs::create_dir(path).unwrap();
    for (seed, len) in [
        70_000, 1, 0, 511, 512, 513, 2047, 2048, 2049, 4031, 4032, 4033, 4064, 4065, 4095, 4096,
        4097, 8191, 8192, 8193,
    ]
    .into_iter()
    .enumerate()
    {
        let mode = [0o644, 0o755, 0o711, 0o455][seed % 4];
        file(&path.join(format!("size{len}")), 10 + seed, len, mode);
    }
}

/// Nested directories of no block, one block and many blocks.
fn directories(path: &Path) {
    fs::create_dir(path).unwrap();
    for count in [3000, 1, 0, 165, 166, 167, 168] {
        let inside = dir(path, &format!("entries{count}"));
        for index in (0..count).rev() {
            file(&inside.join(format!("entry{index}")), index, 3, 0o644);
        }
    }
    for index in (0..90).rev() {
        let inside = dir(path, &format!("sub{index}"));
        file(&inside.join("file"), index, index * 97, 0o644);
        fs::create_dir_all(inside.join("a/b/c")).unwrap();
    }
}

/// Names that sort before and after `.` and `..`, names with unusual bytes, and names of the maximum length.
fn names(path: &Path) {
    fs::create_dir(path).unwrap();
    let odd: [&[u8]; 12] = [
        b"~",
        b"-x",
        b"+x",
        b".a",
        b".-",
        b"..x",
        b"...",
        b" ",
        b"\n",
        b"\x7f",
        &[0xff, 0xfe],
        "\u{fc}n\u{ef}".as_bytes(),
    ];
    let long = (0..40).map(|index| [vec![b'n'; 253], format!("{index:02}").into_bytes()].concat());
    for name in odd.into_iter().map(<[u8]>::to_vec).chain(long) {
        let name = OsStr::from_bytes(&name);
        fs::write(path.join(name), name.as_bytes()).unwrap();
        fs::create_dir_all(path.join("directories").join(name)).unwrap();
    }
}

/// Symlinks of all lengths around the limits of inline targets, and hard links.
fn links(path: &Path) {
    fs::create_dir(path).unwrap();
    for len in [4095, 1, 2, 100, 4000, 4031, 4032, 4033, 4063, 4064, 4065] {
        symlink("t".repeat(len), path.join(format!("target{len}"))).unwrap();
    }
    file(&path.join("two"), 6, 5000, 0o644);
    fs::hard_link(path.join("two"), path.join("one")).unwrap();
}

/// A tree with files that no store path can contain, as far as unprivileged users can create them, and with various
/// modes and times.
fn tree() -> TempDir {
    let root = memory_dir();
    let path = root.path();
    let modes = [0o000, 0o644, 0o777, 0o1755, 0o4711, 0o600];
    for (seed, mode) in modes.into_iter().enumerate() {
        file(&path.join(format!("mode{mode:o}")), seed, 3000 * seed, mode);
    }
    let fifo = (FileType::Fifo, Mode::from(0o600));
    mknodat(CWD, path.join("fifo"), fifo.0, fifo.1, 0).unwrap();
    drop(UnixListener::bind(path.join("socket")).unwrap());
    symlink("..", path.join("link")).unwrap();
    names(&path.join("names"));
    fs::create_dir_all(path.join("dir/empty")).unwrap();
    settle(path, &mut 0);
    for (name, mode) in [("fifo", 0o640), ("socket", 0o755), ("dir", 0o1700)] {
        fs::set_permissions(path.join(name), Permissions::from_mode(mode)).unwrap();
    }
    root
}

/// Sets modes and times of `path` and everything below it, independent of the umask and the clock.
fn settle(path: &Path, counter: &mut i64) {
    let kind = fs::symlink_metadata(path).unwrap().file_type();
    if kind.is_dir() {
        let entries = fs::read_dir(path).unwrap();
        let mut entries: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
        entries.sort();
        entries.iter().for_each(|entry| settle(entry, counter));
        fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
    } else if path.parent().unwrap().ends_with("names") {
        fs::set_permissions(path, Permissions::from_mode(0o644)).unwrap();
    }
    let times = [(-500, 0), (0, 1), (1_700_000_000, 999_999_999), (1, 0)];
    let (tv_sec, tv_nsec) = times[usize::try_from(*counter % 4).unwrap()];
    let time = Timespec {
        tv_sec: tv_sec + *counter,
        tv_nsec,
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    *counter += 1;
}

fn tree_disk(dir: &Path, options: &ImageOptions) -> Image {
    let source = Source::Tree(dir.to_owned());
    let closure = Closure::load(&source, &StoreLocation::default()).unwrap();
    Image::new(&closure, options).unwrap()
}

fn disk(closure: &Closure) -> Image {
    Image::new(closure, &ImageOptions::default()).unwrap()
}

/// The store, created once, because its thousands of files take most of the time.
#[test]
fn a_store_of_all_kinds() {
    let store = store_of_all_kinds();
    check("sized", &disk(&store.registered()));
    check("unsized", &disk(&store.closure(|_, _| None)));
    let other = ImageOptions {
        label: "fifteen-letters".to_owned(),
        uuid: [7; 16],
        uid: Some(70_000),
        gid: Some(7),
        mtime_sec: Some(1 << 33),
        ..ImageOptions::default()
    };
    let image = Image::new(&store.registered(), &other).unwrap();
    check("options", &image);
    let dense = ImageOptions {
        dense: true,
        ..ImageOptions::default()
    };
    check("dense", &Image::new(&store.registered(), &dense).unwrap());
    let small = contents(7, 1500);
    check("registration-inline", &with_registration(&store, small));
    let text = registration(&store);
    check("registration-in-blocks", &with_registration(&store, text));
}

fn with_registration(store: &Store, text: Vec<u8>) -> Image {
    let options = ImageOptions {
        registration: Some(text.into()),
        ..ImageOptions::default()
    };
    Image::new(&store.registered(), &options).unwrap()
}

/// The registration that `--with-registration` adds to the disk.
fn registration(store: &Store) -> Vec<u8> {
    let (mut list, mut registered) = (String::new(), String::new());
    let first = format!("/nix/store/{}\n", store.paths[0].0);
    for (name, size) in &store.paths {
        writeln!(list, "/nix/store/{name}").unwrap();
        let hash = hex(&Sha256::digest(name));
        write!(
            registered,
            "/nix/store/{name}\nsha256:{hash}\n{size}\n\n1\n{first}"
        )
        .unwrap();
    }
    let root = store.root.path();
    fs::write(root.join("store-paths"), list).unwrap();
    fs::write(root.join("registration"), registered).unwrap();
    let source = Source::ClosureInfo(root.to_owned());
    let graph = Graph::load(&source, &store.location()).unwrap();
    graph.registration().unwrap()
}

#[test]
fn a_root_directory_of_many_blocks() {
    let mut store = Store::new();
    for index in (0..500).rev() {
        let name = format!("{index:032}-package-{}", "n".repeat(index % 150));
        store.add(&name, |path| file(path, index, index * 9, 0o644));
    }
    check("wide-root", &disk(&store.registered()));
}

/// A file whose size does not fit a compact inode, with data at an offset of more than 32 bits.
#[test]
fn a_file_of_more_than_4_gib() {
    const LEN: u64 = (5 << 30) + 3;
    let mut store = Store::new();
    let path = store.root.path().join("nix/store/huge");
    let file = File::create(path).unwrap();
    file.set_len(LEN).unwrap();
    for at in [0, (4 << 30) - 100, LEN - 4000] {
        let seed = usize::try_from(at).unwrap();
        file.write_all_at(&contents(seed, 4000), at).unwrap();
    }
    // The NAR of a single file is 112 bytes longer than its contents, padded to 8 bytes.
    let nar_size = 112 + LEN.next_multiple_of(8);
    store.paths.push(("huge".to_owned(), nar_size));
    check("huge-file", &disk(&store.registered()));
}

/// If the bounds of three paths do not fit together, as many as necessary are planned exactly: the first two.
/// (`too-big-bounds` was the same with wrong registered sizes. Such paths are no longer served.)
#[test]
fn bounds_that_do_not_fit() {
    const LEN: u64 = 40 << 30;
    let mut store = Store::new();
    for (seed, name) in ["aaa", "bbb", "ccc"].into_iter().enumerate() {
        let path = store.root.path().join("nix/store").join(name);
        let file = File::create(path).unwrap();
        file.set_len(LEN).unwrap();
        file.write_all_at(&contents(seed, 4000), LEN - 4000)
            .unwrap();
        store.paths.push((name.to_owned(), 112 + LEN));
    }
    let image = disk(&store.registered());
    let exact = image.space().regions().iter().map(|region| region.exact);
    assert_eq!(exact.collect::<Vec<_>>(), [true, true, false]);
    check("bounds-too-big", &image);
}

/// Without root, files belong to the user who runs the test, so owners are set by options.
#[test]
fn a_tree_of_all_kinds() {
    let dir = tree();
    let options = ImageOptions {
        uid: Some(1000),
        gid: Some(100),
        ..ImageOptions::default()
    };
    check("tree", &tree_disk(dir.path(), &options));
}

/// Devices and owners, which only root can create.
#[test]
#[ignore = "needs root"]
fn a_tree_with_devices_and_owners() {
    let dir = tree();
    let devices = [
        ("char", FileType::CharacterDevice, makedev(10, 229)),
        ("wide", FileType::CharacterDevice, makedev(4095, 1_048_575)),
        ("block", FileType::BlockDevice, makedev(259, 300_000)),
    ];
    for (name, kind, device) in devices {
        let path = dir.path().join(name);
        mknodat(CWD, &path, kind, Mode::from(0o600), device).unwrap();
    }
    let owners = [("mode644", 65_535, 65_536), ("dir", 4_000_000_000, 7)];
    chown(dir.path(), Some(0), Some(0)).unwrap();
    for entry in fs::read_dir(dir.path()).unwrap() {
        lchown(entry.unwrap().path(), Some(3), Some(4)).unwrap();
    }
    for (name, uid, gid) in owners {
        chown(dir.path().join(name), Some(uid), Some(gid)).unwrap();
    }
    for name in ["names", "dir/empty"] {
        own_all(&dir.path().join(name));
    }
    // Changing the owner clears the set-user-ID bit.
    let setuid = Permissions::from_mode(0o4711);
    fs::set_permissions(dir.path().join("mode4711"), setuid).unwrap();
    settle(dir.path(), &mut 0);
    check(
        "tree-of-root",
        &tree_disk(dir.path(), &ImageOptions::default()),
    );
}

/// Sets the owner of everything below `path`.
fn own_all(path: &Path) {
    chown(path, Some(5), Some(6)).unwrap();
    if path.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            own_all(&entry.unwrap().path());
        }
    }
}
