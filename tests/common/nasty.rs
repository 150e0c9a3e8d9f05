//! A store with all kinds of difficult cases, created once and kept for the next run.

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, chown, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, makedev, mknodat, utimensat};

use super::tree::{INLINE_LIMIT, contents};

/// Must be raised with every change in this file.
const VERSION: u32 = 3;
/// Length of the sparse file: more than 32 bits, and more than a compact inode can represent.
pub const HUGE_BYTES: u64 = 5 << 30;
/// Entries of the largest directory.
pub const MANY: usize = 100_000;
/// ext4 allows 65,000 links of one inode.
const LINKS_MAX: usize = 50_000;

/// Store paths with everything that a NAR can contain. All except the sparse file's can be read completely.
pub const PATHS: [&str; 6] = [
    "aaa-names",
    "bbb-sizes",
    "ccc-dirs",
    "ddd-links",
    "eee-deep",
    LONGEST,
];
/// Names of 255 bytes.
pub const LONGEST: &str = "eef-longest";
/// The sparse file.
pub const HUGE: &str = "fff-huge";
/// Files that only a tree can contain.
pub const SPECIAL: &str = "ggg-special";

/// The directory that contains all of them.
pub fn store() -> &'static Path {
    static STORE: OnceLock<PathBuf> = OnceLock::new();
    STORE.get_or_init(|| {
        let tmp = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let store = tmp.join(format!("nasty-{VERSION}-{INLINE_LIMIT}"));
        if !store.exists() {
            let making = tempfile::tempdir_in(tmp).unwrap();
            make(making.path());
            // Another test program may have created it at the same time.
            let _ = fs::rename(making.path(), &store);
        }
        store
    })
}

fn make(store: &Path) {
    fs::set_permissions(store, Permissions::from_mode(0o755)).unwrap();
    names(&dir(store, "aaa-names"));
    sizes(&dir(store, "bbb-sizes"));
    dirs(&dir(store, "ccc-dirs"));
    links(&dir(store, "ddd-links"));
    deep(&dir(store, "eee-deep"));
    longest(&dir(store, LONGEST));
    huge(&store.join(HUGE));
    special(&dir(store, SPECIAL));
}

fn dir(parent: &Path, name: &str) -> PathBuf {
    let path = parent.join(name);
    fs::create_dir(&path).unwrap();
    path
}

fn names(dir: &Path) {
    let odd: [&[u8]; 9] = [
        b"-x",
        b"+x",
        b".a",
        b".-",
        b"..x",
        b"~",
        b" ",
        b"\n",
        &[0xff, 0xfe],
    ];
    odd.iter().for_each(|name| named(dir, name));
}

fn longest(dir: &Path) {
    for last in [b'a', 0xff] {
        let mut name = [b'n'; 255];
        name[254] = last;
        named(dir, &name);
    }
}

/// A file and a directory.
fn named(dir: &Path, name: &[u8]) {
    fs::write(dir.join(OsStr::from_bytes(name)), name).unwrap();
    fs::create_dir_all(dir.join("dirs").join(OsStr::from_bytes(name))).unwrap();
}

fn sizes(dir: &Path) {
    for size in [
        0,
        1,
        INLINE_LIMIT - 1,
        INLINE_LIMIT,
        INLINE_LIMIT + 1,
        4095,
        4096,
        4097,
        70_000,
        3_000_001,
    ] {
        let path = dir.join(format!("size{size}"));
        fs::write(&path, contents(size, size)).unwrap();
        let mode = if size % 2 == 0 { 0o644 } else { 0o755 };
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
    }
}

fn dirs(parent: &Path) {
    for count in [0, 1, 300, MANY] {
        let dir = dir(parent, &format!("entries{count}"));
        let mut first = PathBuf::new();
        for index in 0..count {
            let path = dir.join(format!("entry{index}"));
            if index % LINKS_MAX == 0 {
                fs::write(&path, format!("from {index}")).unwrap();
                first = path;
            } else {
                fs::hard_link(&first, &path).unwrap();
            }
        }
    }
}

fn links(dir: &Path) {
    for len in [1, 2, 100, 4000, 4031, 4032, 4033, 4064, 4065, 4094, 4095] {
        symlink("t".repeat(len), dir.join(format!("target{len}"))).unwrap();
    }
    fs::write(dir.join("one"), contents(1, 5000)).unwrap();
    fs::hard_link(dir.join("one"), dir.join("other")).unwrap();
}

fn deep(dir: &Path) {
    let bottom = (0..200).fold(dir.to_owned(), |path, _| path.join("d"));
    fs::create_dir_all(&bottom).unwrap();
    fs::write(bottom.join("file"), "deep").unwrap();
}

/// Data at both ends and around 4 GiB, and holes in between.
fn huge(path: &Path) {
    let file = File::create(path).unwrap();
    file.set_len(HUGE_BYTES).unwrap();
    for at in [0, (4 << 30) - 2000, HUGE_BYTES - 4000] {
        file.write_all_at(&contents(usize::try_from(at).unwrap(), 4000), at)
            .unwrap();
    }
}

fn special(dir: &Path) {
    let node = |name: &str, kind: FileType, device: u64| {
        mknodat(CWD, dir.join(name), kind, Mode::from(0o640), device).unwrap();
    };
    node("fifo", FileType::Fifo, 0);
    node("char", FileType::CharacterDevice, makedev(4095, 1_048_575));
    node("block", FileType::BlockDevice, makedev(8, 300));
    drop(UnixListener::bind(dir.join("socket")).unwrap());
    for (name, mode, uid, gid) in [
        ("setuid", 0o4755, 0, 0),
        ("setgid", 0o2711, 65_535, 65_536),
        ("sticky", 0o1000, 4_000_000_000, 7),
    ] {
        let path = dir.join(name);
        fs::write(&path, name).unwrap();
        chown(&path, Some(uid), Some(gid)).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
    }
    for (name, tv_sec, tv_nsec) in [
        ("past", -5, 0),
        ("epoch", 0, 1),
        ("future", 1 << 33, 999_999_999),
    ] {
        let path = dir.join(name);
        fs::write(&path, name).unwrap();
        let time = Timespec { tv_sec, tv_nsec };
        let times = Timestamps {
            last_access: time,
            last_modification: time,
        };
        utimensat(CWD, &path, &times, AtFlags::empty()).unwrap();
    }
}
