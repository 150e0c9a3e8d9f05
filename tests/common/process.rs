//! Servers as child processes.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::proc::{is_listening, is_traced};
use super::tool;

/// Copies the program under test to `to`, for users who may not enter the build directory.
///
/// By another process: a descriptor for writing that this one had could be inherited by a child of another thread, and
/// then the copy could not be executed yet.
pub fn copy_program(to: &Path) {
    let mut cp = Command::new("cp");
    let copied = cp.arg(env!("CARGO_BIN_EXE_lazystore")).arg(to).status();
    assert!(copied.unwrap().success());
}

/// The first line of a child's stdout, which must be piped; empty if it ended without one.
pub fn first_line(child: &mut Child) -> String {
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap())
        .read_line(&mut line)
        .unwrap();
    line
}

/// What a child wrote to stderr, which must be piped, until its end.
pub fn stderr_of(child: &mut Child) -> String {
    let mut text = String::new();
    let mut stderr = child.stderr.take().unwrap();
    stderr.read_to_string(&mut text).unwrap();
    text
}

/// strace with `arguments` on all threads of a process, once it has them.
pub fn strace(pid: Pid, arguments: &[&str]) -> Child {
    let mut strace = Command::new(tool("strace", "strace"))
        .args(["-f", "-p", &pid.to_string()])
        .args(arguments)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_for("strace", || {
        assert_eq!(strace.try_wait().unwrap(), None, "strace cannot attach");
        is_traced(pid).then_some(())
    });
    strace
}

/// Has strace let go of its process, and write what it has.
pub fn end_strace(mut strace: Child) {
    kill(Pid::from_raw(strace.id().cast_signed()), Signal::SIGINT).unwrap();
    strace.wait().unwrap();
}

/// Waits until a socket is listened at. Its file is there before that; a connection then is refused.
pub fn wait_for_listener(child: &mut Child, socket: &Path) {
    wait_for("somebody to listen", || {
        assert_eq!(child.try_wait().unwrap(), None, "nobody will listen");
        is_listening(socket).then_some(())
    });
}

/// Polls until `look` finds something; fails after a minute: a disk that writes back much may stop everyone for long.
pub fn wait_for<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    wait_long_for(what, Duration::from_secs(60), look)
}

/// The same with another limit.
pub fn wait_long_for<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Ends the test program, loudly, unless it is dropped in time: for calls that cannot be given up.
pub struct Deadline(Sender<()>);

impl Deadline {
    pub fn new(what: &'static str, limit: Duration) -> Self {
        let (sender, receiver) = channel();
        let test = std::thread::current();
        std::thread::spawn(move || {
            if receiver.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
                let test = test.name().unwrap_or("a thread of a test");
                eprintln!("{test} waited in vain for {what}");
                std::process::abort();
            }
        });
        Self(sender)
    }
}
