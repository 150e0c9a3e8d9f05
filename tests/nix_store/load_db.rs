//! `--with-registration`: a guest's Nix can load .lazystore/registration.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::mount::{UnmountFlags, unmount};

use crate::common::fuse::{Place, Server, mount_file, mount_loop, run};
use crate::common::nix::{ChrootStore, nix_store, stdin, succeed};
use crate::common::tool;

const LAZYSTORE: &str = env!("CARGO_BIN_EXE_lazystore");

/// A store, and the arguments for the closure of `app`, which has `paths` paths.
struct Fixture {
    store: ChrootStore,
    app: String,
    paths: usize,
}

impl Fixture {
    /// Adds `more` paths, to make the registration longer.
    fn new(more: usize) -> Self {
        let store = ChrootStore::new();
        let base = store.add_dir("base", &[]);
        let files = store.add_many(more);
        let references: Vec<&str> = [&base]
            .into_iter()
            .chain(&files)
            .map(String::as_str)
            .collect();
        let app = store.add_dir("app", &references);
        store.add_dir("not-in-the-closure", &[&base]);
        let paths = more + 2;
        Self { store, app, paths }
    }

    fn args(&self) -> Vec<OsString> {
        let root = self.store.root().into_os_string();
        let args = ["--store-root".into(), root, self.app.clone().into()];
        args.into_iter()
            .chain(["--with-registration".into()])
            .collect()
    }

    fn closure(&self) -> Vec<String> {
        self.store.lines(&["-qR", &self.app])
    }
}

/// `registration` on a mounted disk.
fn registration(mounted: &Place) -> PathBuf {
    mounted.path().join(".lazystore/registration")
}

/// A mount. Dropping it unmounts.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

/// Mounts `lower` at `root`/nix/store, below a writable layer like in a guest.
fn overlay(lower: &Path, work: &Path, root: &Path) -> Mounted {
    let store = root.join("nix/store");
    let (upper, work) = (work.join("upper"), work.join("work"));
    for dir in [&store, &upper, &work] {
        fs::create_dir_all(dir).unwrap();
    }
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        lower.display(),
        upper.display(),
        work.display()
    );
    run(Command::new(tool("mount", "mount"))
        .args(["-t", "overlay", "overlay", "-o", &options])
        .arg(&store));
    Mounted(store)
}

#[test]
#[ignore = "needs Nix"]
fn another_nix_knows_the_closure_from_the_disk() {
    let fixture = Fixture::new(30);
    let server = Server::start(&fixture.args());
    let mounted = mount_loop(&server.image());
    // tmpfs, because overlayfs does not support every file system as its upper layer.
    let work = Place::new();
    run(Command::new(tool("mount", "mount"))
        .args(["-t", "tmpfs", "tmpfs"])
        .arg(work.path()));
    let root = Place::new();
    let store = overlay(mounted.path(), work.path(), root.path());
    let home = fixture.store.path("home");
    let ask = |args: &[&str]| succeed(&mut nix_store(root.path(), &home, args)).stdout;
    let mut load = nix_store(root.path(), &home, &["--load-db"]);
    succeed(load.stdin(stdin(&store.0.join(".lazystore/registration"))));

    let closure = fixture.closure();
    assert_eq!(closure.len(), fixture.paths);
    let theirs = String::from_utf8(ask(&["-qR", &fixture.app])).unwrap();
    assert_eq!(theirs.lines().collect::<Vec<_>>(), closure);
    for query in ["--references", "--hash", "--size", "--deriver"] {
        for path in &closure {
            let ours = fixture.store.lines(&["-q", query, path]).join("\n");
            let theirs = String::from_utf8(ask(&["-q", query, path])).unwrap();
            assert_eq!(theirs.trim_end(), ours, "{query} {path}");
        }
    }
    ask(&["--verify", "--check-contents"]);
    ask(&["--verify-path", &fixture.app]);
}

#[test]
#[ignore = "needs Nix"]
fn the_registration_on_the_disk_is_the_same_for_all_readers() {
    // The registration is inlined, in one block, or in many.
    for more in [0, 3, 300] {
        let fixture = Fixture::new(more);
        let args = fixture.args();
        let verified = Command::new(LAZYSTORE)
            .arg("verify")
            .args(&args)
            .output()
            .unwrap();
        let stdout = String::from_utf8_lossy(&verified.stdout);
        assert!(stdout.contains("no differences"), "{verified:?}");
        let server = Server::start(&args);
        let [one, other] = [mount_loop(&server.image()), mount_file(&server.image())];
        let text = fs::read(registration(&one)).unwrap();
        assert_eq!(fs::read(registration(&other)).unwrap(), text);
        assert_eq!(
            text.split(|b| *b == b'\n')
                .filter(|l| l.starts_with(b"sha256:"))
                .count(),
            fixture.paths
        );
        check_copies(&server.image(), &text, &fixture.store);
        // Lists give the same disk.
        let (list, registered) = fixture.store.write_lists(&[&fixture.app]);
        let root = fixture.store.root();
        let lists = Server::start(&[
            "--store-paths".as_ref(),
            list.as_os_str(),
            "--registration".as_ref(),
            registered.as_os_str(),
            "--store-root".as_ref(),
            root.as_os_str(),
            "--with-registration".as_ref(),
        ]);
        let mounted = mount_loop(&lists.image());
        assert_eq!(fs::read(registration(&mounted)).unwrap(), text);
    }
}

/// Makes a sparse copy of the disk with `SEEK_DATA`. Returns what fsck.erofs extracts from it.
fn check_copies(image: &Path, text: &[u8], store: &ChrootStore) {
    let (copy, out) = (store.path("copy.img"), store.path("extracted"));
    run(Command::new(tool("cp", "coreutils"))
        .arg("--sparse=always")
        .args([image, &copy]));
    let extract = format!("--extract={}", out.display());
    run(Command::new(tool("fsck.erofs", "erofs-utils"))
        .arg(extract)
        .arg(&copy));
    assert_eq!(fs::read(out.join(".lazystore/registration")).unwrap(), text);
}

fn refused(args: &[&str], store: &ChrootStore) -> String {
    let output = Command::new(LAZYSTORE)
        .args(["inspect", "--with-registration", "--store-root"])
        .arg(store.root())
        .args(args)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
#[ignore = "needs Nix"]
fn an_incomplete_list_or_registration_is_refused() {
    let fixture = Fixture::new(1);
    let store = &fixture.store;
    let (list, registration) = store.write_lists(&[&fixture.app]);
    let text = refused(&["--store-paths", list.to_str().unwrap()], store);
    assert!(
        text.contains("nothing is registered of") && text.contains("--registration"),
        "{text}"
    );
    fs::write(&list, &fixture.app).unwrap();
    let args = ["--store-paths", list.to_str().unwrap()];
    let args = [
        &args[..],
        &["--registration", registration.to_str().unwrap()],
    ]
    .concat();
    let text = refused(&args, store);
    assert!(
        text.contains(&format!("{} refers to /nix/store/", fixture.app)),
        "{text}"
    );
    assert!(text.contains("nix-store -qR"), "{text}");
}
