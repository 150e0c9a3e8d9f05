//! The cache directory: its limit, several servers that share it, a full disk; and what goes on without a network.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use rustix::mount::{UnmountFlags, unmount};

use super::{NAMES, first_file, requests};
use crate::common::client::Client;
use crate::common::http::{Fault, HttpServer};
use crate::common::proc::named;
use crate::common::process::wait_for;
use crate::common::remote::{RemoteStore, assert_same};
use crate::watching::status_json;

const EIO: i32 = -5;

fn nars(store: &RemoteStore) -> usize {
    fs::read_dir(store.cache_dir().join("nars"))
        .unwrap()
        .count()
}

#[test]
#[ignore = "needs root: a real client locks memory"]
fn the_least_recently_used_nars_are_evicted_but_none_in_use() {
    let store = RemoteStore::new(&NAMES);
    let tree = store.trees().join(&store.paths[0].name).join("share");
    let alone = store.cache.add("alone", &tree, &[]);
    let http = HttpServer::start(&store.cache.dir);
    let mut args = store.args(&[&http.url()]);
    args[0] = alone.path();
    let mut verify = Command::new(env!("CARGO_BIN_EXE_lazystore"));
    let output = verify.arg("verify").args(&args).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let kept = fs::read_dir(store.cache_dir().join("nars")).unwrap();
    let kept: Vec<PathBuf> = kept.map(|entry| entry.unwrap().path()).collect();
    assert_eq!(kept.len(), 1);
    for role in ["keeper", "spare keeper", "fetcher"] {
        let ended = || named(role, &store.cache_dir()).is_none().then_some(());
        wait_for("its end", ended);
    }
    let image = store.expected();
    let server = store.serve(&[&http.url()], &["--cache-size", "1"]);
    assert_same(&mut Client::start(&server.socket, 1), &image);
    assert_eq!(nars(&store), NAMES.len());
    assert!(!kept[0].exists());
    let before = requests(&http, ".nar").len();
    assert_same(&mut Client::start(&server.socket, 1), &image);
    assert_eq!(requests(&http, ".nar").len(), before);
}

#[test]
#[ignore = "needs root: a real client locks memory"]
fn two_servers_that_share_a_cache_fetch_each_nar_once() {
    let store = RemoteStore::new(&NAMES);
    let http = HttpServer::start(&store.cache.dir);
    let servers = [(); 2].map(|()| store.serve(&[&http.url()], &[]));
    thread::scope(|scope| {
        for server in &servers {
            let read = || assert_same(&mut Client::start(&server.socket, 1), &store.expected());
            scope.spawn(read);
        }
    });
    for end in [".nar", ".ls"] {
        assert_eq!(requests(&http, end).len(), NAMES.len());
    }
    let fetched = servers.each_ref().map(|server| {
        let told = status_json(&server.socket);
        told["fetched"]["nars"].as_u64().unwrap()
    });
    assert_eq!(fetched.iter().sum::<u64>(), NAMES.len() as u64);
}

#[test]
#[ignore = "needs root: a real client locks memory"]
fn without_a_network_kept_paths_are_read_and_others_are_errors() {
    let store = RemoteStore::new(&NAMES);
    let http = HttpServer::start(&store.cache.dir);
    let server = store.serve(&[&http.url()], &[]);
    let mut client = Client::start(&server.socket, 1);
    assert_eq!(first_file(&store, &mut client, 0), Ok(()));
    drop(http);
    let mut other = Client::start(&server.socket, 1);
    for client in [&mut client, &mut other] {
        assert_eq!(first_file(&store, client, 0), Ok(()));
        assert_eq!(first_file(&store, client, 1), Err(EIO));
        assert_eq!(first_file(&store, client, 0), Ok(()));
    }
}

#[test]
#[ignore = "needs root: a real client locks memory"]
fn failed_fetches_are_retried_later() {
    let store = RemoteStore::new(&NAMES);
    let http = HttpServer::start(&store.cache.dir);
    http.fault(
        &format!("nar/{}", store.paths[1].hash()),
        Fault::Status(500),
    );
    let server = store.serve(&[&http.url()], &[]);
    let mut client = Client::start(&server.socket, 1);
    assert_eq!(first_file(&store, &mut client, 1), Err(EIO));
    http.heal();
    wait_for("another try", || first_file(&store, &mut client, 1).ok());
}

#[test]
#[ignore = "needs root: a real client locks memory"]
fn a_slow_nar_does_not_delay_other_reads() {
    let store = RemoteStore::new(&NAMES);
    let http = HttpServer::start(&store.cache.dir);
    let slow = Fault::Slow(100, std::time::Duration::from_millis(20));
    http.fault(&format!("nar/{}", store.paths[1].hash()), slow);
    let server = store.serve(&[&http.url()], &[]);
    thread::scope(|scope| {
        let reads = [1, 0, 2, 3, 1].map(|path| {
            let (store, socket) = (&store, &server.socket);
            scope.spawn(move || first_file(store, &mut Client::start(socket, 1), path))
        });
        for read in reads {
            assert_eq!(read.join().unwrap(), Ok(()));
        }
    });
    assert_eq!(requests(&http, ".nar").len(), NAMES.len());
}

/// A file system of `size` at `path`. Dropping it unmounts.
struct SmallDisk<'p>(&'p Path);

impl<'p> SmallDisk<'p> {
    fn new(path: &'p Path, size: &str) -> Self {
        fs::create_dir_all(path).unwrap();
        mount(&format!("size={size}"), path);
        Self(path)
    }

    fn grow(&self, size: &str) {
        mount(&format!("remount,size={size}"), self.0);
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        let _ = unmount(self.0, UnmountFlags::DETACH);
    }
}

fn mount(options: &str, path: &Path) {
    let mut mount = Command::new("mount");
    mount
        .args(["-t", "tmpfs", "-o", options, "tmpfs"])
        .arg(path);
    assert!(mount.status().unwrap().success());
}

#[test]
#[ignore = "needs root: mounts a small file system"]
fn a_full_disk_is_an_error_and_leaves_no_partial_nar() {
    let store = RemoteStore::new(&NAMES);
    let dir = store.cache_dir();
    // There is space for one of four NARs.
    let disk = SmallDisk::new(&dir, "600k");
    let http = HttpServer::start(&store.cache.dir);
    let server = store.serve(&[&http.url()], &[]);
    let mut client = Client::start(&server.socket, 1);
    let found: Vec<_> = (0..4)
        .map(|path| first_file(&store, &mut client, path))
        .collect();
    assert_eq!(found, [Ok(()), Err(EIO), Err(EIO), Err(EIO)]);
    assert_eq!(nars(&store), 1);
    assert_eq!(fs::read_dir(dir.join("tmp")).unwrap().count(), 0);
    disk.grow("10m");
    for path in 0..4 {
        wait_for("room", || first_file(&store, &mut client, path).ok());
    }
    assert_same(&mut client, &store.expected());
    drop((client, server));
}
