//! `lazystore serve --nbd` as a child process.

use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::unistd::Pid;
use tempfile::TempDir;

use super::client::Client;
use crate::common::proc::children;
use crate::common::process::stderr_of;

/// A running server. Dropping it kills it.
pub struct Program {
    pub child: Child,
    /// The addresses in the ready lines, in the order of the options.
    pub places: Vec<String>,
    _dir: Option<TempDir>,
}

/// Serves a tree at a Unix socket.
pub fn serve(tree: &Path, extra: &[&str]) -> Unix {
    serve_closure(&["--tree", tree.to_str().unwrap()], extra)
}

/// Serves any closure at a Unix socket.
pub fn serve_closure(closure: &[&str], extra: &[&str]) -> Unix {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("store.nbd");
    let place = format!("unix:{}", socket.display());
    let mut program = try_serve_closure(closure, &[&place], extra).unwrap();
    assert_eq!(program.places, [socket.to_str().unwrap()]);
    program._dir = Some(dir);
    Unix { program, socket }
}

/// Serves a tree at addresses for `--nbd`.
pub fn serve_at(tree: &Path, places: &[&str], extra: &[&str]) -> Program {
    try_serve_at(tree, places, extra).unwrap()
}

/// The same, or its error.
pub fn try_serve_at(tree: &Path, places: &[&str], extra: &[&str]) -> Result<Program, String> {
    try_serve_closure(&["--tree", tree.to_str().unwrap()], places, extra)
}

/// Serves any closure.
pub fn try_serve_closure(
    closure: &[&str],
    places: &[&str],
    extra: &[&str],
) -> Result<Program, String> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lazystore"));
    command.arg("serve").args(closure).args(extra);
    for place in places {
        command.args(["--nbd", place]);
    }
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let ready: Vec<_> = lines.take(places.len()).map(Result::unwrap).collect();
    if ready.len() < places.len() {
        child.wait().unwrap();
        return Err(stderr_of(&mut child));
    }
    let place = |line: &String| line.split(' ').nth(1).unwrap().to_owned();
    Ok(Program {
        child,
        places: ready.iter().map(place).collect(),
        _dir: None,
    })
}

impl Program {
    pub fn workers(&self) -> Vec<Pid> {
        children(self.pid())
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// Connects to a TCP port of it.
    pub fn connect(&self, index: usize) -> TcpStream {
        TcpStream::connect(&self.places[index]).unwrap()
    }

    /// Connects an NBD client to a TCP port of it.
    pub fn tcp_client(&self, index: usize) -> Client<TcpStream> {
        Client::start(self.connect(index), "nix-store")
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A server at a Unix socket.
pub struct Unix {
    program: Program,
    pub socket: PathBuf,
}

impl Unix {
    pub fn client(&self) -> Client {
        self.client_of("nix-store")
    }

    /// A client of the disk `export`.
    pub fn client_of(&self, export: &str) -> Client {
        Client::start(UnixStream::connect(&self.socket).unwrap(), export)
    }

    /// The NBD URI of a disk.
    pub fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.socket.display())
    }
}

impl std::ops::Deref for Unix {
    type Target = Program;

    fn deref(&self) -> &Program {
        &self.program
    }
}

impl std::ops::DerefMut for Unix {
    fn deref_mut(&mut self) -> &mut Program {
        &mut self.program
    }
}
