//! A running server, and what /proc shows of its processes.

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::mount::{UnmountFlags, unmount};
use tempfile::TempDir;

use super::attempt;
use crate::common::proc::{Status, wait_until_confined};
use crate::common::process::{copy_program, wait_for};
use crate::common::tool;

/// A chroot store with a directory, a file and a symlink to serve, and another path.
pub fn store() -> TempDir {
    let root = tempfile::tempdir().unwrap();
    fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let path = root.path().join("nix/store/aaa-path");
    fs::create_dir_all(root.path().join("nix/store/other-path")).unwrap();
    fs::create_dir_all(&path).unwrap();
    fs::write(path.join("file"), "content").unwrap();
    symlink("file", path.join("link")).unwrap();
    fs::write(root.path().join("nix/store/file-path"), [7; 8192]).unwrap();
    symlink("aaa-path", root.path().join("nix/store/link-path")).unwrap();
    let list = ["aaa-path", "file-path", "link-path"].map(|name| format!("/nix/store/{name}\n"));
    fs::write(root.path().join("list"), list.concat()).unwrap();
    root
}

/// Arguments that serve such a store.
pub fn store_args(root: &Path) -> Vec<OsString> {
    let list = root.join("list");
    let args = [
        "--store-root".as_ref(),
        root.as_os_str(),
        "--store-paths".as_ref(),
        list.as_os_str(),
    ];
    args.map(OsString::from).to_vec()
}

/// A running server. Dropping it ends it.
pub struct Served {
    child: Child,
    socket: PathBuf,
    mounted: PathBuf,
}

impl Served {
    /// Serves at a socket in `dir`.
    pub fn at_socket(args: &[OsString], dir: &Path) -> Self {
        Self::start(
            Command::new(env!("CARGO_BIN_EXE_lazystore")),
            args,
            dir,
            "--vhost-user",
        )
    }

    /// Serves as a file below `dir`.
    pub fn as_file(args: &[OsString], dir: &Path) -> Self {
        Self::start(
            Command::new(env!("CARGO_BIN_EXE_lazystore")),
            args,
            dir,
            "--fuse",
        )
    }

    /// Serves at a socket in a directory in `dir`, run by `user`, who owns that directory.
    pub fn by_user(user: u32, args: &[OsString], dir: &Path) -> Self {
        let own = dir.join("own");
        fs::create_dir(&own).unwrap();
        let program = dir.join("lazystore");
        copy_program(&program);
        chown(&own, Some(user), Some(user)).unwrap();
        let mut command = Command::new(tool("setpriv", "util-linux"));
        command
            .args([format!("--reuid={user}"), format!("--regid={user}")])
            .arg("--clear-groups")
            .arg(program);
        Self::start(command, args, &own, "--vhost-user")
    }

    /// The same, run by an attempt such as [`attempt::FEW_NAMESPACES`].
    pub fn by_users_attempt(user: u32, attempt: &str, args: &[OsString], dir: &Path) -> Self {
        let (own, program) = (dir.join("own"), dir.join("lazystore"));
        fs::create_dir(&own).unwrap();
        copy_program(&program);
        chown(&own, Some(user), Some(user)).unwrap();
        let mut command = attempt::runner_by(user, attempt, dir);
        command.env(attempt::PROGRAM, program);
        Self::start(command, args, &own, "--vhost-user")
    }

    /// Serves at a socket in `dir`, run by an attempt such as [`attempt::NO_LANDLOCK`].
    pub fn by_attempt(attempt: &str, args: &[OsString], dir: &Path) -> Self {
        Self::start(attempt::runner(attempt), args, dir, "--vhost-user")
    }

    fn start(mut command: Command, args: &[OsString], dir: &Path, transport: &str) -> Self {
        let place = dir.join("served");
        if transport == "--fuse" {
            fs::create_dir(&place).unwrap();
        }
        let mut child = command
            .arg("serve")
            .args(args)
            .arg(transport)
            .arg(&place)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.as_mut().unwrap()).lines();
        let ready = lines
            .map(Result::unwrap)
            .any(|line| line.contains("ready "));
        let mut server = Self {
            child,
            socket: place.clone(),
            mounted: place,
        };
        assert!(ready, "{}", server.log());
        wait_until_confined(Pid::from_raw(i32::try_from(server.pid()).unwrap()));
        server
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// A worker that has confined itself.
    pub fn worker(&self) -> u32 {
        let pid = self.pid();
        let children = format!("/proc/{pid}/task/{pid}/children");
        // Queue threads are started after that. The last child may be the jail builder, which ends.
        wait_for("a worker with threads", || {
            let children = fs::read_to_string(&children).unwrap();
            let last: u32 = children.split_whitespace().next_back()?.parse().unwrap();
            let threads = fs::read_dir(format!("/proc/{last}/task")).ok()?.count();
            (threads > 1).then_some(last)
        })
    }

    /// Ends it, and returns its stderr.
    pub fn end(mut self) -> (ExitStatus, String) {
        let pid = Pid::from_raw(i32::try_from(self.pid()).unwrap());
        kill(pid, Signal::SIGTERM).unwrap();
        let status = wait_for("the end", || self.child.try_wait().unwrap());
        (status, self.log())
    }

    fn log(&mut self) -> String {
        let mut log = String::new();
        let mut stderr = self.child.stderr.take().unwrap();
        stderr.read_to_string(&mut log).unwrap();
        log
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        while unmount(&self.mounted, UnmountFlags::DETACH).is_ok() {}
    }
}

/// The status of a running process.
pub fn status(pid: u32) -> Status {
    let pid = Pid::from_raw(pid.try_into().unwrap());
    Status::of(pid).unwrap()
}
