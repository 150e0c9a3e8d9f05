//! `lazystore serve --nbd`: a confined worker for each client.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::process::Command;

use nix::sys::signal::{Signal, kill};

use super::client::*;
use super::program::serve;
use super::server::tree;
use crate::common;
use crate::common::proc::Status;
use crate::common::process::{stderr_of, wait_for};
use crate::common::tool;

#[test]
fn each_client_has_its_own_worker_and_reads_the_disk() {
    let tree = tree();
    let program = serve(tree.path(), &[]);
    let image = common::tree_image(tree.path());
    let (mut one, mut other) = (program.client(), program.client());
    assert_eq!(program.workers().len(), 2);
    for offset in [0, 1024, 128 << 30, (128 << 30) + 500_000] {
        let mut expected = vec![0; 300_000];
        image.read_exact_at(&mut expected, offset).unwrap();
        for client in [&mut one, &mut other] {
            assert!(client.read(0, offset, expected.len()).unwrap() == expected);
        }
    }
    drop(one);
    wait_for("a worker to end", || {
        (program.workers().len() == 1).then_some(())
    });
    assert!(other.read(0, 0, 4096).is_ok());
}

#[test]
fn killing_a_worker_affects_no_other_client() {
    let tree = tree();
    let program = serve(tree.path(), &[]);
    let mut one = program.client();
    let [worker] = program.workers()[..] else {
        panic!("one worker");
    };
    let mut other = program.client();
    kill(worker, Signal::SIGKILL).unwrap();
    assert!(one.is_at_end());
    assert!(other.read(0, 0, 4096).is_ok());
    assert!(program.client().read(0, 0, 4096).is_ok());
}

#[test]
fn workers_are_confined() {
    let tree = tree();
    let program = serve(tree.path(), &[]);
    let _client = program.client();
    let status = Status::of(program.workers()[0]).unwrap();
    assert!(status.is_filtered());
    assert_eq!(status.field("NoNewPrivs"), "1");
    assert_eq!(status.capabilities("CapBnd"), 0);
}

#[test]
fn silent_clients_do_not_delay_others() {
    let tree = tree();
    let program = serve(tree.path(), &[]);
    let mut silent: Vec<_> = (0..20)
        .map(|_| UnixStream::connect(&program.socket).unwrap())
        .collect();
    assert!(program.client().read(0, 0, 4096).is_ok());
    let mut greeting = [0; 18];
    for client in &mut silent {
        client.read_exact(&mut greeting).unwrap();
    }
    drop(silent);
    wait_for("the workers to end", || {
        program.workers().is_empty().then_some(())
    });
}

#[test]
#[ignore = "needs libnbd and QEMU"]
fn with_once_listing_exports_does_not_count_as_a_client() {
    let tree = tree();
    let mut program = serve(tree.path(), &["--once"]);
    let uri = format!("nbd+unix:///?socket={}", program.socket.display());
    let text = Command::new(tool("nbdinfo", "libnbd-bin"))
        .args(["--list", &uri])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    assert!(text.contains("export=\"nix-store\""), "{text}");
    assert!(program.child.try_wait().unwrap().is_none());
    drop(program.client());
    let status = wait_for("the server to end", || program.child.try_wait().unwrap());
    assert!(status.success());
    assert!(!program.socket.exists());
}

/// Regression: it ended the server with exit code 1.
#[test]
fn with_once_a_client_that_violates_the_protocol_does_not_count() {
    let tree = tree();
    let mut program = serve(tree.path(), &["--once"]);
    let mut broken = Client::greet(UnixStream::connect(&program.socket).unwrap(), !0);
    assert!(broken.is_at_end());
    wait_for("its worker to end", || {
        program.workers().is_empty().then_some(())
    });
    drop(program.client());
    let status = wait_for("the server to end", || program.child.try_wait().unwrap());
    assert!(status.success());
}

/// Regression: it was logged as an error for each client.
#[test]
fn ending_the_server_with_connected_clients_is_no_error() {
    let tree = tree();
    let mut program = serve(tree.path(), &[]);
    let mut client = program.client();
    assert!(client.read(0, 0, 4096).is_ok());
    kill(program.pid(), Signal::SIGTERM).unwrap();
    assert!(client.is_at_end());
    let status = wait_for("the server to end", || program.child.try_wait().unwrap());
    assert!(status.success());
    let text = stderr_of(&mut program.child);
    assert!(!text.contains("killed"), "{text}");
}
