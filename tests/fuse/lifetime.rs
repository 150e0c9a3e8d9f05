//! The lifetime of the mount.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use rustix::process::{Signal, kill_process};

use crate::common::fuse::{Place, Server};
use crate::common::process::wait_for;
use crate::common::tool;

fn tree() -> tempfile::TempDir {
    let tree = tempfile::tempdir().unwrap();
    fs::write(tree.path().join("file"), "content").unwrap();
    tree
}

fn start_at(place: &Place, tree: &Path, extra: &[&str]) -> Server {
    let tree = ["--tree".as_ref(), tree.as_os_str()];
    let extra = extra.iter().map(std::ffi::OsStr::new);
    let args: Vec<_> = tree.into_iter().chain(extra).collect();
    Server::start_at(place.path(), &args)
}

#[test]
#[ignore = "needs root and /dev/fuse"]
fn signals_unmount() {
    for signal in [Signal::TERM, Signal::INT] {
        let (place, tree) = (Place::new(), tree());
        let mut server = start_at(&place, tree.path(), &[]);
        assert_eq!(place.mounts(), 1);
        let expected = format!("ready {} in ", server.image().display());
        assert!(server.ready.starts_with(&expected), "{}", server.ready);
        server.signal(signal);
        assert_eq!(server.wait().code(), Some(0));
        assert_eq!(place.mounts(), 0);
        assert!(server.log().contains("-drive file="));
    }
}

#[test]
#[ignore = "needs root and /dev/fuse"]
fn a_mount_left_by_a_killed_server_is_replaced() {
    let (place, tree) = (Place::new(), tree());
    let mut server = start_at(&place, tree.path(), &[]);
    server.signal(Signal::KILL);
    server.wait();
    let dead = || {
        File::open(server.image())
            .err()
            .and_then(|error| error.raw_os_error())
    };
    wait_for("a dead mount", || {
        (dead() == Some(libc::ENOTCONN)).then_some(())
    });
    assert_eq!(place.mounts(), 1);
    let mut server = start_at(&place, tree.path(), &[]);
    File::open(server.image())
        .unwrap()
        .read_exact(&mut [0; 4096])
        .unwrap();
    server.signal(Signal::TERM);
    server.wait();
    assert_eq!(place.mounts(), 0);
}

#[test]
#[ignore = "needs root and /dev/fuse"]
fn a_busy_mount_is_detached() {
    let (place, tree) = (Place::new(), tree());
    let mut server = start_at(&place, tree.path(), &[]);
    let _busy = File::open(server.image()).unwrap();
    server.signal(Signal::TERM);
    assert_eq!(server.wait().code(), Some(0));
    assert_eq!(place.mounts(), 0);
}

#[test]
#[ignore = "needs root and /dev/fuse"]
fn a_live_mount_is_left_alone() {
    let (place, tree) = (Place::new(), tree());
    let server = start_at(&place, tree.path(), &[]);
    let text = refused(place.path(), tree.path(), &[]);
    assert!(text.contains("in use"), "{text}");
    File::open(server.image())
        .unwrap()
        .read_exact(&mut [0; 4096])
        .unwrap();
}

#[test]
#[ignore = "needs root and /dev/fuse"]
fn a_dead_worker_is_replaced() {
    let (place, tree) = (Place::new(), tree());
    let server = start_at(&place, tree.path(), &[]);
    let first = server.worker().unwrap();
    kill_process(first, Signal::KILL).unwrap();
    wait_for("another worker", || {
        server.worker().filter(|pid| *pid != first)
    });
    wait_for("the file", || File::open(server.image()).ok());
    assert_eq!(place.mounts(), 1);
}

#[test]
#[ignore = "needs root and /dev/fuse"]
fn once_ends_with_the_last_reader() {
    let (place, tree) = (Place::new(), tree());
    let mut server = start_at(&place, tree.path(), &["--once"]);
    fs::metadata(server.image()).unwrap();
    let (one, two) = (
        File::open(server.image()).unwrap(),
        File::open(server.image()).unwrap(),
    );
    drop(one);
    (&two).read_exact(&mut [0; 4096]).unwrap();
    drop(two);
    assert_eq!(server.wait().code(), Some(0));
    assert_eq!(place.mounts(), 0);
}

#[test]
#[ignore = "needs root and /dev/fuse"]
fn unmounting_ends_the_server() {
    let (place, tree) = (Place::new(), tree());
    let mut server = start_at(&place, tree.path(), &[]);
    rustix::mount::unmount(place.path(), rustix::mount::UnmountFlags::empty()).unwrap();
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
#[ignore = "needs root and /dev/fuse"]
fn both_transports_at_once() {
    let (place, tree) = (Place::new(), tree());
    let socket = tree.path().with_extension("sock");
    let mut server = start_at(
        &place,
        tree.path(),
        &[
            "--vhost-user",
            socket.to_str().unwrap(),
            "--image-name",
            "x",
        ],
    );
    // The first of two lines. The second one is about the file.
    assert!(
        server
            .ready
            .starts_with(&format!("ready {} in ", socket.display()))
    );
    File::open(place.path().join("x")).unwrap();
    server.signal(Signal::TERM);
    assert_eq!(server.wait().code(), Some(0));
    assert!(!socket.exists());
    assert_eq!(place.mounts(), 0);
}

fn output(program: PathBuf, before: &[&str], dir: &Path, tree: &Path, extra: &[&str]) -> Output {
    let mut command = Command::new(tool("timeout", "coreutils"));
    command.arg("120").arg(program).args(before);
    command
        .arg("serve")
        .arg("--fuse")
        .arg(dir)
        .arg("--tree")
        .arg(tree)
        .args(extra);
    command.output().unwrap()
}

/// Runs a server that must not start. Returns its only sentence.
fn refused(dir: &Path, tree: &Path, extra: &[&str]) -> String {
    sentence(
        &output(
            env!("CARGO_BIN_EXE_lazystore").into(),
            &[],
            dir,
            tree,
            extra,
        ),
        1,
    )
}

fn sentence(output: &Output, code: i32) -> String {
    assert_eq!(output.status.code(), Some(code), "{output:?}");
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    assert!(code == 2 || text.trim_end().lines().count() == 1, "{text}");
    text
}

#[test]
#[ignore = "needs root and /dev/fuse"]
fn errors_are_explained() {
    let tree = tree();
    let text = refused(&tree.path().join("nowhere"), tree.path(), &[]);
    assert!(text.contains("nowhere is not a directory"), "{text}");
    let text = refused(&tree.path().join("file"), tree.path(), &[]);
    assert!(text.contains("file is not a directory"), "{text}");
    let program = env!("CARGO_BIN_EXE_lazystore").into();
    sentence(
        &output(
            program,
            &[],
            tree.path(),
            tree.path(),
            &["--image-name", "a/b"],
        ),
        2,
    );
}

#[test]
#[ignore = "needs root and /dev/fuse"]
fn without_fuse_the_socket_is_recommended() {
    let (place, tree) = (Place::new(), tree());
    let hide_device =
        "mount -t tmpfs none /dev && mknod -m 666 /dev/null c 1 3 && exec \"$0\" \"$@\"";
    let before = [
        "-m",
        "sh",
        "-c",
        hide_device,
        env!("CARGO_BIN_EXE_lazystore"),
    ];
    let text = sentence(
        &output(
            tool("unshare", "util-linux"),
            &before,
            place.path(),
            tree.path(),
            &[],
        ),
        1,
    );
    assert!(
        text.contains("modprobe fuse") && text.contains("--vhost-user"),
        "{text}"
    );
}

#[test]
#[ignore = "needs root and /dev/fuse"]
fn without_fusermount_the_error_names_it() {
    let (place, tree) = (Place::new(), tree());
    // Without the capability to mount, root is like any other user.
    let script = "d=$(mktemp -d) && cp /usr/bin/setpriv $d/ && mount -t tmpfs none /usr/bin && \
        exec $d/setpriv --bounding-set=-sys_admin --inh-caps=-sys_admin \"$0\" \"$@\"";
    let before = ["-m", "sh", "-c", script, env!("CARGO_BIN_EXE_lazystore")];
    let text = sentence(
        &output(
            tool("unshare", "util-linux"),
            &before,
            place.path(),
            tree.path(),
            &[],
        ),
        1,
    );
    assert!(text.contains("install fuse3"), "{text}");
}

/// A user other than the one that serves the disk.
fn another_user_reads(image: &Path) -> bool {
    Command::new(tool("setpriv", "util-linux"))
        .args([
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "head",
            "-c4096",
        ])
        .arg(image)
        .output()
        .unwrap()
        .status
        .success()
}

#[test]
#[ignore = "needs root and /dev/fuse"]
fn other_users_can_read_only_with_allow_other() {
    use std::os::unix::fs::PermissionsExt;
    for (extra, allowed) in [(&[][..], false), (&["--allow-other"][..], true)] {
        let (place, tree) = (Place::new(), tree());
        // The parent directory is open to all users: this tests the mount.
        fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let server = start_at(&place, tree.path(), extra);
        assert_eq!(another_user_reads(&server.image()), allowed, "{extra:?}");
    }
}
