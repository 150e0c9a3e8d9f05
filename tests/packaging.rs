//! The installed files, the release archive and the Debian package, made from the program under test.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::common::client::{Client, READ_MAX};
use crate::common::process::first_line;
use crate::common::{server, tool};

const LAZYSTORE: &str = env!("CARGO_BIN_EXE_lazystore");

/// Some of the files below the prefix.
const INSTALLED: [&str; 10] = [
    "bin/lazystore",
    "lib/systemd/system/lazystore@.service",
    "lib/systemd/system/lazystore@.socket",
    "libexec/lazystore/vhost-user-blk",
    "share/qemu/vhost-user/50-lazystore.json",
    "share/man/man1/lazystore.1",
    "share/man/man1/lazystore-run.1",
    "share/bash-completion/completions/lazystore",
    "share/zsh/site-functions/_lazystore",
    "share/fish/vendor_completions.d/lazystore.fish",
];

fn script(name: &str) -> Command {
    Command::new(
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("scripts")
            .join(name),
    )
}

fn done(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    output
}

/// All files below `dir`.
fn files(dir: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(one) = dirs.pop() {
        for entry in fs::read_dir(&one).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => dirs.push(path),
                false => _ = found.insert(path.strip_prefix(dir).unwrap().to_owned()),
            }
        }
    }
    found
}

/// Installs the program under test below `prefix`.
fn install(prefix: &Path) -> Command {
    let mut install = script("install");
    install.env("PREFIX", prefix).env("BINARY", LAZYSTORE);
    install.env_remove("DESTDIR");
    install
}

#[test]
#[ignore = "needs systemd"]
fn the_installed_files_work_and_can_be_removed() {
    let prefix = tempfile::tempdir().unwrap();
    done(&mut install(prefix.path()));
    for file in INSTALLED {
        assert!(prefix.path().join(file).is_file(), "{file}");
    }
    let unit = |kind: &str| {
        prefix
            .path()
            .join(format!("lib/systemd/system/lazystore@.{kind}"))
    };
    let service = fs::read_to_string(unit("service")).unwrap();
    let start = format!("ExecStart={}/bin/lazystore serve ", prefix.path().display());
    assert!(service.contains(&start), "{service}");
    let mut verify = Command::new(tool("systemd-analyze", "systemd"));
    let output = done(verify.arg("verify").args([unit("service"), unit("socket")]));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    let installed = prefix.path().join("bin/lazystore");
    done(Command::new(installed).arg("--version"));

    done(install(prefix.path()).arg("--uninstall"));
    assert_eq!(files(prefix.path()), BTreeSet::new());
}

/// Creates the release files in `out`. Returns their checksums.
fn release(out: &Path) -> String {
    let mut release = script("release");
    release
        .arg("--dirty")
        .arg(out)
        .env("LAZYSTORE_BIN", LAZYSTORE);
    done(&mut release);
    fs::read_to_string(out.join("SHA256SUMS")).unwrap()
}

fn package_in(out: &Path) -> PathBuf {
    let package = files(out).into_iter().map(|file| out.join(file));
    let mut package = package.filter(|file| file.extension() == Some("deb".as_ref()));
    package.next().expect("no Debian package")
}

/// Creates the Debian package of the program under test in `out`.
pub fn debian_package(out: &Path) -> PathBuf {
    release(out);
    package_in(out)
}

#[test]
#[ignore = "needs root and dpkg"]
fn releases_are_reproducible_and_the_package_can_be_installed_and_removed() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let sums = release(&out);
    assert!(sums.contains("-linux.tar.gz\n"), "{sums}");
    assert_eq!(sums, release(&dir.path().join("again")));

    let package = package_in(&out);
    let root = dir.path().join("root");
    fs::create_dir_all(root.join("var/lib/dpkg/info")).unwrap();
    fs::create_dir_all(root.join("var/lib/dpkg/updates")).unwrap();
    fs::write(root.join("var/lib/dpkg/status"), "").unwrap();
    let dpkg = || {
        let mut dpkg = Command::new(tool("dpkg", "dpkg"));
        dpkg.arg(format!("--root={}", root.display()));
        // The empty root has neither a C library nor a log socket.
        dpkg.args(["--force-depends", "--force-not-root", "--log=/dev/null"]);
        dpkg
    };
    done(dpkg().arg("-i").arg(&package));
    assert!(root.join("usr/bin/lazystore").is_file());
    let unit = root.join("usr/lib/systemd/system/lazystore@.socket");
    assert!(unit.is_file());
    assert!(
        root.join("usr/share/man/man1/lazystore-serve.1.gz")
            .is_file()
    );
    done(dpkg().args(["--purge", "lazystore"]));
    let left = files(&root).into_iter();
    let left: Vec<_> = left
        .filter(|file| !file.starts_with("var/lib/dpkg"))
        .collect();
    assert_eq!(left, Vec::<PathBuf>::new());
}

/// The program linked with musl, built in the tests' profile.
fn static_program() -> PathBuf {
    let target = format!("{}-unknown-linux-musl", std::env::consts::ARCH);
    let mut build = Command::new(env!("CARGO"));
    build.args(["build", "--locked", "--target", &target]);
    done(build.current_dir(env!("CARGO_MANIFEST_DIR")));
    let target_dir = Path::new(LAZYSTORE).ancestors().nth(2).unwrap();
    target_dir.join(target).join("debug/lazystore")
}

/// The first 256 KiB of metadata and of file data that a program serves.
fn served_by(program: &Path, tree: &Path) -> Vec<Vec<u8>> {
    const DATA: u64 = 128 << 30;
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("disk.sock");
    let mut serve = Command::new(program);
    serve.arg("serve").arg("--tree").arg(tree);
    serve.arg("--vhost-user").arg(&socket);
    serve.stdout(Stdio::piped()).stderr(Stdio::piped());
    let server = server::Server::run(serve, socket, dir);
    let mut client = Client::start(&server.socket, 1);
    let starts = [0, READ_MAX as u64, DATA, DATA + READ_MAX as u64];
    let read = client.read(0, &starts.map(|start| (start, READ_MAX)));
    drop(client);
    server.signal(Signal::SIGTERM);
    let (status, log) = server.end();
    assert!(status.success(), "{log}");
    assert!(!log.contains("ERROR"), "{log}");
    read.into_iter().map(Result::unwrap).collect()
}

/// Its workers are confined by default. This C library may make system calls that are not in the lists.
#[test]
#[ignore = "needs root, musl-gcc and Rust's musl target"]
fn a_static_release_needs_no_c_library_and_serves_the_same_disk() {
    let program = static_program();
    let dir = tempfile::tempdir().unwrap();
    let mut release = script("release");
    release.args(["--dirty", "--static"]).arg(dir.path());
    release.env("LAZYSTORE_BIN", LAZYSTORE);
    done(release.env("LAZYSTORE_STATIC_BIN", &program));
    let archive = files(dir.path())
        .into_iter()
        .map(|file| dir.path().join(file));
    let mut archive =
        archive.filter(|file| file.to_string_lossy().ends_with("-linux-static.tar.gz"));
    let archive = archive.next().expect("no static archive");
    let mut unpack = Command::new("tar");
    unpack
        .arg("-C")
        .arg(dir.path())
        .args(["--strip-components=1", "-xzf"]);
    done(unpack.arg(archive));
    let program = dir.path().join("bin/lazystore");
    // The root contains only the program.
    done(
        Command::new("chroot")
            .arg(dir.path())
            .args(["/bin/lazystore", "--version"]),
    );

    let tree = server::tree();
    assert!(served_by(&program, tree.path()) == served_by(LAZYSTORE.as_ref(), tree.path()));
}

/// A management tool finds the program by its description, queries its capabilities, and starts it with the options in
/// QEMU's docs/interop/vhost-user.rst.
#[test]
fn a_management_tool_finds_and_starts_the_backend() {
    let prefix = tempfile::tempdir().unwrap();
    done(&mut install(prefix.path()));
    let description = fs::read(
        prefix
            .path()
            .join("share/qemu/vhost-user/50-lazystore.json"),
    );
    let description: Value = serde_json::from_slice(&description.unwrap()).unwrap();
    // `VhostUserBackend` in QEMU's docs/interop/vhost-user.json allows only these and `tags`.
    let keys: Vec<_> = description.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["binary", "description", "type"]);
    assert_eq!(description["type"], "block");
    let backend = || Command::new(description["binary"].as_str().unwrap());

    // Other arguments are ignored.
    let mut ask = backend();
    let answer = done(ask.args([
        "--socket-path=/nowhere/socket",
        "--print-capabilities",
        "--what",
    ]));
    let answer: Value = serde_json::from_slice(&answer.stdout).unwrap();
    assert_eq!(
        answer,
        json!({ "type": "block", "features": ["read-only", "blk-file"] })
    );

    let tree = server::tree();
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("socket");
    let start = |command: &mut Command| {
        let mut child = command
            .args(["--read-only", "--blk-file"])
            .arg(tree.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        assert!(first_line(&mut child).starts_with("ready "));
        drop(Client::start(&socket, 1));
        terminate(&child);
        assert!(server::wait(&mut child).success());
    };
    start(backend().arg(format!("--socket-path={}", socket.display())));
    assert!(!socket.exists());

    // An inherited socket, by its descriptor number.
    let listener = UnixListener::bind(&socket).unwrap();
    let mut inherits = Command::new("sh");
    inherits.args(["-c", "exec \"$0\" --fd=5 \"$@\" 5<&0 0</dev/null"]);
    inherits.arg(description["binary"].as_str().unwrap());
    start(inherits.stdin(OwnedFd::from(listener)));
    assert!(socket.exists(), "its file belongs to who made it");
}

fn terminate(child: &Child) {
    kill(
        Pid::from_raw(i32::try_from(child.id()).unwrap()),
        Signal::SIGTERM,
    )
    .unwrap();
}

#[test]
fn a_descriptor_that_is_not_a_listening_socket_is_refused() {
    let tree = server::tree();
    let (connected, _other) = UnixStream::pair().unwrap();
    for (stdin, text) in [
        (
            Stdio::from(OwnedFd::from(connected)),
            "nobody listens on it",
        ),
        (Stdio::null(), "Socket operation on non-socket"),
    ] {
        let mut serve = Command::new("sh");
        serve.args([
            "-c",
            "exec \"$0\" serve --fd 5 --tree \"$1\" 5<&0",
            LAZYSTORE,
        ]);
        let output = serve.arg(tree.path()).stdin(stdin).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(
            error.contains("descriptor 5") && error.contains(text),
            "{error}"
        );
    }
}
