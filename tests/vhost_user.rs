//! The disk over a real socket: the program serves it, and clients read it.

mod descriptors;
mod sockets;
mod vmms;

use std::fs;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Output;

use lazystore::image::Image;
use nix::sys::signal::{Signal, kill};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use crate::common::client::{Client, DEPTH, READ_MAX};
use crate::common::frontend::{F_PROTOCOL_FEATURES, F_VERSION_1, Frontend, Guest, SLOTS};
use crate::common::process::wait_for;
use crate::common::server::{Server, command, start_at, tree, wait};

const ORDINARY: u64 = F_VERSION_1 | F_PROTOCOL_FEATURES;

const READ: u32 = 0;
const WRITE: u32 = 1;
const GET_ID: u32 = 8;

/// Addresses on the disk: near its start, at the start of file data (design, address space), and near its end.
fn places(disk_len: u64) -> impl Strategy<Value = (u64, usize)> {
    let data = 128u64 << 30;
    let start = prop_oneof![
        0u64..(1 << 20),
        data..(data + (10 << 20)),
        (disk_len - (1 << 20))..disk_len
    ];
    (start, 1..=READ_MAX / 512).prop_map(move |(start, sectors)| {
        let start = start / 512 * 512;
        let room = usize::try_from((disk_len - start).min(READ_MAX as u64)).unwrap();
        (start, (sectors * 512).min(room))
    })
}

fn bytes(image: &Image, start: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    image.read_exact_at(&mut bytes, start).unwrap();
    bytes
}

/// Reads `rounds` batches of random ranges in every queue and compares them with the image.
fn compare(client: &mut Client, image: &Image, rounds: usize) {
    let mut runner = TestRunner::new(crate::common::cases(1));
    let batch = prop::collection::vec(places(image.len_bytes()), 1..=DEPTH);
    for _ in 0..rounds {
        for queue in 0..client.queues.len() {
            let reads = batch.new_tree(&mut runner).unwrap().current();
            for (data, (start, len)) in client.read(queue, &reads).into_iter().zip(&reads) {
                assert!(
                    data.unwrap() == bytes(image, *start, *len),
                    "{len} bytes at {start}"
                );
            }
        }
    }
}

#[test]
fn random_reads_in_several_queues_return_the_images_bytes() {
    let tree = tree();
    let image = crate::common::tree_image(tree.path());
    let server = Server::start(tree.path(), &["--threads", "3"]);
    let mut client = Client::start(&server.socket, 5);
    assert_eq!(
        client.device.get_u64("capacity").unwrap(),
        image.len_bytes()
    );
    compare(&mut client, &image, 60);
}

#[test]
fn overlapping_connections_are_served() {
    let tree = tree();
    let image = crate::common::tree_image(tree.path());
    let server = Server::start(tree.path(), &[]);
    for _ in 0..5 {
        let mut one = Client::start(&server.socket, 1);
        let mut other = Client::start(&server.socket, 2);
        compare(&mut one, &image, 3);
        compare(&mut other, &image, 3);
        assert_eq!(server.workers().len(), 2);
        drop(one);
        compare(&mut other, &image, 3);
        drop(other);
        // Zombies would be listed, too.
        wait_for("workers to go", || {
            server.workers().is_empty().then_some(())
        });
    }
}

#[test]
fn a_client_that_requires_a_writable_disk_is_refused() {
    let tree = tree();
    let server = Server::start(tree.path(), &[]);
    assert!(
        crate::common::client::connect(&server.socket, false)
            .start()
            .is_err()
    );
    let image = crate::common::tree_image(tree.path());
    let mut client = Client::start(&server.socket, 1);
    assert!(client.write(0, 4096) < 0);
    compare(&mut client, &image, 3);
}

#[test]
fn writes_fail_and_change_nothing() {
    let tree = tree();
    let image = crate::common::tree_image(tree.path());
    let server = Server::start(tree.path(), &[]);
    let mut guest = Guest::new();
    let frontend = Frontend::start(&server.socket, &guest, ORDINARY);
    for kind in [WRITE, 11, 13, 14] {
        guest.submit(0, kind, 2, 512);
        guest.submit(1, READ, 2, 512);
        frontend.kick();
        guest.wait();
        assert_eq!(guest.status(0), 1);
        assert_eq!(guest.status(1), 0);
        assert_eq!(guest.data(1, 512), bytes(&image, 1024, 512));
        assert_eq!(guest.last_used_len(), 513);
    }
    guest.submit(0, 77, 0, 512);
    frontend.kick();
    guest.wait();
    assert_eq!(guest.status(0), 2);
}

#[test]
fn get_id_returns_the_serial() {
    let tree = tree();
    let server = Server::start(tree.path(), &["--serial", "my-own-serial"]);
    let mut guest = Guest::new();
    let frontend = Frontend::start(&server.socket, &guest, ORDINARY);
    guest.submit(0, GET_ID, 0, 20);
    frontend.kick();
    guest.wait();
    assert_eq!(guest.data(0, 21), b"my-own-serial\0\0\0\0\0\0\0\xee");
}

#[test]
fn a_frontend_without_version_1_or_protocol_features_is_served() {
    let tree = tree();
    let image = crate::common::tree_image(tree.path());
    let server = Server::start(tree.path(), &[]);
    for features in [0, F_VERSION_1, F_PROTOCOL_FEATURES] {
        let mut guest = Guest::new();
        let frontend = Frontend::start(&server.socket, &guest, features);
        guest.submit(0, READ, 2, 4096);
        frontend.kick();
        guest.wait();
        assert_eq!(guest.data(0, 4096), bytes(&image, 1024, 4096));
    }
}

#[test]
fn get_config_returns_the_requested_length() {
    let tree = tree();
    let image = crate::common::tree_image(tree.path());
    let server = Server::start(tree.path(), &[]);
    let frontend = Frontend::connect(&server.socket);
    frontend.negotiate(ORDINARY);
    for size in [8, 57, 60, 256] {
        let config = frontend.config(0, size);
        assert_eq!(config.len(), size as usize);
        assert_eq!(config[..8], (image.len_bytes() / 512).to_le_bytes());
    }
    assert_eq!(frontend.config(12, 4), 126u32.to_le_bytes());
}

#[test]
fn a_queue_can_be_stopped_and_restarted() {
    let tree = tree();
    let server = Server::start(tree.path(), &[]);
    let mut guest = Guest::new();
    let frontend = Frontend::start(&server.socket, &guest, F_VERSION_1);
    for round in 1..=3 {
        guest.submit(0, READ, 2, 512);
        frontend.kick();
        guest.wait();
        assert_eq!(frontend.stop_queue(), round);
        frontend.start_queue();
    }
}

#[test]
fn a_killed_worker_is_replaced_without_losing_a_request() {
    let tree = tree();
    let image = crate::common::tree_image(tree.path());
    let server = Server::start(tree.path(), &[]);
    let mut guest = Guest::new();
    let mut frontend = Frontend::start(&server.socket, &guest, ORDINARY);
    for round in 0..20 {
        for slot in 0..SLOTS {
            guest.submit(slot, READ, 8 * u64::from(slot), 4096);
        }
        frontend.kick();
        if round % 2 == 0 {
            std::thread::yield_now();
        }
        for worker in server.workers() {
            kill(worker, Signal::SIGKILL).unwrap();
        }
        assert!(frontend.is_closed());
        frontend = Frontend::start(&server.socket, &guest, ORDINARY);
        guest.wait();
        wait_for("an interrupt", || frontend.call.read().ok());
        for slot in 0..SLOTS {
            assert_eq!(guest.status(slot), 0);
            assert!(guest.data(slot, 4096) == bytes(&image, 4096 * u64::from(slot), 4096));
        }
    }
    server.signal(Signal::SIGTERM);
    let (_, log) = server.end();
    assert_eq!(log.matches("was killed by SIGKILL").count(), 20, "{log}");
}

#[test]
fn memory_that_is_not_shared_is_explained() {
    let tree = tree();
    let server = Server::start(tree.path(), &[]);
    let frontend = Frontend::connect(&server.socket);
    frontend.negotiate(ORDINARY);
    frontend.start_queue();
    assert!(frontend.is_closed());
    wait_for("the worker to go", || {
        server.workers().is_empty().then_some(())
    });
    server.signal(Signal::SIGTERM);
    let (_, log) = server.end();
    assert_eq!(
        log.matches("the VM's memory is not shared: add -object memory-backend-memfd")
            .count(),
        1,
        "{log}"
    );
}

#[test]
fn the_end_of_the_server_removes_the_socket_and_the_workers() {
    let tree = tree();
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let server = Server::start(tree.path(), &[]);
        let socket = server.socket.clone();
        let guest = Guest::new();
        let frontend = Frontend::start(&socket, &guest, ORDINARY);
        wait_for("a worker", || (server.workers().len() == 1).then_some(()));
        server.signal(signal);
        let (status, log) = server.end();
        assert!(status.success(), "{status} {log}");
        assert!(!socket.exists());
        assert!(frontend.is_closed());
    }
}

#[test]
fn a_socket_of_another_process_at_the_same_path_is_not_removed() {
    let tree = tree();
    let mut server = Server::start(tree.path(), &[]);
    let socket = server.socket.clone();
    fs::remove_file(&socket).unwrap();
    let _other = UnixListener::bind(&socket).unwrap();
    server.signal(Signal::SIGTERM);
    wait_for("the end", || (!server.is_running()).then_some(()));
    assert!(socket.exists());
}

/// Starts a server that must refuse to start. Returns its stderr.
fn refused(tree: &Path, socket: &Path) -> String {
    let Output { status, stderr, .. } = command(tree, socket, &[]).output().unwrap();
    assert!(!status.success());
    String::from_utf8(stderr).unwrap()
}

#[test]
fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
    let tree = tree();
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    drop(UnixListener::bind(&socket).unwrap());
    let mut first = start_at(tree.path(), &socket, &[]);
    let log = refused(tree.path(), &socket);
    assert!(
        log.contains("is in use by another process: stop it or choose another path"),
        "{log}"
    );
    drop(Client::start(&socket, 1));
    first.kill().unwrap();
    wait(&mut first);
    assert!(socket.exists());
    let mut second = start_at(tree.path(), &socket, &[]);
    second.kill().unwrap();
    wait(&mut second);
}

#[test]
fn impossible_socket_paths_are_explained() {
    let tree = tree();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "precious").unwrap();
    assert!(refused(tree.path(), &file).contains("is not a socket"));
    assert_eq!(fs::read(&file).unwrap(), b"precious");
    assert!(refused(tree.path(), &dir.path().join("no/s")).contains("does not exist"));
    assert!(refused(tree.path(), &dir.path().join("x".repeat(108))).contains("107"));
}

#[test]
fn once_ends_with_the_first_vm_and_not_with_a_probe() {
    let tree = tree();
    let server = Server::start(tree.path(), &["--once"]);
    let probe = UnixStream::connect(&server.socket).unwrap();
    wait_for("the probe's worker", || server.workers().pop());
    drop(probe);
    wait_for("its end", || server.workers().is_empty().then_some(()));
    // A server that counted the probe as a VM would not serve another client now.
    drop(Client::start(&server.socket, 1));
    let socket = server.socket.clone();
    let (status, log) = server.end();
    assert!(status.success(), "{log}");
    assert!(!socket.exists());
    assert!(log.contains("a VM has disconnected"), "{log}");
}
