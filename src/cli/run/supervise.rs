//! The server and the VM as children: each of the three processes ends when another one does.
//!
//! | dies | who notices | what follows |
//! |---|---|---|
//! | the VM | this process | the server is asked to end; the VM's exit code is returned |
//! | the server | this process | the VM is asked to end: its store is gone; what the server left is removed |
//! | this process | the kernel | both are asked to end (`PR_SET_PDEATHSIG`); the server removes what there is |
//!
//! The server has a session of its own, so that a terminal's signals go to the VM only.

use std::io::{self, PipeReader, Read};
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd, siginfo};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// How long a process may take to end before it is killed.
const GRACE: Duration = Duration::from_secs(5);

/// What the server says when the disk can be attached.
pub const READY: u8 = b'+';
/// What it says when a VM has connected.
pub const CONNECTED: u8 = b'v';

/// How a process ended, as a shell puts it: its exit code, or 128 and the number of the signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End(pub u8);

impl From<End> for ExitCode {
    fn from(end: End) -> Self {
        Self::from(end.0)
    }
}

impl End {
    fn by(signal: i32) -> Self {
        Self(u8::try_from(128 + signal).unwrap_or(u8::MAX))
    }
}

/// The signals that this process waits for, blocked.
pub struct Signals {
    fd: SignalFd,
    before: SigSet,
}

impl Signals {
    pub fn block() -> nix::Result<Self> {
        let wanted: SigSet = [
            Signal::SIGCHLD,
            Signal::SIGTERM,
            Signal::SIGINT,
            Signal::SIGHUP,
        ]
        .into_iter()
        .collect();
        let before = wanted.thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
        let fd = SignalFd::with_flags(&wanted, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        Ok(Self { fd, before })
    }

    /// For the VM.
    pub fn restore(&self) -> nix::Result<()> {
        self.before.thread_set_mask()
    }

    /// What has come and asks for the end: the signal, and whether the terminal sent it, to the VM too.
    fn requests(&self) -> Vec<(Signal, bool)> {
        let next = || self.fd.read_signal().ok().flatten();
        std::iter::from_fn(next)
            .filter_map(|info| request(&info))
            .collect()
    }
}

fn request(info: &siginfo) -> Option<(Signal, bool)> {
    let signal = Signal::try_from(i32::try_from(info.ssi_signo).ok()?).ok()?;
    (signal != Signal::SIGCHLD).then_some((signal, info.ssi_code == libc::SI_KERNEL))
}

/// A child until it has been waited for.
#[derive(Debug)]
pub struct Child {
    pid: Pid,
    end: Option<End>,
}

impl Child {
    pub fn new(pid: Pid) -> Self {
        Self { pid, end: None }
    }

    /// None while it lives.
    pub fn end(&mut self) -> Option<End> {
        if self.end.is_none() {
            self.end = match waitpid(self.pid, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(_, code)) => Some(End(u8::try_from(code).unwrap_or(1))),
                Ok(WaitStatus::Signaled(_, signal, _)) => Some(End::by(signal as i32)),
                Ok(_) | Err(Errno::EINTR) => None,
                Err(_) => Some(End(1)),
            };
        }
        self.end
    }

    pub fn signal(&mut self, signal: Signal) {
        if self.end().is_none() {
            // Not waited for yet, so the number cannot belong to anyone else.
            let _ = kill(self.pid, signal);
        }
    }

    /// Asks it to end, and insists after a while.
    pub fn stop(&mut self) -> End {
        self.signal(Signal::SIGTERM);
        let deadline = Instant::now() + GRACE;
        loop {
            if let Some(end) = self.end() {
                return end;
            }
            if Instant::now() >= deadline {
                self.signal(Signal::SIGKILL);
            }
            thread::sleep(Duration::from_millis(2));
        }
    }
}

/// What came of waiting for the server.
pub enum Start {
    /// The disk can be attached.
    Ready,
    /// It could not be served; the server has said why.
    Failed(End),
    /// A signal came in between.
    Interrupted(End),
}

/// Waits until the server is ready.
pub fn await_ready(
    signals: &Signals,
    server: &mut Child,
    words: &mut PipeReader,
) -> io::Result<Start> {
    loop {
        let fds = [signals.fd.as_fd(), words.as_fd()];
        let [signal, word] = wait(fds)?;
        if signal && let Some((signal, _)) = signals.requests().first() {
            server.stop();
            return Ok(Start::Interrupted(End::by(*signal as i32)));
        }
        if word {
            let mut said = [0];
            let is_ready = words.read(&mut said)? == 1 && said[0] == READY;
            return Ok(match is_ready {
                true => Start::Ready,
                false => Start::Failed(server.stop()),
            });
        }
    }
}

/// Waits for the VM's end; passes signals on to it. When the server ends first, the VM is ended.
pub fn await_end(signals: &Signals, server: &mut Child, vm: &mut Child) -> io::Result<End> {
    loop {
        if let Some(end) = vm.end() {
            return Ok(end);
        }
        if server.end().is_some() {
            tracing::error!("the disk's server is gone, so the VM is ended");
            return Ok(vm.stop());
        }
        wait([signals.fd.as_fd()])?;
        for (signal, from_terminal) in signals.requests() {
            if !from_terminal {
                vm.signal(signal);
            }
        }
    }
}

/// Which of the descriptors is readable.
fn wait<const N: usize>(fds: [std::os::fd::BorrowedFd<'_>; N]) -> io::Result<[bool; N]> {
    let mut fds = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN));
    match poll(&mut fds, PollTimeout::NONE) {
        Ok(_) | Err(Errno::EINTR) => {}
        Err(errno) => return Err(errno.into()),
    }
    Ok(fds.map(|fd| fd.revents().is_some_and(|events| !events.is_empty())))
}
