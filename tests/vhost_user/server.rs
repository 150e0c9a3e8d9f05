//! `lazystore serve` as a child process.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::common::process::{children, first_line, wait_for};

/// A tree to serve: files of many sizes in two directories.
pub fn tree() -> TempDir {
    let tree = tempfile::tempdir().unwrap();
    for dir in ["one", "two/three"] {
        let dir = tree.path().join(dir);
        fs::create_dir_all(&dir).unwrap();
        for len in [0, 1, 700, 4096, 4097, 50_000, 1_000_000, 3_000_001] {
            let content: Vec<u8> = (0..len)
                .map(|i| u8::try_from(i * 31 % 251).unwrap())
                .collect();
            fs::write(dir.join(format!("file{len}")), content).unwrap();
        }
    }
    tree
}

/// The command, without having been started.
pub fn command(tree: &Path, socket: &Path, extra: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lazystore"));
    command
        .arg("serve")
        .arg("--tree")
        .arg(tree)
        .arg("--vhost-user")
        .arg(socket);
    command
        .args(extra)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// A server that is killed when the test ends.
pub struct Server {
    child: Child,
    pub socket: PathBuf,
    _dir: TempDir,
}

impl Server {
    /// Starts a server at a path of its own and waits until it listens.
    pub fn start(tree: &Path, extra: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("disk.sock");
        let child = start_at(tree, &socket, extra);
        Self {
            child,
            socket,
            _dir: dir,
        }
    }

    /// As [`Server::start`], with a umask for all that it makes.
    pub fn start_with_umask(umask: &str, tree: &Path, extra: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("disk.sock");
        let serve = command(tree, &socket, extra);
        let mut shell = Command::new("sh");
        shell.args(["-c", "umask $0; exec \"$@\"", umask]);
        shell.arg(serve.get_program()).args(serve.get_args());
        shell.stdout(Stdio::piped()).stderr(Stdio::piped());
        Self {
            child: ready(shell),
            socket,
            _dir: dir,
        }
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).unwrap())
    }

    /// Worker processes, as the kernel knows them.
    pub fn workers(&self) -> Vec<Pid> {
        children(self.pid())
    }

    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    /// Waits for the server to end by itself; returns what it wrote to stderr.
    pub fn end(mut self) -> (ExitStatus, String) {
        let status = wait(&mut self.child);
        let mut log = String::new();
        self.child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut log)
            .unwrap();
        (status, log)
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let mut log = String::new();
        if let Some(mut stderr) = self.child.stderr.take()
            && std::thread::panicking()
            && stderr.read_to_string(&mut log).is_ok()
        {
            eprintln!("the server said:\n{log}");
        }
    }
}

/// Starts a server and waits until it says that it listens.
pub fn start_at(tree: &Path, socket: &Path, extra: &[&str]) -> Child {
    ready(command(tree, socket, extra))
}

/// Starts a server's command and waits until it says that it is ready.
fn ready(mut command: Command) -> Child {
    let mut child = command.spawn().unwrap();
    let line = first_line(&mut child);
    assert!(line.starts_with("ready "), "{line:?}");
    child
}

pub fn wait(child: &mut Child) -> ExitStatus {
    wait_for("the server to end", || child.try_wait().unwrap())
}
