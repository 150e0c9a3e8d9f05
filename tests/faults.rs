//! Faults in the store while it is served. Each is an I/O error and a log line, never wrong bytes, and affects nothing
//! else. When the fault is repaired, reads work again. The faults are real, not simulated.

mod flaky;
mod readers;
mod resources;

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use lazystore::image::Image;
use nix::sys::signal::Signal;

use crate::common::fuse::Place;
use crate::common::process::{copy_program, wait_for};
use crate::common::server::Server;
use crate::common::small_store::{FileOnDisk, SmallStore};
use flaky::Flaky;
use readers::{Found, Reader};

const NEIGHBOUR: &str = "zzz-neighbour";

/// A store that is served at a socket and as a file.
struct Served {
    files: Vec<FileOnDisk>,
    server: Server,
    place: Place,
}

impl Served {
    /// Serves `closure`, whose disk equals `image`. `before` is that of [`crate::common::server::command_after`].
    fn start(store: &SmallStore, image: &Image, before: &[&str], closure: &[String]) -> Self {
        let place = Place::new();
        let mount = place.path().to_str().unwrap().to_owned();
        Self {
            files: store.files(image),
            server: Server::start_after(before, closure, &["--fuse", &mount]),
            place,
        }
    }

    fn readers(&self) -> [Reader; 2] {
        let image = self.place.path().join("nix-store.img");
        [Reader::socket(&self.server.socket), Reader::file(&image)]
    }

    fn file(&self, path: &str) -> &FileOnDisk {
        let found = self.files.iter().find(|file| file.path == path);
        found.unwrap_or_else(|| panic!("{path} is not on the disk"))
    }

    /// Checks that all files of one path are correct.
    fn check_path(&self, reader: &Reader, path: &str) {
        let files = self.files.iter().filter(|file| file.path.starts_with(path));
        let right = files.map(|file| assert_eq!(reader.look(file), Found::Right, "{}", file.path));
        assert!(right.count() > 5);
    }

    /// Ends the server. Returns its warnings and errors.
    fn end(self) -> Vec<String> {
        self.server.signal(Signal::SIGTERM);
        let (status, log) = self.server.end();
        assert!(status.success(), "{log}");
        let lines = log
            .lines()
            .filter(|line| line.contains("WARN") || line.contains("ERROR"));
        lines.map(str::to_owned).collect()
    }
}

/// A fault of a file or its path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    PathVanishes,
    Vanishes,
    Shrinks,
    Grows,
    IsWrittenTo,
    BecomesSymlink,
    BecomesDirectory,
    IsReplaced,
}

const FAULTS: [(Fault, &str); 8] = [
    (Fault::PathVanishes, "aaa-path-vanishes"),
    (Fault::Vanishes, "bbb-vanishes"),
    (Fault::Shrinks, "ccc-shrinks"),
    (Fault::Grows, "ddd-grows"),
    (Fault::IsWrittenTo, "eee-is-written-to"),
    (Fault::BecomesSymlink, "fff-becomes-symlink"),
    (Fault::BecomesDirectory, "ggg-becomes-directory"),
    (Fault::IsReplaced, "hhh-is-replaced"),
];

/// An injected fault that can be repaired.
struct Injected {
    fault: Fault,
    /// The file or path that is moved or written to.
    place: PathBuf,
    aside: PathBuf,
    content: Vec<u8>,
    mtime: SystemTime,
}

impl Fault {
    /// Whether the fault affects the open file, not only its name.
    fn is_in_place(self) -> bool {
        matches!(self, Self::Shrinks | Self::Grows | Self::IsWrittenTo)
    }

    fn inject(self, store: &SmallStore, path: &str, file: &str) -> Injected {
        let place = match self {
            Self::PathVanishes => store.store().join(path),
            _ => store.store().join(file),
        };
        let injected = Injected {
            fault: self,
            aside: store.root().join("aside"),
            content: fs::read(&place).unwrap_or_default(),
            mtime: fs::metadata(&place).unwrap().modified().unwrap(),
            place,
        };
        injected.apply(store);
        injected
    }
}

impl Injected {
    fn apply(&self, store: &SmallStore) {
        let (place, len) = (&self.place, self.content.len());
        if !self.fault.is_in_place() {
            fs::rename(place, &self.aside).unwrap();
        }
        match self.fault {
            Fault::PathVanishes | Fault::Vanishes => {}
            Fault::Shrinks => set_len(place, len as u64 / 2),
            Fault::Grows => set_len(place, len as u64 + 1),
            Fault::IsWrittenTo => fs::write(place, vec![0xbd; len]).unwrap(),
            Fault::BecomesSymlink => {
                // A symlink to a file outside, which has the planned attributes in every respect except its contents.
                let outside = store.root().join("outside");
                fs::write(&outside, vec![0xbd; len]).unwrap();
                File::options()
                    .write(true)
                    .open(&outside)
                    .unwrap()
                    .set_modified(self.mtime)
                    .unwrap();
                symlink(&outside, place).unwrap();
            }
            Fault::BecomesDirectory => fs::create_dir(place).unwrap(),
            Fault::IsReplaced => fs::write(place, vec![0xbd; len]).unwrap(),
        }
    }

    fn heal(self) {
        let place = &self.place;
        match self.fault {
            Fault::PathVanishes | Fault::Vanishes => {}
            Fault::Shrinks | Fault::Grows | Fault::IsWrittenTo => {
                fs::write(place, &self.content).unwrap();
                let file = File::options().write(true).open(place).unwrap();
                return file.set_modified(self.mtime).unwrap();
            }
            Fault::BecomesDirectory => fs::remove_dir(place).unwrap(),
            Fault::BecomesSymlink | Fault::IsReplaced => fs::remove_file(place).unwrap(),
        }
        fs::rename(&self.aside, place).unwrap();
    }
}

fn set_len(path: &Path, len: u64) {
    File::options()
        .write(true)
        .open(path)
        .unwrap()
        .set_len(len)
        .unwrap();
}

fn new_store() -> SmallStore {
    let names: Vec<&str> = FAULTS
        .iter()
        .map(|(_, name)| *name)
        .chain([NEIGHBOUR])
        .collect();
    SmallStore::new(&names)
}

/// Checks that the log has a line about each of the paths, and few lines: each fault may be logged by the socket's worker
/// and by the file's.
fn check_log(log: &[String], paths: &[&str]) {
    for path in paths {
        let about = log.iter().filter(|line| line.contains(path)).count();
        assert!(about > 0, "nothing about {path}: {log:#?}");
    }
    assert!(!log.iter().any(|line| line.contains(NEIGHBOUR)), "{log:#?}");
}

/// The file has not been opened before the fault.
#[test]
#[ignore = "needs root and /dev/fuse"]
fn a_fault_in_an_unread_file_is_an_error_until_it_is_repaired() {
    let store = new_store();
    let served = Served::start(&store, &store.image(), &[], &store.args());
    let readers = served.readers();
    let mut count = 0;
    for (fault, path) in FAULTS {
        let file = served.file(&format!("{path}/lib/file40000"));
        let planned = served.file(&format!("{path}/lib/file900"));
        if fault != Fault::PathVanishes {
            // The path is planned, but the file was never opened.
            readers
                .iter()
                .for_each(|reader| assert_eq!(reader.look(planned), Found::Right));
        }
        let injected = fault.inject(&store, path, &file.path);
        for reader in &readers {
            let found = reader.look(file);
            // A path that was only renamed is still in the workers' mount namespace, if there is one.
            let is_there = fault == Fault::PathVanishes && found == Found::Right;
            assert!(is_there || found == Found::Error, "{fault:?}");
            served.check_path(reader, NEIGHBOUR);
            count += usize::from(!is_there);
        }
        injected.heal();
        for reader in &readers {
            served.check_path(reader, path);
        }
    }
    println!("{count} faults, {count} errors, {count} times right again");
    assert!(count >= 2 * (FAULTS.len() - 1));
    drop(readers);
    let log = served.end();
    let errors = FAULTS
        .iter()
        .filter(|(fault, _)| *fault != Fault::PathVanishes);
    let errors: Vec<&str> = errors.map(|(_, path)| *path).collect();
    check_log(&log, &errors);
    assert!(log.len() <= 3 * count, "{log:#?}");
}

/// Everything is planned and open before the fault. Reads are right or errors. A file that differs from its plan soon
/// becomes an error.
#[test]
#[ignore = "needs root and /dev/fuse"]
fn a_fault_in_an_open_file_is_an_error_until_it_is_repaired() {
    let store = new_store();
    let served = Served::start(&store, &store.image(), &[], &store.args());
    let readers = served.readers();
    let (mut errors, mut right) = (0, 0);
    for (fault, path) in FAULTS {
        let file = served.file(&format!("{path}/lib/file40000"));
        for reader in &readers {
            served.check_path(reader, path);
        }
        let injected = fault.inject(&store, path, &file.path);
        for reader in &readers {
            if fault.is_in_place() {
                wait_for("an error", || {
                    reader.range(&file.range).is_err().then_some(())
                });
                assert_eq!(reader.look(file), Found::Error);
                errors += 1;
            } else {
                // The file that is open is still the one that was planned.
                right += i32::from(reader.look(file) == Found::Right);
            }
            served.check_path(reader, NEIGHBOUR);
        }
        injected.heal();
        for reader in &readers {
            served.check_path(reader, path);
        }
    }
    println!("{errors} faults noticed in open files, {right} times an open file outlived its name");
    assert_eq!((errors, right), (6, 10));
    drop(readers);
    check_log(
        &served.end(),
        &["ccc-shrinks", "ddd-grows", "eee-is-written-to"],
    );
}

#[test]
#[ignore = "needs root and /dev/fuse"]
fn a_wrong_nar_size_makes_only_that_path_fail() {
    let store = new_store();
    store.register(&BTreeMap::from([("ccc-shrinks", 200)]));
    let image = store.image();
    let regions = image.space().regions();
    let region = |path: &str| {
        let found = regions
            .iter()
            .find(|region| &*region.name == path.as_bytes());
        found.unwrap()
    };
    let data = 4096 * u64::from(region("ccc-shrinks").data.start);
    let place = Place::new();
    let mount = place.path().to_str().unwrap();
    let server = Server::start_after(&[], &store.args(), &["--fuse", mount]);
    let file = place.path().join("nix-store.img");
    let readers = [Reader::socket(&server.socket), Reader::file(&file)];
    let mut count = 0;
    for reader in &readers {
        for _ in 0..10 {
            assert!(reader.range(&(data..data + 512)).is_err());
            count += 1;
        }
        for path in ["bbb-vanishes", "ddd-grows"] {
            let files = store.files_of(&image, region(path));
            let right = |file: &FileOnDisk| assert_eq!(reader.look(file), Found::Right);
            assert_eq!(files.iter().map(right).count(), 7);
        }
    }
    drop(readers);
    server.signal(Signal::SIGTERM);
    let (_, log) = server.end();
    let lines = log.lines().filter(|line| line.contains("ccc-shrinks"));
    let lines: Vec<&str> = lines.collect();
    println!(
        "{count} reads of a path that outgrew its NAR size, {} lines",
        lines.len()
    );
    assert!(
        lines
            .iter()
            .all(|line| line.contains("the registration is wrong")),
        "{log}"
    );
    assert!((2..=8).contains(&lines.len()), "{log}");
}

/// Served by another user, because root can read everything.
#[test]
#[ignore = "needs root"]
fn unreadable_files_are_errors_until_they_are_readable() {
    let store = new_store();
    fs::set_permissions(store.root(), Permissions::from_mode(0o755)).unwrap();
    let image = store.image();
    let bin = tempfile::tempdir().unwrap();
    let socket = bin.path().join("disk.sock");
    let program = bin.path().join("lazystore");
    fs::set_permissions(bin.path(), Permissions::from_mode(0o777)).unwrap();
    copy_program(&program);
    let server = resources::start_as_nobody(&program, &store.args(), &socket);
    let files = store.files(&image);
    let reader = Reader::socket(&socket);
    let look = |path: &str| reader.look(files.iter().find(|file| file.path == path).unwrap());
    let (file, dir) = ("aaa-path-vanishes/lib/file40000", "bbb-vanishes/lib");
    let mut count = 0;
    for place in [file, dir] {
        let place = store.store().join(place);
        let mode = fs::metadata(&place).unwrap().permissions();
        fs::set_permissions(&place, Permissions::from_mode(0o000)).unwrap();
        let inside = if place.ends_with("lib") {
            "bbb-vanishes/lib/file40000"
        } else {
            file
        };
        assert_eq!(look(inside), Found::Error);
        assert_eq!(look("zzz-neighbour/lib/file40000"), Found::Right);
        count += 1;
        fs::set_permissions(&place, mode).unwrap();
        assert_eq!(look(inside), Found::Right);
    }
    println!("{count} times without permission, {count} errors, {count} times right again");
    drop(reader);
    let log = server.end();
    for path in ["aaa-path-vanishes", "bbb-vanishes"] {
        let is_refusal = |line: &str| line.contains(path) && line.contains("Permission denied");
        assert!(log.lines().any(is_refusal), "{log}");
    }
}

/// A failing host disk: errors of file data and of directories.
#[test]
#[ignore = "needs root and /dev/fuse"]
fn a_failing_host_disk_is_an_error_until_it_works() {
    let store = new_store();
    let image = store.image();
    let flaky = Flaky::mount(store.root());
    let mount = flaky.path().to_str().unwrap();
    let closure = ["--closure-info", mount, "--store-root", mount].map(str::to_owned);
    let served = Served::start(&store, &image, &[], &closure);
    let readers = served.readers();
    let mut count = 0;
    for (round, (_, path)) in FAULTS.into_iter().enumerate() {
        let file = served.file(&format!("{path}/lib/file40000"));
        let (data, names) = (&flaky.switch.data, &flaky.switch.names);
        if round % 2 == 0 {
            readers
                .iter()
                .for_each(|reader| served.check_path(reader, path));
            data.store(true, Ordering::Relaxed);
        } else {
            names.store(true, Ordering::Relaxed);
        }
        for reader in &readers {
            assert_eq!(reader.look(file), Found::Error);
            count += 1;
        }
        data.store(false, Ordering::Relaxed);
        names.store(false, Ordering::Relaxed);
        readers
            .iter()
            .for_each(|reader| served.check_path(reader, path));
    }
    let failed = flaky.switch.failed.load(Ordering::Relaxed);
    println!(
        "{failed} times EIO from the disk, {count} reads failed, all of them right afterwards"
    );
    assert!(failed >= count);
    drop(readers);
    check_log(&served.end(), &FAULTS.map(|(_, path)| path));
}
