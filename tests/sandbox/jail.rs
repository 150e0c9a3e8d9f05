//! What a worker can see of the host.

use std::fs;
use std::path::{Path, PathBuf};

use super::attempt;
use super::first_data;
use super::served::{Served, store, store_args};
use crate::common::client::Client;

const USER: u32 = 65534;

/// The names in a directory.
fn names(dir: &str) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.collect();
    names.sort();
    names
}

/// The directories to which a process has descriptors.
fn open_dirs(pid: u32) -> Vec<PathBuf> {
    let open = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let open = open.map(|entry| entry.unwrap().path());
    let dirs = open.filter(|link| fs::metadata(link).is_ok_and(|file| file.is_dir()));
    dirs.map(|link| fs::read_link(link).unwrap()).collect()
}

/// Reads the disk through a worker, and then examines that worker.
fn assert_jailed(server: &Served) {
    let mut client = Client::start(server.socket(), 1);
    assert!(client.read(0, &[(128 << 30, 8192)]).remove(0).unwrap() == [7; 8192]);
    let pid = server.worker();
    assert_eq!(names(&format!("/proc/{pid}/root")), ["store"]);
    let served = ["aaa-path", "file-path", "link-path"];
    assert_eq!(names(&format!("/proc/{pid}/root/store")), served);
    assert_eq!(open_dirs(pid), [Path::new("/store")]);
    let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
    assert_eq!(mounts.lines().count(), 1 + served.len(), "{mounts}");
    for mount in mounts.lines() {
        assert!(mount.contains(" ro,nosuid,nodev,noexec"), "{mount}");
    }
}

#[test]
#[ignore = "needs root"]
fn workers_see_only_served_paths() {
    let store = store();
    assert_jailed(&Served::at_socket(&store_args(store.path()), store.path()));
    assert_jailed(&Served::by_user(
        USER,
        &store_args(store.path()),
        store.path(),
    ));
}

/// Regression: a user's limit of namespaces ended every worker, although the jail existed.
#[test]
#[ignore = "needs root"]
fn workers_without_their_own_namespace_are_still_in_the_jail() {
    let store = store();
    let (args, few) = (store_args(store.path()), attempt::FEW_NAMESPACES);
    let server = Served::by_users_attempt(USER, few, &args, store.path());
    assert_jailed(&server);
}

#[test]
#[ignore = "needs root and /dev/fuse"]
fn the_worker_of_a_mount_sees_only_served_paths() {
    let store = store();
    let server = Served::as_file(&store_args(store.path()), store.path());
    let pid = server.worker();
    assert_eq!(names(&format!("/proc/{pid}/root")), ["store"]);
    assert_eq!(open_dirs(pid), [Path::new("/store")]);
}

#[test]
fn without_namespaces_a_warning_is_logged_and_the_disk_is_served() {
    let tree = tempfile::tempdir().unwrap();
    fs::write(tree.path().join("file"), [9; 8192]).unwrap();
    let args = vec!["--tree".into(), tree.path().into()];
    let server = Served::by_attempt(attempt::NO_NAMESPACES, &args, tree.path());
    for _ in 0..3 {
        assert!(first_data(server.socket(), 8192) == [9; 8192]);
    }
    let (status, log) = server.end();
    assert!(status.success(), "{log}");
    assert_eq!(log.matches("no mount namespace").count(), 1, "{log}");
}
