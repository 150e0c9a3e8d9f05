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

/// Copies the program under test to `to`, for users who cannot enter the build directory.
///
/// Uses another process: a child of another thread could inherit a writable descriptor of this one, and the copy could
/// then not be executed ("text file busy").
pub fn copy_program(to: &Path) {
    let mut cp = Command::new("cp");
    let copied = cp.arg(env!("CARGO_BIN_EXE_lazystore")).arg(to).status();
    assert!(copied.unwrap().success());
}

/// The first line of a child's stdout, which must be piped. Empty if it ended without writing one.
pub fn first_line(child: &mut Child) -> String {
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap())
        .read_line(&mut line)
        .unwrap();
    line
}

/// All that a child writes to stderr, which must be piped.
pub fn stderr_of(child: &mut Child) -> String {
    let mut text = String::new();
    let mut stderr = child.stderr.take().unwrap();
    stderr.read_to_string(&mut text).unwrap();
    text
}

/// Attaches strace with `arguments` to all threads of a process.
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

/// Detaches strace, and waits until it has written its output.
pub fn end_strace(mut strace: Child) {
    kill(Pid::from_raw(strace.id().cast_signed()), Signal::SIGINT).unwrap();
    strace.wait().unwrap();
}

/// Waits until a socket listens. Its file appears earlier, when connections are still refused.
pub fn wait_for_listener(child: &mut Child, socket: &Path) {
    wait_for("somebody to listen", || {
        assert_eq!(child.try_wait().unwrap(), None, "nobody will listen");
        is_listening(socket).then_some(())
    });
}

/// Polls until `look` finds something. Fails after a minute; writeback can block all processes for a long time.
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

/// Ends the test program with a message unless it is dropped in time. For calls that cannot be interrupted.
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
