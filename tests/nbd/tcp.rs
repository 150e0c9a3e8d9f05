//! `lazystore serve --nbd HOST:PORT`.

use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::Duration;

use super::client::*;
use super::program::{serve_at, try_serve_at};
use super::server::tree;
use crate::common;
use crate::common::process::wait_for;
use crate::common::tool;

/// The error of `serve` for an address.
fn refused(place: &str) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_lazystore"))
        .args(["serve", "--tree", "/usr/share", "--nbd", place])
        .output()
        .unwrap();
    assert!(!output.status.success(), "{place}");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn several_ports_and_a_socket_serve_the_same_disk() {
    let tree = tree();
    let image = common::tree_image(tree.path());
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("store.nbd");
    let unix = format!("unix:{}", socket.display());
    let program = serve_at(tree.path(), &["127.0.0.1:0", &unix, "localhost:0"], &[]);
    let mut expected = vec![0; 300_000];
    image.read_exact_at(&mut expected, 128 << 30).unwrap();
    let mut over_unix = Client::start(UnixStream::connect(&socket).unwrap(), "nix-store");
    assert!(over_unix.read(0, 128 << 30, expected.len()).unwrap() == expected);
    for index in [0, 2] {
        let mut client = program.tcp_client(index);
        assert!(client.read(0, 128 << 30, expected.len()).unwrap() == expected);
        assert!(client.stream.peer_addr().unwrap().ip().is_loopback());
    }
    assert_ne!(program.places[0], program.places[2]);
}

#[test]
fn ipv6_is_served_where_there_is_some() {
    if TcpListener::bind("[::1]:0").is_err() {
        return;
    }
    let tree = tree();
    let program = serve_at(tree.path(), &["[::1]:0"], &[]);
    assert!(
        program.places[0].starts_with("[::1]:"),
        "{:?}",
        program.places
    );
    assert!(program.tcp_client(0).read(0, 0, 4096).is_ok());
}

#[test]
fn addresses_that_other_hosts_can_reach_are_refused_without_tls() {
    for place in ["0.0.0.0:10809", "[::]:10809", "192.0.2.1:10809"] {
        let text = refused(place);
        assert!(text.contains("nothing is encrypted"), "{text}");
        assert!(
            text.contains("--nbd-tls DIR") && text.contains("unix:PATH"),
            "{text}"
        );
        assert_eq!(text.lines().count(), 1, "{text}");
    }
}

#[test]
fn invalid_addresses_are_refused_in_one_sentence() {
    for place in ["unix:", "/run/x", "localhost", "::1:10809", "host:port"] {
        let text = refused(place);
        assert!(
            text.contains("unix:PATH") && text.contains("HOST:PORT"),
            "{text}"
        );
    }
    let text = refused("no-such-host.invalid:10809");
    assert!(
        text.contains("cannot find the address of no-such-host.invalid:10809"),
        "{text}"
    );
    let tree = tree();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let text = try_serve_at(tree.path(), &[&address], &[]).err().unwrap();
    assert!(
        text.contains(&format!("{address} is in use by another process")),
        "{text}"
    );
    assert_eq!(
        text.lines()
            .filter(|line| line.starts_with("lazystore: "))
            .count(),
        1,
        "{text}"
    );
    drop(taken);
    let text = try_serve_at(tree.path(), &[&address, &address], &[])
        .err()
        .unwrap();
    assert!(
        text.contains(&format!("{address} is given twice")),
        "{text}"
    );
}

#[test]
fn a_port_is_free_after_the_server_has_ended() {
    let tree = tree();
    let program = serve_at(tree.path(), &["127.0.0.1:0"], &[]);
    let place = program.places[0].clone();
    let client = program.tcp_client(0);
    drop(program);
    drop(client);
    let again = serve_at(tree.path(), &[&place], &[]);
    assert_eq!(again.places, [place]);
    assert!(again.tcp_client(0).read(0, 0, 4096).is_ok());
}

/// Regression: they delayed the clients of all sockets.
#[test]
fn silent_clients_of_one_port_do_not_delay_those_of_another() {
    let tree = tree();
    let program = serve_at(tree.path(), &["127.0.0.1:0", "127.0.0.1:0"], &[]);
    let mut silent: Vec<_> = (0..64).map(|_| program.connect(0)).collect();
    for client in &mut silent {
        client.read_exact(&mut [0; 18]).unwrap();
    }
    let mut waits = program.connect(0);
    assert!(program.tcp_client(1).read(0, 0, 4096).is_ok());
    // It is served once one of the others has disconnected.
    waits.set_nonblocking(true).unwrap();
    assert!(waits.read(&mut [0]).is_err());
    waits.set_nonblocking(false).unwrap();
    silent.pop();
    waits.read_exact(&mut [0; 18]).unwrap();
}

#[test]
fn a_client_is_served_after_a_flood_of_connections() {
    let tree = tree();
    let program = serve_at(
        tree.path(),
        &["127.0.0.1:0"],
        &["--first-message-timeout", "5"],
    );
    for _ in 0..300 {
        drop(program.connect(0));
    }
    let stays = program.connect(0);
    assert!(program.tcp_client(0).read(0, 0, 4096).is_ok());
    drop(stays);
    wait_for("the workers to end", || {
        program.workers().is_empty().then_some(())
    });
}

#[test]
fn a_silent_client_is_disconnected() {
    let tree = tree();
    let program = serve_at(
        tree.path(),
        &["127.0.0.1:0"],
        &["--first-message-timeout", "1"],
    );
    let mut silent = program.connect(0);
    silent
        .set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    let mut greeting = Vec::new();
    // The greeting, and the end of the stream.
    let read = silent.read_to_end(&mut greeting);
    assert!(read.is_ok() || read.unwrap_err().raw_os_error() == Some(104));
    assert_eq!(greeting.len(), 18);
}

#[test]
#[ignore = "needs libnbd and QEMU"]
fn real_clients_read_over_tcp() {
    let tree = tree();
    let program = serve_at(tree.path(), &["127.0.0.1:0"], &[]);
    let uri = format!("nbd://{}", program.places[0]);
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("copy");
    let tools = [
        ("nbdinfo", "libnbd-bin"),
        ("nbdcopy", "libnbd-bin"),
        ("qemu-img", "qemu-utils"),
    ];
    let [nbdinfo, nbdcopy, qemu_img] = tools.map(|(name, package)| tool(name, package));
    for mut command in [
        Command::new(nbdinfo),
        Command::new(nbdcopy),
        Command::new(&qemu_img),
    ] {
        match command
            .get_program()
            .to_str()
            .unwrap()
            .rsplit('/')
            .next()
            .unwrap()
        {
            "nbdinfo" => command.arg(&uri),
            "nbdcopy" => command.arg(&uri).arg(&copy),
            _ => command
                .args(["compare", "-f", "raw", "-F", "raw", &uri])
                .arg(&copy),
        };
        let output = command.output().unwrap();
        assert!(output.status.success(), "{command:?}: {output:?}");
    }
}

#[test]
fn connections_are_kept_alive() {
    let tree = tree();
    let program = serve_at(tree.path(), &["127.0.0.1:0"], &[]);
    let client = program.tcp_client(0);
    let port = client.stream.local_addr().unwrap().port();
    // Once all sent data are acknowledged, the timer of the server's socket is 02, keepalive (Linux's proc_net_tcp.txt).
    let remote = format!(":{port:04X}");
    wait_for("a timer that keeps alive", || {
        let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
        let mut ends = table
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>());
        let server = ends.find(|end| end[2].ends_with(&remote) && end[3] == "01");
        server.unwrap()[5].starts_with("02:").then_some(())
    });
    drop::<TcpStream>(client.stream);
}
