use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;

use proptest::prelude::*;

use super::*;

fn names(listing: &Listing) -> Vec<Vec<u8>> {
    let names = listing.entries().iter().map(|e| listing.name(e).to_vec());
    names.collect()
}

fn read(file: &HostFile, buf: &mut [u8]) -> Result<(), SourceError> {
    let len_bytes = buf.len() as u64;
    file.read_into(&mut buf.into(), 0, len_bytes, IoMode::Blocking)
}

#[test]
fn lists_sorted_by_unsigned_bytes() {
    let dir = tempfile::tempdir().unwrap();
    for name in [&b"b"[..], b"-x", b".hidden", b"\xff", b"B"] {
        fs::write(dir.path().join(std::ffi::OsStr::from_bytes(name)), "x").unwrap();
    }
    let store = HostTree::open(dir.path(), 64).unwrap();
    let listing = store.list(b"", Detail::Nar).unwrap();
    let sorted: [&[u8]; 5] = [b"-x", b".hidden", b"B", b"b", b"\xff"];
    assert_eq!(names(&listing), sorted);
}

#[test]
fn a_listing_does_not_depend_on_the_number_of_threads() {
    let dir = tempfile::tempdir().unwrap();
    for index in 0..100 {
        let path = dir.path().join(format!("{}", index * 7919 % 1000));
        match index % 3 {
            0 => fs::create_dir(path).unwrap(),
            1 => fs::write(path, vec![0; index]).unwrap(),
            _ => symlink(format!("to/{index}"), path).unwrap(),
        }
    }
    let store = HostTree::open(dir.path(), 64).unwrap();
    let fd = store.open_beneath(b"", OFlags::RDONLY).unwrap();
    let read = |detail, threads| {
        // A directory is read from where the last reader stopped.
        rustix::fs::seek(&fd, rustix::fs::SeekFrom::Start(0)).unwrap();
        let listing = directory::list_on(&fd, detail, |_| threads).unwrap();
        let entry =
            |e: &crate::tree::Entry| (listing.name(e).to_vec(), listing.target(e).to_vec(), e.stat);
        listing.entries().iter().map(entry).collect::<Vec<_>>()
    };
    proptest!(|(threads in 0..120_usize, full in any::<bool>())| {
        let detail = if full { Detail::Full } else { Detail::Nar };
        let (one, several) = (read(detail, 1), read(detail, threads));
        prop_assert_eq!(one.len(), 100);
        prop_assert_eq!(one, several);
    });
}

#[test]
fn nar_detail_and_full_detail_agree_on_what_a_nar_stores() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("d")).unwrap();
    fs::write(dir.path().join("f"), "12345").unwrap();
    symlink("to/nowhere", dir.path().join("l")).unwrap();
    let store = HostTree::open(dir.path(), 64).unwrap();
    let nar = store.list(b"", Detail::Nar).unwrap();
    let full = store.list(b"", Detail::Full).unwrap();
    for (a, b) in nar.entries().iter().zip(full.entries()) {
        assert_eq!(a.stat.kind, b.stat.kind);
        assert_eq!(nar.target(a), full.target(b));
    }
    assert_eq!(nar.entries()[1].stat.size_bytes, 5);
    assert_eq!(nar.target(&nar.entries()[2]), b"to/nowhere");
}

#[test]
fn never_follows_a_symlink_on_the_host() {
    let dir = tempfile::tempdir().unwrap();
    let inside = dir.path().join("store");
    fs::create_dir(&inside).unwrap();
    fs::write(dir.path().join("secret"), "secret").unwrap();
    symlink("../secret", inside.join("file")).unwrap();
    symlink("..", inside.join("up")).unwrap();
    let store = HostTree::open(&inside, 64).unwrap();
    let stamp = Stat::of_kind(FileKind::Regular).stamp();
    let key = FileId(0);
    for path in [&b"file"[..], b"up/secret", b"../secret"] {
        assert!(
            store
                .file(key, stamp, None, IoMode::Blocking, || path.to_vec())
                .is_err()
        );
    }
    assert!(store.list(b"up", Detail::Nar).is_err());
    assert!(store.stat(b"../secret").is_err());
    assert_eq!(store.stat(b"file").unwrap().kind, FileKind::Symlink);
    assert_eq!(store.read_link(b"up").unwrap(), b"..");
}

#[test]
fn a_file_that_changed_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("f"), "12345").unwrap();
    let store = HostTree::open(dir.path(), 64).unwrap();
    let stamp = store.stat(b"f").unwrap().stamp();
    let key = |node| FileId(node);
    let file = store
        .file(key(0), stamp, None, IoMode::Blocking, || b"f".to_vec())
        .unwrap();
    fs::write(dir.path().join("f"), "1234").unwrap();
    let other = store.file(key(1), stamp, None, IoMode::Blocking, || b"f".to_vec());
    assert!(matches!(other, Err(SourceError::Changed { .. })));
    let mut buf = [0; 5];
    let short = read(&file, &mut buf);
    assert!(matches!(short, Err(SourceError::Shrank { .. })));
}

#[test]
fn a_cached_file_of_another_stamp_is_not_used() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("f"), "12345").unwrap();
    fs::write(dir.path().join("g"), "678").unwrap();
    let store = HostTree::open(dir.path(), 64).unwrap();
    let key = FileId(0);
    for (name, bytes) in [(&b"f"[..], &b"12345"[..]), (b"g", b"678")] {
        let stamp = store.stat(name).unwrap().stamp();
        let file = store.file(key, stamp, None, IoMode::Blocking, || name.to_vec());
        let mut buf = vec![0; bytes.len()];
        let read = read(&file.unwrap(), &mut buf);
        read.unwrap();
        assert_eq!(buf, bytes);
    }
}

#[test]
fn paths_longer_than_path_max_are_reached() {
    let dir = tempfile::tempdir().unwrap();
    let store = HostTree::open(dir.path(), 64).unwrap();
    let component = "d".repeat(200);
    let mut at = rustix::fs::open(dir.path(), OFlags::PATH, Mode::empty()).unwrap();
    for _ in 0..40 {
        rustix::fs::mkdirat(&at, &component, Mode::RWXU).unwrap();
        at = rustix::fs::openat(&at, &component, OFlags::PATH, Mode::empty()).unwrap();
    }
    let flags = OFlags::CREATE | OFlags::WRONLY;
    rustix::fs::openat(&at, "leaf", flags, Mode::RUSR).unwrap();
    let path = vec![component; 40].join("/");
    let listing = store.list(path.as_bytes(), Detail::Nar).unwrap();
    assert_eq!(names(&listing), [b"leaf"]);
    drop(at);
    // std's remove_dir_all uses descriptors and can delete long paths, too.
}

#[test]
fn the_cache_keeps_few_files_open() {
    let dir = tempfile::tempdir().unwrap();
    let store = HostTree::open(dir.path(), 32).unwrap();
    let open = || fs::read_dir("/proc/self/fd").unwrap().count();
    let before = open();
    for node in 0..500 {
        fs::write(dir.path().join(node.to_string()), "").unwrap();
        let stamp = store.stat(node.to_string().as_bytes()).unwrap().stamp();
        let key = FileId(node);
        store
            .file(key, stamp, None, IoMode::Blocking, || {
                node.to_string().into_bytes()
            })
            .unwrap();
    }
    // Leave a margin, because other tests open files at the same time.
    assert!(open() < before + 32 + 100, "{} files open", open());
}

#[test]
fn reading_leaves_no_access_time_behind() {
    use std::os::unix::fs::MetadataExt;
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("d")).unwrap();
    let path = dir.path().join("d/f");
    fs::write(&path, "12345").unwrap();
    // relatime writes an access time that is not newer than the mtime.
    let old = fs::FileTimes::new().set_accessed(std::time::SystemTime::UNIX_EPOCH);
    fs::File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_times(old)
        .unwrap();
    let store = HostTree::open(dir.path(), 64).unwrap();
    let stamp = store.stat(b"d/f").unwrap().stamp();
    let key = FileId(0);
    let file = store
        .file(key, stamp, None, IoMode::Blocking, || b"d/f".to_vec())
        .unwrap();
    read(&file, &mut [0; 5]).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().atime(), 0);
}
