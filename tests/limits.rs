//! Greedy clients, temporary shortages, and signals: no other VM is affected, and nothing is left behind.

mod logged;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use nix::sys::signal::Signal;

use crate::common::client::Client;
use crate::common::frontend::{F_PROTOCOL_FEATURES, F_VERSION_1, Frontend, Guest};
use crate::common::process::wait_for;
use crate::common::server::{Server, command, tree};
use logged::Logged;

const ORDINARY: u64 = F_VERSION_1 | F_PROTOCOL_FEATURES;

/// `Read` requests (virtio-blk's `VIRTIO_BLK_T_IN`).
const READ: u32 = 0;

fn read_once(frontend: &Frontend, guest: &mut Guest) {
    guest.submit(0, READ, 2, 4096);
    frontend.kick();
    guest.wait();
    assert_eq!(guest.status(0), 0);
}

/// Regression: `--once` waited until a silent client disconnected, and did not serve the VM meanwhile.
#[test]
fn with_once_silent_clients_do_not_prevent_the_vm_from_connecting() {
    let tree = tree();
    let server = Server::start(tree.path(), &["--once"]);
    let mut silent: Vec<_> = (0..3)
        .map(|_| UnixStream::connect(&server.socket).unwrap())
        .collect();
    drop(Client::start(&server.socket, 1));
    let (status, log) = server.end();
    assert!(status.success(), "{log}");
    for stream in &mut silent {
        // The server closed the connection, not a timeout.
        assert!(matches!(stream.read(&mut [0]), Ok(0) | Err(_)));
    }
}

#[test]
fn a_silent_client_is_disconnected() {
    let tree = tree();
    let mut server = Server::start(tree.path(), &["--first-message-timeout", "1"]);
    let mut guest = Guest::new();
    let frontend = Frontend::start(&server.socket, &guest, ORDINARY);
    let mut silent = UnixStream::connect(&server.socket).unwrap();
    assert!(matches!(silent.read(&mut [0]), Ok(0) | Err(_)));
    // A client that has sent a message may be idle for any time.
    read_once(&frontend, &mut guest);
    assert!(server.is_running());
    server.signal(Signal::SIGTERM);
    let (_, log) = server.end();
    assert_eq!(
        log.matches("disconnected a client that sent no message")
            .count(),
        1,
        "{log}"
    );
}

#[test]
fn at_most_max_vms_are_served_at_once() {
    let tree = tree();
    let server = Logged::start(tree.path(), &["--max-vms", "2"]);
    let socket = &server.socket;
    let mut guest = Guest::new();
    let one = Frontend::start(socket, &guest, ORDINARY);
    let two = Frontend::connect(socket);
    two.negotiate(ORDINARY);
    // vhost-user's GET_FEATURES, version 1, without a payload: with it, each client counts as a VM.
    let get_features = [1u32, 1, 0].map(u32::to_ne_bytes);
    let mut waiting: Vec<_> = (0..5)
        .map(|_| UnixStream::connect(socket).unwrap())
        .collect();
    for stream in &mut waiting {
        stream.write_all(get_features.as_flattened()).unwrap();
    }
    // Enough time for a server without the limit to accept.
    (0..50).for_each(|_| read_once(&one, &mut guest));
    drop(one);
    waiting[0].read_exact(&mut [0; 20]).unwrap();
    // The client may get its reply before the parent receives the worker's message.
    server.wait_for_log("vm=3");
    let (_, log) = server.end(Signal::SIGTERM);
    let before = log.split("disconnected").next().unwrap();
    assert_eq!(before.matches("has connected").count(), 2, "{log}");
}

/// Regression: EMFILE ended the listener, and with it all VMs.
#[test]
fn a_temporary_shortage_of_descriptors_does_not_end_the_server() {
    let tree = tree();
    let server = Logged::start(tree.path(), &[]);
    let mut guest = Guest::new();
    let frontend = Frontend::start(&server.socket, &guest, ORDINARY);
    read_once(&frontend, &mut guest);
    let limit = server.limit_descriptors_to_open();
    let waiting = UnixStream::connect(&server.socket).unwrap();
    server.wait_for_log("cannot start a worker");
    read_once(&frontend, &mut guest);
    server.limit_descriptors(limit);
    drop(waiting);
    drop(Client::start(&server.socket, 1));
    read_once(&frontend, &mut guest);
    let (status, log) = server.end(Signal::SIGTERM);
    assert!(status.success(), "{log}");
}

/// Regression: a mount whose worker could not be restarted ended the listener, and with it all VMs.
#[test]
#[ignore = "needs root and /dev/fuse"]
fn a_mount_that_fails_temporarily_does_not_end_the_server() {
    let tree = tree();
    let dir = tempfile::tempdir().unwrap();
    let mount = dir.path().join("mount");
    fs::create_dir(&mount).unwrap();
    let server = Logged::start(tree.path(), &["--fuse", mount.to_str().unwrap()]);
    let file = mount.join("nix-store.img");
    assert!(file.exists());
    let mut guest = Guest::new();
    let frontend = Frontend::start(&server.socket, &guest, ORDINARY);
    read_once(&frontend, &mut guest);
    let limit = server.limit_descriptors_to_open();
    server.kill_first_worker();
    server.wait_for_log("cannot mount the file again");
    read_once(&frontend, &mut guest);
    server.limit_descriptors(limit);
    wait_for("the file", || file.exists().then_some(()));
    read_once(&frontend, &mut guest);
    let (status, log) = server.end(Signal::SIGTERM);
    assert!(status.success(), "{log}");
    assert_eq!(fs::read_dir(&mount).unwrap().count(), 0);
}

/// Regression: SIGHUP and SIGQUIT left the socket and a dead mount behind.
#[test]
#[ignore = "needs root and /dev/fuse"]
fn closing_the_terminal_removes_socket_and_mount() {
    let tree = tree();
    for signal in [Signal::SIGHUP, Signal::SIGQUIT] {
        let dir = tempfile::tempdir().unwrap();
        let mount = dir.path().join("mount");
        fs::create_dir(&mount).unwrap();
        let server = Logged::start(tree.path(), &["--fuse", mount.to_str().unwrap()]);
        let socket = server.socket.clone();
        let (status, log) = server.end(signal);
        assert!(status.success(), "{signal}: {status} {log}");
        assert!(!socket.exists(), "{signal}");
        assert_eq!(fs::read_dir(&mount).unwrap().count(), 0, "{signal}");
    }
}

#[test]
fn nohup_is_respected() {
    let tree = tree();
    let closure = ["--tree".as_ref(), tree.path().as_os_str()];
    let server = Server::start_after(
        &["sh", "-c", "trap '' HUP; exec \"$@\"", "sh"],
        &closure,
        &[],
    );
    server.signal(Signal::SIGHUP);
    drop(Client::start(&server.socket, 1));
    server.signal(Signal::SIGTERM);
    assert!(server.end().0.success());
}

#[test]
fn statistics_of_a_vm_are_logged_also_when_the_server_ends() {
    let tree = tree();
    let server = Server::start(tree.path(), &["--log-format", "json"]);
    let socket = server.socket.clone();
    let mut guest = Guest::new();
    read_once(&Frontend::start(&socket, &guest, ORDINARY), &mut guest);
    let mut guest = Guest::new();
    let frontend = Frontend::start(&socket, &guest, ORDINARY);
    read_once(&frontend, &mut guest);
    read_once(&frontend, &mut guest);
    wait_for("the first worker to go", || {
        (server.workers().len() == 1).then_some(())
    });
    server.signal(Signal::SIGTERM);
    let (_, log) = server.end();
    let served = logged::fields(&log, "a VM has disconnected");
    assert_eq!(served.len(), 2, "{log}");
    for (fields, (vm, requests)) in served.iter().zip([(1, 1), (2, 2)]) {
        assert_eq!(fields["socket"], socket.to_str().unwrap());
        assert_eq!(fields["vm"], vm);
        assert_eq!(fields["requests"], requests);
        assert_eq!(fields["bytes"], 4096 * requests);
        assert_eq!(fields["errors"], 0);
        assert!(fields["seconds"].as_f64().unwrap() > 0.0);
    }
    assert_eq!(logged::fields(&log, "a VM has connected").len(), 2, "{log}");
}

#[test]
#[ignore = "needs root and /dev/fuse"]
fn statistics_of_the_file_are_logged_also_when_the_server_ends() {
    let tree = tree();
    let dir = tempfile::tempdir().unwrap();
    let mount = dir.path().join("mount");
    fs::create_dir(&mount).unwrap();
    let arguments = ["--log-format", "json", "--fuse", mount.to_str().unwrap()];
    let server = Logged::start(tree.path(), &arguments);
    let read = || {
        let mut file = fs::File::open(mount.join("nix-store.img")).unwrap();
        file.read_exact(&mut [0; 4096]).unwrap();
        file
    };
    drop(read());
    server.wait_for_log("has closed the file");
    let _open = read();
    server.wait_for_log_times("has opened the file", 2);
    let (_, log) = server.end(Signal::SIGTERM);
    let closed = logged::fields(&log, "the last reader has closed the file");
    assert_eq!(closed.len(), 2, "{log}");
    // The kernel caches what it has read, so the second reader may have caused no requests.
    assert!(closed[0]["bytes"].as_u64().unwrap() >= 4096, "{log}");
    assert_eq!(closed[0]["errors"], 0);
}

/// Regression: a client that reconnected all the time and sent a wrong message caused gigabytes of log lines a day.
#[test]
fn a_client_that_reconnects_all_the_time_does_not_fill_the_log() {
    const TIMES: usize = 150;
    let tree = tree();
    let server = Logged::start(tree.path(), &[]);
    for _ in 0..TIMES {
        let frontend = Frontend::connect(&server.socket);
        frontend.negotiate(ORDINARY);
        // Shares no memory.
        frontend.start_queue();
        assert!(frontend.is_closed());
    }
    let (_, log) = server.end(Signal::SIGTERM);
    let lines = log.matches("memory is not shared").count();
    assert!((50..TIMES - 20).contains(&lines), "{lines} of {TIMES}");
}

/// Regression: muted workers considered the log not to be a file, and were killed at their first line after a minute.
#[test]
fn a_muted_worker_may_write_to_a_log_that_is_a_file() {
    const MUTED_AFTER: usize = 150;
    let tree = tree();
    let dir = tempfile::tempdir().unwrap();
    let log = fs::File::create(dir.path().join("log")).unwrap();
    let socket = dir.path().join("disk.sock");
    let mut command = command(tree.path(), &socket, &[]);
    command.stderr(log);
    let server = Server::run(command, socket, dir);
    for _ in 0..MUTED_AFTER {
        let frontend = Frontend::connect(&server.socket);
        frontend.negotiate(ORDINARY);
        frontend.start_queue();
        assert!(frontend.is_closed());
    }
    let frontend = Frontend::connect(&server.socket);
    frontend.negotiate(ORDINARY);
    let worker = wait_for("one worker", || match server.workers()[..] {
        [worker] => Some(worker),
        _ => None,
    });
    let is_muted = fs::read_link(format!("/proc/{worker}/fd/2")).unwrap();
    assert_eq!(is_muted, std::path::Path::new("/dev/null"));
    let limits = fs::read_to_string(format!("/proc/{worker}/limits")).unwrap();
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max file size"));
    assert!(line.unwrap().contains("unlimited"), "{limits}");
}
