//! Reading the database gives the same results as `nix-store`, for every user and while it is being written.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use lazystore::closure::{Graph, Source, StoreLocation};
use rusqlite::Connection;

use crate::common::nix::{ChrootStore, NIX_CONFIG};
use crate::common::process::{copy_program, wait_for_listener};
use crate::common::tool;

const LAZYSTORE: &str = env!("CARGO_BIN_EXE_lazystore");
/// The user `nobody`.
const NOBODY: &str = "65534";

/// `app` refers to `lib`, which refers to `base`. `other` and `plain` have no references.
struct Fixture {
    store: ChrootStore,
    base: String,
    lib: String,
    app: String,
    other: String,
}

impl Fixture {
    fn new() -> Self {
        let store = ChrootStore::new();
        let base = store.add_dir("base", &[]);
        let lib = store.add_dir("lib", &[&base]);
        let app = store.add_dir("app", &[&lib, &base]);
        let other = store.add_dir("other", &[&base]);
        store.add("plain", "plain");
        Self {
            store,
            base,
            lib,
            app,
            other,
        }
    }

    fn location(&self) -> StoreLocation {
        StoreLocation {
            store_root: Some(self.store.root()),
            ..StoreLocation::default()
        }
    }

    fn database_graph(&self, roots: &[PathBuf]) -> Graph {
        Graph::load(&Source::Roots(roots.to_vec()), &self.location()).unwrap()
    }

    /// The closure according to `nix-store`.
    fn lists_graph(&self, roots: &[&str]) -> Graph {
        let (list, registration) = self.store.write_lists(roots);
        let source = Source::StorePaths {
            list,
            registration: Some(registration),
        };
        Graph::load(&source, &self.location()).unwrap()
    }

    fn database(&self) -> PathBuf {
        self.location().database()
    }

    /// `lazystore inspect ARGS` on this store, as a user who can only read it.
    fn inspect_as_nobody(&self, args: &[&str]) -> Output {
        let copy = self.store.path("lazystore");
        if !copy.exists() {
            copy_program(&copy);
            fs::set_permissions(self.store.path("."), Permissions::from_mode(0o755)).unwrap();
        }
        Command::new(tool("setpriv", "util-linux"))
            .args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"])
            .arg(copy)
            .args(["inspect", "--json", "--store-root"])
            .arg(self.store.root())
            .args(args)
            .output()
            .unwrap()
    }

    /// The paths that `nobody` gets.
    fn seen_by_nobody(&self, args: &[&str]) -> Vec<String> {
        let output = self.inspect_as_nobody(args);
        assert!(output.status.success(), "{output:?}");
        let map: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let paths = map["paths"].as_array().unwrap().iter();
        paths
            .map(|path| path["path"].as_str().unwrap().to_owned())
            .collect()
    }
}

fn sorted(paths: &[&String]) -> Vec<String> {
    let mut paths: Vec<String> = paths.iter().map(|path| (*path).clone()).collect();
    paths.sort();
    paths
}

#[test]
#[ignore = "needs Nix"]
fn roots_have_the_same_closure_as_in_nix_store() {
    let fixture = Fixture::new();
    let Fixture { store, app, .. } = &fixture;
    let before = store.database_files();
    let expected = fixture.lists_graph(&[app]);
    for link in ["result", "second"] {
        symlink(app, store.path(link)).unwrap();
    }
    for root in [
        PathBuf::from(app),
        store.physical(app).join("bin/tool"),
        store.path("result"),
    ] {
        assert_eq!(
            fixture.database_graph(std::slice::from_ref(&root)),
            expected,
            "{root:?}"
        );
    }
    let both = fixture.lists_graph(&[app, &fixture.other]);
    let roots = [
        store.path("result"),
        store.path("second"),
        PathBuf::from(&fixture.other),
    ];
    assert_eq!(fixture.database_graph(&roots), both);
    assert_eq!(store.database_files(), before, "nothing is left behind");
}

#[test]
#[ignore = "needs Nix"]
fn all_is_every_valid_path() {
    let fixture = Fixture::new();
    let all = fixture.store.lines(&["--dump-db"]);
    let everything: Vec<&str> = all
        .iter()
        .filter(|line| line.starts_with("/nix/store/"))
        .map(String::as_str)
        .collect();
    let expected = fixture.lists_graph(&everything);
    let found = Graph::load(&Source::All, &fixture.location()).unwrap();
    assert_eq!(found, expected);
    assert_eq!(
        found.minimal_roots().len(),
        3,
        "app, other and plain hold the rest"
    );
}

#[test]
#[ignore = "needs Nix"]
fn a_user_with_read_access_gets_the_same() {
    let fixture = Fixture::new();
    let before = fixture.store.database_files();
    let expected = sorted(&[&fixture.app, &fixture.lib, &fixture.base]);
    assert_eq!(fixture.seen_by_nobody(&[&fixture.app]), expected);
    assert_eq!(fixture.store.database_files(), before);
    // Another process has it open, and the last write is only in the WAL.
    let writer = Connection::open(fixture.database()).unwrap();
    writer.pragma_update(None, "wal_autocheckpoint", 0).unwrap();
    let added = add_reference(&writer, &fixture.base, &fixture.other);
    assert_eq!(added, 1);
    assert!(
        fixture
            .store
            .database_files()
            .iter()
            .any(|name| name == "db.sqlite-wal")
    );
    let expected = sorted(&[&fixture.app, &fixture.lib, &fixture.base, &fixture.other]);
    assert_eq!(fixture.seen_by_nobody(&[&fixture.app]), expected);
}

fn add_reference(writer: &Connection, from: &str, to: &str) -> usize {
    let id = "(SELECT id FROM ValidPaths WHERE path = ?)";
    let insert = format!("INSERT INTO Refs (referrer, reference) SELECT {id}, {id}");
    let insert = insert.replacen('?', "?1", 1).replacen("= ?)", "= ?2)", 1);
    writer.execute(&insert, [from, to]).unwrap()
}

#[test]
#[ignore = "needs Nix"]
fn a_database_without_a_wal_is_read() {
    let fixture = Fixture::new();
    let expected = fixture.lists_graph(&[&fixture.app]);
    let writer = Connection::open(fixture.database()).unwrap();
    writer
        .pragma_update(None, "journal_mode", "TRUNCATE")
        .unwrap();
    let app = PathBuf::from(&fixture.app);
    assert_eq!(fixture.database_graph(&[app]), expected);
    let expected = sorted(&[&fixture.app, &fixture.lib, &fixture.base]);
    assert_eq!(fixture.seen_by_nobody(&[&fixture.app]), expected);
}

#[test]
#[ignore = "needs Nix"]
fn a_store_is_read_consistently_while_paths_are_added() {
    const ADDED: usize = 12;
    let fixture = Fixture::new();
    let done = AtomicBool::new(false);
    let (mut reads, mut seen) = (0, Vec::new());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // For each path, Nix opens, writes, checkpoints and closes the database.
            for number in 0..ADDED {
                fixture
                    .store
                    .add_dir(&format!("new-{number}"), &[&fixture.app]);
            }
            done.store(true, Ordering::Relaxed);
        });
        while !done.load(Ordering::Relaxed) {
            let graph = Graph::load(&Source::All, &fixture.location()).unwrap();
            let registration = graph.registration().unwrap();
            let (app, text) = (
                fixture.app.as_str(),
                String::from_utf8(registration).unwrap(),
            );
            assert!(text.contains(app));
            seen.push(text.matches("-new-").count() > 0);
            reads += 1;
        }
    });
    println!("{reads} reads during {ADDED} additions");
    assert!(reads > ADDED, "{reads} reads are too few to meet a writer");
    assert!(seen.is_sorted() && seen.contains(&false) && seen.contains(&true));
    let last = Graph::load(&Source::All, &fixture.location()).unwrap();
    assert_eq!(last.minimal_roots().len(), ADDED + 2);
}

fn fails(args: &[&str], store_root: &Path) -> String {
    let output = Command::new(LAZYSTORE)
        .args(["inspect", "--store-root"])
        .arg(store_root)
        .args(args)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(text.trim_end().lines().count(), 1, "{text}");
    text
}

#[test]
#[ignore = "needs Nix"]
fn an_invalid_root_is_named_with_advice() {
    let fixture = Fixture::new();
    let gone = "/nix/store/00000000000000000000000000000000-gone";
    let root = fixture.store.root();
    let text = fails(&[gone, &fixture.app], &root);
    assert!(text.contains(&format!("{gone} is not valid")), "{text}");
    assert!(
        text.contains("--realise") && text.contains("--store-paths"),
        "{text}"
    );
    // It exists but is not registered, like the result of an interrupted build.
    fs::write(fixture.store.physical(gone), "").unwrap();
    assert!(fails(&[gone], &root).contains("is not valid"));
    let text = fails(&["/etc/hostname"], &root);
    assert!(
        text.contains("/etc/hostname is not in the store /nix/store"),
        "{text}"
    );
    let empty = tempfile::tempdir().unwrap();
    let text = fails(&[gone], empty.path());
    assert!(text.contains("there is no Nix database"), "{text}");
    assert_eq!(
        fs::read_dir(empty.path()).unwrap().count(),
        0,
        "and none is made"
    );
}

#[test]
#[ignore = "needs Nix"]
fn an_invalid_database_is_reported() {
    let fixture = Fixture::new();
    fs::write(
        fixture.database(),
        "this is not a database, but it is long enough",
    )
    .unwrap();
    let text = fails(&[&fixture.app], &fixture.store.root());
    assert!(text.contains("db.sqlite cannot be read: "), "{text}");
}

/// A daemon for a store whose database only root can read, in a mount namespace where the store is /nix.
struct Daemon(Child);

impl Daemon {
    fn start(store: &ChrootStore) -> Self {
        let mut child = in_its_place(store, "nix-daemon")
            .env("NIX_DAEMON_SOCKET_PATH", store.path("daemon.sock"))
            .env("NIX_CONFIG", NIX_CONFIG)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        wait_for_listener(&mut child, &store.path("daemon.sock"));
        Self(child)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A command that runs with the store at /nix.
pub fn in_its_place(store: &ChrootStore, program: &str) -> Command {
    let mut command = Command::new(tool("unshare", "util-linux"));
    // Debian's nix-bin does not create /nix.
    let script = "mkdir -p /nix && mount --bind \"$0\" /nix && exec \"$@\"";
    command.args(["--mount", "--propagation", "private", "sh", "-c", script]);
    command.arg(store.root().join("nix")).arg(program);
    command.env_remove("NIX_REMOTE");
    command.env("HOME", store.path("home"));
    command
}

#[test]
#[ignore = "needs Nix"]
fn without_access_to_the_database_the_daemon_is_asked() {
    let fixture = Fixture::new();
    let store = &fixture.store;
    let database = store.root().join("nix/var/nix/db");
    fs::set_permissions(&database, Permissions::from_mode(0o700)).unwrap();
    let text = fixture.inspect_as_nobody(&[&fixture.app]);
    let text = String::from_utf8(text.stderr).unwrap();
    assert!(
        text.contains("Permission denied") && text.contains("nix-store"),
        "{text}"
    );
    let _daemon = Daemon::start(store);
    let output = in_its_place(store, "setpriv")
        .args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"])
        .arg(store.path("lazystore"))
        .args(["verify", &fixture.app])
        .env("NIX_REMOTE", "daemon")
        .env("NIX_DAEMON_SOCKET_PATH", store.path("daemon.sock"))
        .env("HOME", "/nonexistent")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        text.contains("3 paths") && text.contains("3 NAR hashes"),
        "{output:?}"
    );
}
