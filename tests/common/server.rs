//! `lazystore serve` as a child process.

use std::ffi::OsStr;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::proc::{children, is_listening, wait_until_confined};
use super::process::{first_line, stderr_of, wait_for};

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

/// The command, not started.
pub fn command(tree: &Path, socket: &Path, extra: &[&str]) -> Command {
    let closure = ["--tree".as_ref(), tree.as_os_str()];
    command_after(&[], &closure, socket, extra)
}

/// The command with the closure arguments `closure`. `before` is a command that runs it, such as `prlimit ...`.
pub fn command_after<A: AsRef<OsStr>>(
    before: &[&str],
    closure: &[A],
    socket: &Path,
    extra: &[&str],
) -> Command {
    let words = before
        .iter()
        .copied()
        .chain([env!("CARGO_BIN_EXE_lazystore")]);
    let words: Vec<&str> = words.collect();
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).arg("serve").args(closure);
    command.arg("--vhost-user").arg(socket).args(extra);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A server that is killed when the test ends.
pub struct Server {
    child: Child,
    pub socket: PathBuf,
    _dir: TempDir,
}

impl Server {
    /// Starts a server at its own path and waits until it listens.
    pub fn start(tree: &Path, extra: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("disk.sock");
        Self::run(command(tree, &socket, extra), socket, dir)
    }

    /// Starts a server with any closure; `before` as in [`command_after`].
    pub fn start_after<A: AsRef<OsStr>>(before: &[&str], closure: &[A], extra: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("disk.sock");
        Self::run(command_after(before, closure, &socket, extra), socket, dir)
    }

    /// Like `start_after`, but returns stderr if the server does not start.
    pub fn try_start_after<A: AsRef<OsStr>>(
        before: &[&str],
        closure: &[A],
        extra: &[&str],
    ) -> Result<Self, String> {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("disk.sock");
        let mut command = command_after(before, closure, &socket, extra);
        let mut child = command.spawn().unwrap();
        if first_line(&mut child).starts_with("ready ") {
            wait_until_confined(pid_of(&child));
            return Ok(Self {
                child,
                socket,
                _dir: dir,
            });
        }
        let status = wait(&mut child);
        assert_eq!(status.code(), Some(1));
        Err(stderr_of(&mut child))
    }

    /// Starts `command`, which listens at `socket` in `dir`.
    pub fn run(command: Command, socket: PathBuf, dir: TempDir) -> Self {
        Self {
            child: start(command),
            socket,
            _dir: dir,
        }
    }

    /// Kills the server and its workers, and starts another one in its place. Like a supervisor, waits until all processes
    /// of the old server have ended: a worker that was just forked also listens, and may outlive its parent briefly.
    pub fn kill_and_restart(&mut self, command: Command) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        wait_for("its workers to be gone", || {
            (!is_listening(&self.socket)).then_some(())
        });
        self.child = start(command);
    }

    pub fn pid(&self) -> Pid {
        pid_of(&self.child)
    }

    /// Process ids of the workers.
    pub fn workers(&self) -> Vec<Pid> {
        children(self.pid())
    }

    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    /// Waits for the server to end by itself, and returns its stderr.
    pub fn end(mut self) -> (ExitStatus, String) {
        let status = wait(&mut self.child);
        let log = stderr_of(&mut self.child);
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

/// Starts a server and waits until it reports that it listens.
pub fn start_at(tree: &Path, socket: &Path, extra: &[&str]) -> Child {
    start(command(tree, socket, extra))
}

fn start(mut command: Command) -> Child {
    let mut child = command.spawn().unwrap();
    let line = first_line(&mut child);
    if !line.starts_with("ready ") {
        let _ = child.kill();
        let piped = child.stderr.is_some();
        let text = piped.then(|| stderr_of(&mut child));
        panic!("{line:?} {text:?}");
    }
    wait_until_confined(pid_of(&child));
    child
}

fn pid_of(child: &Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).unwrap())
}

pub fn wait(child: &mut Child) -> ExitStatus {
    wait_for("the server to end", || child.try_wait().unwrap())
}
