//! The command line: errors of one sentence, the right exit code, and cleaning up.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use crate::common::process::{first_line, wait_for};
use crate::common::{nar, tool};

const LAZYSTORE: &str = env!("CARGO_BIN_EXE_lazystore");

/// A store with two paths and files that describe it.
struct Fixture {
    dir: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = dir.path().join("nix/store");
        fs::create_dir_all(store.join("aaa-one/bin")).unwrap();
        fs::write(store.join("aaa-one/bin/tool"), "tool").unwrap();
        fs::write(store.join("bbb-two.conf"), "conf").unwrap();
        let fixture = Self { dir };
        fixture.write(
            "store-paths",
            "/nix/store/bbb-two.conf\n/nix/store/aaa-one\n/nix/store/aaa-one\n",
        );
        let record = |name: &str| {
            let size = nar::size_bytes(&store.join(name));
            format!(
                "/nix/store/{name}\nsha256:{}\n{size}\n\n0\n",
                "0".repeat(64)
            )
        };
        fixture.write(
            "registration",
            &(record("aaa-one") + &record("bbb-two.conf")),
        );
        fixture
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    /// `lazystore serve ARGS`, for this store and in this directory.
    fn serve(&self, args: &[&str]) -> Command {
        let mut command = Command::new(LAZYSTORE);
        command.current_dir(self.dir.path()).arg("serve");
        if !args.contains(&"--tree") {
            command.args(["--store-root", "."]);
        }
        command.args(args);
        command
    }

    /// Runs a command that must fail and leave nothing behind. Returns its only sentence.
    fn fails(&self, args: &[&str], code: i32) -> String {
        let before = self.files();
        let output = self.serve(args).stdin(Stdio::null()).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {output:?}");
        assert_eq!(self.files(), before, "{args:?} left something behind");
        assert!(output.stdout.is_empty(), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    fn files(&self) -> Vec<PathBuf> {
        let mut files: Vec<_> = fs::read_dir(self.dir.path())
            .unwrap()
            .map(|e| e.unwrap().path())
            .collect();
        files.sort();
        files
    }
}

/// A server that ends with the test.
struct Server {
    child: Child,
    ready: String,
}

impl Server {
    fn start(mut command: Command) -> Self {
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let ready = first_line(&mut child);
        Self { child, ready }
    }

    fn stop(mut self, signal: rustix::process::Signal) -> Output {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
        let stdout = self.child.stdout.take();
        let stderr = self.child.stderr.take();
        let status = self.child.wait().unwrap();
        Output {
            status,
            stdout: read_all(stdout),
            stderr: read_all(stderr),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn read_all(stream: Option<impl std::io::Read>) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(mut stream) = stream {
        stream.read_to_end(&mut bytes).unwrap();
    }
    bytes
}

#[test]
fn errors_are_one_sentence() {
    let fixture = Fixture::new();
    fixture.write("empty", "\n");
    fixture.write("outside", "/nix/store/aaa-one\n/tmp/x\n");
    fixture.write("long", &format!("/nix/store/{}\n", "n".repeat(256)));
    fixture.write(
        "missing",
        "/nix/store/aaa-one\n/nix/store/ccc-gone\n/nix/store/ddd-gone\n",
    );
    fixture.write("malformed", "/nix/store/aaa-one\nsha256:xyz\n12\n\n0\n");
    let cases: [(&[&str], &[&str]); 7] = [
        (&["--store-paths", "empty"], &["empty", "no store path"]),
        (
            &["--store-paths", "outside"],
            &["outside, line 2", "/tmp/x", "/nix/store"],
        ),
        (&["--store-paths", "long"], &["long, line 1", "255"]),
        (
            &["--store-paths", "missing"],
            &["/nix/store/ccc-gone, /nix/store/ddd-gone"],
        ),
        (&["--store-paths", "nowhere"], &["nowhere", "No such file"]),
        (
            &[
                "--store-paths",
                "store-paths",
                "--registration",
                "malformed",
            ],
            &["malformed, line 2"],
        ),
        (&["--tree", "store-paths"], &["store-paths", "director"]),
    ];
    for (args, words) in cases {
        let text = fixture.fails(&[args, &["--vhost-user", "socket"]].concat(), 1);
        assert!(text.starts_with("lazystore: "), "{text}");
        assert_eq!(text.trim_end().lines().count(), 1, "{text}");
        assert!(
            words.iter().all(|word| text.contains(word)),
            "{text} should mention {words:?}"
        );
    }
}

#[test]
fn wrong_usage_exits_with_2() {
    let fixture = Fixture::new();
    let wrong: [&[&str]; 7] = [
        &["--vhost-user", "socket"],
        &["--tree", "nix"],
        &["--tree", "nix", "--vhost-user", "socket", "--allow-other"],
        &[
            "--tree",
            "nix",
            "--store-paths",
            "store-paths",
            "--vhost-user",
            "socket",
        ],
        &[
            "--tree",
            "nix",
            "--registration",
            "registration",
            "--vhost-user",
            "socket",
        ],
        &["--tree", "nix", "--uuid", "x", "--vhost-user", "socket"],
        &["--tree", "nix", "--no-such-option"],
    ];
    for args in wrong {
        fixture.fails(args, 2);
    }
}

#[test]
fn a_failure_to_create_the_socket_is_explained() {
    let fixture = Fixture::new();
    fixture.write("file", "precious");
    let long = "s".repeat(120);
    for (socket, word) in [
        ("file", "file"),
        ("no/dir/socket", "no/dir"),
        (long.as_str(), "107"),
    ] {
        let text = fixture.fails(&["--store-paths", "store-paths", "--vhost-user", socket], 1);
        assert!(text.contains(word), "{text}");
    }
    assert_eq!(
        fs::read_to_string(fixture.path("file")).unwrap(),
        "precious"
    );
}

#[test]
fn the_ready_message_says_how_to_attach() {
    for signal in [rustix::process::Signal::TERM, rustix::process::Signal::INT] {
        let fixture = Fixture::new();
        let server = Server::start(fixture.serve(&[
            "--store-paths",
            "store-paths",
            "--vhost-user",
            "socket",
        ]));
        let words: Vec<&str> = server.ready.split_whitespace().collect();
        assert!(
            matches!(words[..], ["ready", "socket", "in", _, "ms"]),
            "{}",
            server.ready
        );
        let mode = fs::metadata(fixture.path("socket"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        let output = server.stop(signal);
        assert_eq!(output.status.code(), Some(0));
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(
            text.contains("share=on") && text.contains("vhost-user-blk-pci"),
            "{text}"
        );
        assert!(!fixture.path("socket").exists());
    }
}

#[test]
fn a_list_from_stdin_is_served() {
    let fixture = Fixture::new();
    let mut command = fixture.serve(&[
        "--store-paths",
        "-",
        "--registration",
        "registration",
        "--vhost-user",
        "socket",
    ]);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(b"/nix/store/bbb-two.conf")
        .unwrap();
    let ready = first_line(&mut child);
    assert!(ready.starts_with("ready socket in "), "{ready}");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn systemd_is_notified() {
    let fixture = Fixture::new();
    let notify = UnixDatagram::bind(fixture.path("notify")).unwrap();
    let minute = Some(Duration::from_secs(60));
    notify.set_read_timeout(minute).unwrap();
    let mut command = fixture.serve(&["--store-paths", "store-paths", "--vhost-user", "socket"]);
    command.env("NOTIFY_SOCKET", fixture.path("notify"));
    let server = Server::start(command);
    let heard = || {
        let mut message = [0; 200];
        let len = notify.recv(&mut message).unwrap();
        String::from_utf8(message[..len].trim_ascii().to_owned()).unwrap()
    };
    assert_eq!(heard(), "READY=1\nSTATUS=serving 2 paths; 0 VMs");
    // A client without a message does not count as a VM. This is vhost-user's GET_FEATURES, version 1, without a payload.
    let mut connection = UnixStream::connect(fixture.path("socket")).unwrap();
    let get_features = [1u32, 1, 0].map(u32::to_ne_bytes);
    connection.write_all(get_features.as_flattened()).unwrap();
    assert_eq!(heard(), "STATUS=serving 2 paths; 1 VM");
    drop(connection);
    assert_eq!(heard(), "STATUS=serving 2 paths; 0 VMs");
    server.stop(rustix::process::Signal::TERM);
    assert_eq!(heard(), "STOPPING=1\nSTATUS=stopping");
}

#[test]
fn a_stale_socket_is_replaced_and_a_live_one_refused() {
    let fixture = Fixture::new();
    drop(UnixListener::bind(fixture.path("socket")).unwrap());
    let args = ["--store-paths", "store-paths", "--vhost-user", "socket"];
    let _server = Server::start(fixture.serve(&args));
    let text = fixture.fails(&args, 1);
    assert!(text.contains("socket") && text.contains("in use"), "{text}");
    UnixStream::connect(fixture.path("socket")).unwrap();
}

/// Directories in the store that were opened or listed, according to strace.
fn opened_inside(trace: &str) -> Vec<String> {
    assert!(
        trace.contains("aaa-one"),
        "the trace shows nothing of the store"
    );
    let opens = trace
        .lines()
        .filter(|line| line.contains("open") || line.contains("getdents"));
    // An O_PATH descriptor of the path itself protects it from garbage collection.
    let held = |line: &str| line.contains("\"aaa-one\", ") && line.contains("O_PATH");
    opens
        .filter(|line| line.contains("aaa-one") && !held(line))
        .map(str::to_owned)
        .collect()
}

/// Serves under strace, with `more` arguments. Returns what was opened of the store until the end.
fn opened_before_ready(more: &[&str]) -> Vec<String> {
    let fixture = Fixture::new();
    let trace = fixture.path("trace");
    let mut command = Command::new(tool("strace", "strace"));
    command.current_dir(fixture.dir.path());
    command.args(["-D", "-f", "-y", "-o"]).arg(&trace);
    command.args(["-e", "trace=openat,openat2,getdents64,statx,newfstatat"]);
    command.args([LAZYSTORE, "serve", "--store-root", "."]);
    command
        .args(["--store-paths", "store-paths", "--vhost-user", "socket"])
        .args(more);
    let server = Server::start(command);
    assert!(server.ready.starts_with("ready"), "{}", server.ready);
    server.stop(rustix::process::Signal::TERM);
    // strace may not have written everything yet.
    let seen = || fs::read_to_string(&trace).unwrap();
    wait_for("the whole trace", || {
        seen().contains("+++ exited with 0 +++").then_some(())
    });
    opened_inside(&seen())
}

#[test]
#[ignore = "needs strace"]
fn nothing_inside_a_store_path_is_opened_before_a_guest_asks() {
    let opened = opened_before_ready(&["--registration", "registration"]);
    assert_eq!(opened, Vec::<String>::new());
}

#[test]
#[ignore = "needs strace"]
fn a_path_without_a_nar_size_is_planned_at_the_start() {
    // The same search of the trace must be able to find something.
    assert!(!opened_before_ready(&[]).is_empty());
}
