//! Served paths are protected from garbage collection, and only while they are served.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use super::database::in_its_place;
use crate::common::nix::{ChrootStore, NIX_CONFIG, succeed};
use crate::common::process::first_line;

const LAZYSTORE: &str = env!("CARGO_BIN_EXE_lazystore");

/// `app` refers to `lib`. `other` is not served.
struct Fixture {
    store: ChrootStore,
    lib: String,
    app: String,
    other: String,
}

impl Fixture {
    fn new() -> Self {
        let store = ChrootStore::new();
        let lib = store.add_dir("lib", &[]);
        let app = store.add_dir("app", &[&lib]);
        let other = store.add_dir("other", &[&lib]);
        Self {
            store,
            lib,
            app,
            other,
        }
    }

    /// Which of app, lib and other exist.
    fn present(&self) -> [bool; 3] {
        [&self.app, &self.lib, &self.other].map(|path| self.store.physical(path).exists())
    }

    /// Serves, collects garbage, ends the server with `signal`, and collects garbage again.
    fn check(&self, serve: Command, collect: impl Fn(), signal: Signal) {
        let mut server = Server::start(serve, &self.store.path("socket"));
        collect();
        assert_eq!(self.present(), [true, true, false], "while it is served");
        server.stop(signal);
        collect();
        assert_eq!(self.present(), [false; 3], "after the end");
    }
}

struct Server(Child);

impl Server {
    fn start(mut command: Command, socket: &Path) -> Self {
        let child = command
            .arg("--vhost-user")
            .arg(socket)
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut server = Self(child.spawn().unwrap());
        let ready = first_line(&mut server.0);
        assert!(ready.starts_with("ready "), "{ready}");
        server
    }

    fn stop(&mut self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
#[ignore = "needs Nix"]
fn garbage_collection_in_a_chroot_store_keeps_served_paths() {
    for signal in [Signal::TERM, Signal::KILL] {
        let fixture = Fixture::new();
        let mut serve = Command::new(LAZYSTORE);
        serve.arg("serve").arg(&fixture.app);
        serve.arg("--store-root").arg(fixture.store.root());
        fixture.check(serve, || fixture.store.collect_garbage(), signal);
        let left = fixture.store.root().join("nix/var/nix/temproots");
        assert_eq!(std::fs::read_dir(left).unwrap().count(), 0);
    }
}

/// Runs the test with the store at /nix, where the collector finds descriptors. `args` are for `lazystore serve`.
fn check_in_its_place(fixture: &Fixture, args: &[&str]) {
    let store = &fixture.store;
    let mut serve = in_its_place(store, LAZYSTORE);
    serve.arg("serve").args(args);
    let collect = || {
        let mut collect = in_its_place(store, "nix-store");
        succeed(collect.arg("--gc").env("NIX_CONFIG", NIX_CONFIG));
    };
    fixture.check(serve, collect, Signal::KILL);
}

#[test]
#[ignore = "needs Nix"]
fn roots_are_protected_from_garbage_collection() {
    let fixture = Fixture::new();
    check_in_its_place(&fixture, &[&fixture.app]);
}

#[test]
#[ignore = "needs Nix"]
fn listed_paths_are_protected_with_and_without_a_registration() {
    for with in [true, false] {
        let fixture = Fixture::new();
        let (list, registration) = fixture.store.write_lists(&[&fixture.app]);
        let (list, registration) = (list.to_str().unwrap(), registration.to_str().unwrap());
        let args = ["--store-paths", list, "--registration", registration];
        check_in_its_place(&fixture, &args[..if with { 4 } else { 2 }]);
    }
}

#[test]
#[ignore = "needs Nix"]
fn unprotected_paths_cause_one_warning() {
    let store = ChrootStore::new();
    let paths = store.add_many(40);
    std::fs::write(store.path("list"), paths.join("\n")).unwrap();
    let mut limited = Command::new("prlimit");
    limited.args(["--nofile=64:64", LAZYSTORE, "inspect", "--store-root"]);
    limited
        .arg(store.root())
        .arg("--store-paths")
        .arg(store.path("list"));
    let output = succeed(&mut limited);
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(
        text.matches("of 40 store paths are not protected").count(),
        1,
        "{text}"
    );
}
