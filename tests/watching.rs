//! Watching a running server: `lazystore status`, SIGUSR1, metrics.

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use nix::sys::signal::{Signal, kill};
use serde_json::Value;

use crate::common::client::Client;
use crate::common::proc::fds;
use crate::common::process::wait_for;
use crate::common::server::{Server, command, tree};

fn status(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lazystore"));
    command.arg("status").args(args).output().unwrap()
}

/// The status of the server at `socket`.
pub fn status_json(socket: &Path) -> Value {
    let output = status(&[
        socket.to_str().unwrap(),
        "--format",
        "json",
        "--interval",
        "0.05",
    ]);
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn point(socket: &Path) -> PathBuf {
    format!("{}.status", socket.display()).into()
}

#[test]
#[ignore = "needs root: a real client locks memory"]
fn a_vm_is_counted_while_it_reads_and_after_it_has_disconnected() {
    let tree = tree();
    let server = Server::start(tree.path(), &[]);
    assert_eq!(status_json(&server.socket)["vms"], Value::Array(Vec::new()));
    let mut client = Client::start(&server.socket, 1);
    for _ in 0..10 {
        client
            .read(0, &[(0, 4096), (4096, 4096)])
            .iter()
            .for_each(|read| assert!(read.is_ok()));
    }
    let now = status_json(&server.socket);
    let vm = &now["vms"][0];
    assert_eq!(
        (&vm["vm"], &vm["kind"]),
        (&Value::from(1), &Value::from("vhost-user"))
    );
    assert_eq!(vm["place"], server.socket.to_str().unwrap());
    assert_eq!(
        (&vm["requests"], &vm["bytes"]),
        (&Value::from(20), &Value::from(20 * 4096))
    );
    assert_eq!(
        (&vm["waiting"], &vm["plans"]),
        (&Value::from(0), &Value::from(1))
    );
    drop(client);
    let after = wait_for("the VM to leave", || {
        let now = status_json(&server.socket);
        (now["left"]["vms"] == 1).then_some(now)
    });
    assert_eq!(after["vms"], Value::Array(Vec::new()));
    assert_eq!(after["left"]["requests"], 20);
}

#[test]
#[ignore = "needs root: a real client locks memory"]
fn rates_and_percentiles_cover_the_last_interval() {
    let tree = tree();
    let server = Server::start(tree.path(), &[]);
    let mut client = Client::start(&server.socket, 1);
    let idle = status_json(&server.socket);
    assert_eq!(idle["vms"][0]["requests_per_s"], 0.0);
    assert_eq!(idle["vms"][0]["p50_us"], Value::Null);
    let socket = server.socket.clone();
    let asking = std::thread::spawn(move || status_json(&socket));
    while !asking.is_finished() {
        client.read(0, &[(0, 4096)]);
    }
    let busy = asking.join().unwrap();
    let vm = &busy["vms"][0];
    assert!(vm["requests_per_s"].as_f64().unwrap() > 0.0, "{busy}");
    assert!(vm["bytes_per_s"].as_f64().unwrap() > 0.0, "{busy}");
    let (p50, p99) = (
        vm["p50_us"].as_f64().unwrap(),
        vm["p99_us"].as_f64().unwrap(),
    );
    assert!(0.0 < p50 && p50 <= p99, "{busy}");
}

#[test]
fn the_status_socket_is_private_and_found_by_every_name_of_the_server() {
    let tree = tree();
    let server = Server::start(tree.path(), &["--socket-mode", "666"]);
    let point = point(&server.socket);
    let mode = fs::metadata(&point).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let pid = status_json(&server.socket)["pid"].clone();
    assert_eq!(pid, i64::from(server.pid().as_raw()));
    assert_eq!(status_json(&point)["pid"], pid);
    let all = status(&["--format", "json", "--interval", "0.05"]);
    // Servers of other tests may have ended meanwhile.
    let found = String::from_utf8(all.stdout).unwrap();
    let ended = String::from_utf8(all.stderr).unwrap();
    assert!(
        found.contains(point.to_str().unwrap()) || ended.contains("no server answers"),
        "{found} {ended}"
    );
    server.signal(Signal::SIGTERM);
    let (_, log) = server.end();
    assert!(!point.exists(), "{log}");
    let output = status(&[point.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("no server answers at"), "{text}");
}

/// Status clients that do not read their answer delay neither VMs nor other status clients, and are disconnected.
#[test]
#[ignore = "needs root: a real client locks memory"]
fn a_slow_status_client_does_not_block_the_server() {
    let tree = tree();
    let server = Server::start(tree.path(), &[]);
    let before = fds(server.pid());
    let connect = |_| UnixStream::connect(point(&server.socket)).unwrap();
    let idle: Vec<UnixStream> = (0..200).map(connect).collect();
    let mut client = Client::start(&server.socket, 1);
    assert!(client.read(0, &[(0, 4096)])[0].is_ok());
    drop(client);
    for mut stream in idle {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        serde_json::from_str::<Value>(&answer).unwrap();
    }
    wait_for("all of it to be closed", || {
        (fds(server.pid()) == before).then_some(())
    });
}

/// A worker has neither the status socket nor a connection to it.
#[test]
#[ignore = "needs root: a real client locks memory"]
fn workers_cannot_reach_the_status_socket() {
    let tree = tree();
    let server = Server::start(tree.path(), &[]);
    let held = UnixStream::connect(point(&server.socket)).unwrap();
    let _client = Client::start(&server.socket, 1);
    let worker = server.workers()[0];
    let names = fs::read_to_string("/proc/net/unix").unwrap();
    let path = point(&server.socket);
    let inodes = names
        .lines()
        .filter(|line| line.ends_with(path.to_str().unwrap()));
    let inodes: Vec<_> = inodes
        .map(|line| line.split_ascii_whitespace().nth(6).unwrap())
        .collect();
    assert!(!inodes.is_empty());
    for fd in fs::read_dir(format!("/proc/{worker}/fd")).unwrap() {
        let target = fs::read_link(fd.unwrap().path()).unwrap_or_default();
        let is_one = |inode: &&str| target == Path::new(&format!("socket:[{inode}]"));
        assert!(!inodes.iter().any(is_one), "{}", target.display());
    }
    drop(held);
}

#[test]
#[ignore = "needs root: a real client locks memory"]
fn metrics_are_replaced_while_the_server_runs_and_removed_at_its_end() {
    let tree = tree();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("lazystore.prom");
    let server = Server::start(tree.path(), &["--metrics-file", file.to_str().unwrap()]);
    let metrics = || fs::read_to_string(&file).unwrap_or_default();
    wait_for("metrics", || {
        metrics().contains("lazystore_vms 0\n").then_some(())
    });
    let mut client = Client::start(&server.socket, 1);
    assert!(client.read(0, &[(0, 4096)])[0].is_ok());
    let text = wait_for("metrics of a VM", || {
        let text = metrics();
        text.contains("lazystore_vms 1\n").then_some(text)
    });
    let labels = format!(
        "vm=\"1\",kind=\"vhost-user\",place=\"{}\"",
        server.socket.display()
    );
    assert!(
        text.contains(&format!("lazystore_vm_errors_total{{{labels}}} 0\n")),
        "{text}"
    );
    let all = format!("lazystore_vm_request_seconds_bucket{{{labels},le=\"+Inf\"}} ");
    let count = text
        .lines()
        .find_map(|line| line.strip_prefix(&all))
        .unwrap();
    assert!(
        text.contains(&format!(
            "lazystore_vm_requests_total{{{labels}}} {count}\n"
        )),
        "{text}"
    );
    drop(client);
    server.signal(Signal::SIGTERM);
    let (status, log) = server.end();
    assert!(status.success(), "{log}");
    let left: Vec<_> = fs::read_dir(dir.path()).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn on_sigusr1_the_server_logs_its_status_and_continues() {
    let tree = tree();
    let server = Server::start(tree.path(), &["--log-format", "json"]);
    server.signal(Signal::SIGUSR1);
    // Once it answers, it has handled the signal.
    status_json(&server.socket);
    kill(server.pid(), Signal::SIGTERM).unwrap();
    let (status, log) = server.end();
    assert!(status.success(), "{log}");
    let line = log
        .lines()
        .find(|line| line.contains("status of the server"));
    let line: Value = serde_json::from_str(line.unwrap()).unwrap();
    assert_eq!(line["fields"]["vms"], 0);
}

#[test]
fn a_failing_status_socket_does_not_prevent_serving() {
    let tree = tree();
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("disk.sock");
    fs::write(point(&socket), "mine").unwrap();
    let server = Server::run(command(tree.path(), &socket, &["-v"]), socket.clone(), dir);
    server.signal(Signal::SIGTERM);
    // The directory is removed with the server.
    let kept = fs::read_to_string(point(&socket)).unwrap();
    let (status, log) = server.end();
    assert!(
        status.success() && log.contains("no status socket"),
        "{log}"
    );
    assert_eq!(kept, "mine");
}

#[test]
fn an_answer_that_is_not_a_status_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("x.status");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let answering = std::thread::spawn(move || drop(listener.accept()));
    let output = status(&[socket.to_str().unwrap()]);
    answering.join().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("is not a lazystore"), "{text}");
}
