//! Several sockets, their permissions, and sockets that systemd passes.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::compare;
use crate::common::client::Client;
use crate::common::proc::listening;
use crate::common::process::{first_line, wait_for, wait_for_listener};
use crate::common::server::{Server, command, tree, wait};
use crate::common::{tool, tree_image};

#[test]
#[ignore = "needs root"]
fn a_client_at_each_of_several_sockets_is_served() {
    let tree = tree();
    let image = tree_image(tree.path());
    let dir = tempfile::tempdir().unwrap();
    let other = dir.path().join("other.sock");
    let server = Server::start(tree.path(), &["--vhost-user", other.to_str().unwrap()]);
    let mut clients: Vec<_> = [&server.socket, &other, &other, &server.socket]
        .map(|socket| Client::start(socket, 2))
        .into();
    for client in &mut clients {
        compare(client, &image, 3);
    }
    assert_eq!(server.workers().len(), 4);
    // A worker must not have descriptors that lead to other VMs.
    for worker in server.workers() {
        assert_eq!(listening(worker), 0);
    }
    drop(clients);
    let socket = server.socket.clone();
    server.signal(Signal::SIGTERM);
    assert!(server.end().0.success());
    assert!(!socket.exists() && !other.exists());
}

#[test]
fn one_socket_given_twice_is_refused() {
    let tree = tree();
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let output = command(
        tree.path(),
        &socket,
        &["--vhost-user", socket.to_str().unwrap()],
    )
    .output()
    .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("is given twice"));
    assert!(!socket.exists());
}

#[test]
#[ignore = "needs root"]
fn mode_and_group_are_set_regardless_of_the_umask() {
    let tree = tree();
    let cases: [(&[&str], u32, u32); 5] = [
        (&[], 0o600, 0),
        (&["--socket-mode", "0666"], 0o666, 0),
        (&["--socket-mode", "620"], 0o620, 0),
        (&["--socket-group", "12345"], 0o660, 12345),
        (
            &["--socket-group", "root", "--socket-mode", "0640"],
            0o640,
            0,
        ),
    ];
    for umask in ["000", "077", "777"] {
        for (options, mode, gid) in cases {
            let shell = format!("umask {umask}; exec \"$@\"");
            let before = ["sh", "-c", &shell, "sh"];
            let closure = ["--tree".as_ref(), tree.path().as_os_str()];
            let server = Server::start_after(&before, &closure, options);
            let file = fs::metadata(&server.socket).unwrap();
            assert_eq!(
                file.permissions().mode() & 0o777,
                mode,
                "{options:?} {umask}"
            );
            assert_eq!(file.gid(), gid, "{options:?}");
        }
    }
}

#[test]
#[ignore = "needs strace"]
fn no_client_can_connect_before_the_permissions_are_set() {
    let tree = tree();
    let dir = tempfile::tempdir().unwrap();
    let trace = dir.path().join("trace");
    let served = command(
        tree.path(),
        &dir.path().join("s"),
        &["--socket-group", "12345"],
    );
    let mut strace = Command::new(tool("strace", "strace"));
    strace.args(["-D", "-o"]).arg(&trace);
    strace.args([
        "-e",
        "trace=umask,fchmod,bind,fchownat,chmod,fchmodat,listen",
    ]);
    strace.arg(served.get_program()).args(served.get_args());
    let mut child = strace
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    assert!(first_line(&mut child).starts_with("ready "));
    // strace may not have written everything yet.
    let trace = wait_for("the trace", || {
        let trace = fs::read_to_string(&trace).unwrap();
        trace.contains("listen(").then_some(trace)
    });
    child.kill().unwrap();
    wait(&mut child);
    let steps = [
        "fchmod(",
        "umask(000)",
        "bind(",
        "umask(",
        "12345",
        "0660)",
        "listen(",
    ];
    let mut rest = &trace[..];
    for step in steps {
        let at = rest
            .find(step)
            .unwrap_or_else(|| panic!("no {step} in its place: {trace}"));
        rest = &rest[at + step.len()..];
    }
    let first = trace
        .lines()
        .find(|line| line.starts_with("fchmod("))
        .unwrap();
    assert!(first.contains(", 0600)"), "{trace}");
}

#[test]
fn a_group_that_does_not_exist_is_named() {
    let tree = tree();
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let output = command(tree.path(), &socket, &["--socket-group", "no-such-group"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("\"no-such-group\""));
}

/// `lazystore serve`, started like systemd would start it: at the first connection to one of `sockets`.
fn activated(tree: &Path, sockets: &[&Path]) -> Command {
    let mut command = Command::new(tool("systemd-socket-activate", "systemd"));
    for socket in sockets {
        command.arg("-l").arg(socket);
    }
    command.arg(env!("CARGO_BIN_EXE_lazystore"));
    command.args(["serve", "--tree"]).arg(tree);
    command.stdout(Stdio::piped()).stderr(Stdio::null());
    command
}

#[test]
#[ignore = "needs systemd"]
fn sockets_passed_by_systemd_are_served_and_not_removed() {
    let tree = tree();
    let image = tree_image(tree.path());
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (dir.path().join("one"), dir.path().join("two"));
    let mut child = activated(tree.path(), &[&one, &two]).spawn().unwrap();
    for socket in [&one, &two] {
        wait_for_listener(&mut child, socket);
    }
    // The first connection starts the server.
    for socket in [&two, &one, &two] {
        compare(&mut Client::start(socket, 2), &image, 3);
    }
    let ready = first_line(&mut child);
    assert!(
        ready.starts_with(&format!("ready {} in ", one.display())),
        "{ready}"
    );
    kill(
        Pid::from_raw(i32::try_from(child.id()).unwrap()),
        Signal::SIGTERM,
    )
    .unwrap();
    assert!(wait(&mut child).success());
    assert!(one.exists() && two.exists());
}

#[test]
fn a_passed_descriptor_must_be_a_listening_unix_socket() {
    let tree = tree();
    let serve = format!(
        "LISTEN_FDS=1 LISTEN_PID=$$ exec {} serve --tree {} 3</dev/null",
        env!("CARGO_BIN_EXE_lazystore"),
        tree.path().display()
    );
    let output = Command::new("sh").args(["-c", &serve]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("ListenStream=PATH and Accept=no"));
}
