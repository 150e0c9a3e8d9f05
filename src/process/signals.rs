//! The signals that a parent waits for.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd, siginfo};

use super::ProcessError;

/// What asks a process to end: a supervisor, a terminal's Ctrl-C and Ctrl-\, a terminal that has gone.
pub const ENDING: [Signal; 4] = [
    Signal::SIGTERM,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGHUP,
];

/// A signal that came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// Which.
    pub signal: Signal,
    /// A terminal sent it, and so to all processes of its group.
    pub from_terminal: bool,
}

/// [`ENDING`], `SIGCHLD` and what else is wanted, blocked, so that they are read from a descriptor.
pub struct Signals {
    /// None in a role that was forked from the one that waits.
    fd: Option<SignalFd>,
    before: SigSet,
    others: SigSet,
}

impl Signals {
    /// Blocks them, and `others` that are to be waited for, too. A `SIGHUP` that is ignored, as nohup(1) has it, stays ignored.
    ///
    /// # Errors
    /// When the host has no descriptor left.
    pub fn block(others: &[Signal]) -> Result<Self, ProcessError> {
        let others: SigSet = others.iter().copied().collect();
        let mut wanted: SigSet = ENDING.into_iter().chain(others.iter()).collect();
        wanted.add(Signal::SIGCHLD);
        if is_ignored(Signal::SIGHUP) {
            wanted.remove(Signal::SIGHUP);
        }
        let before = wanted
            .thread_swap_mask(SigmaskHow::SIG_BLOCK)
            .map_err(ProcessError::host("block signals"))?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let fd =
            SignalFd::with_flags(&wanted, flags).map_err(ProcessError::host("wait for signals"))?;
        Ok(Self {
            fd: Some(fd),
            before,
            others,
        })
    }

    /// Readable when one has come; none in a role.
    pub fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        self.fd.as_ref().map(AsFd::as_fd)
    }

    /// Those that have come. A `SIGCHLD` is taken too: after this, look at all children.
    pub fn take(&self) -> Vec<Received> {
        let next = || self.fd.as_ref()?.read_signal().ok().flatten();
        std::iter::from_fn(next)
            .filter_map(|info| received(&info))
            .filter(|one| ENDING.contains(&one.signal) || self.others.contains(one.signal))
            .collect()
    }

    /// For a program that this process becomes: the mask that it was started with.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn restore(&self) -> nix::Result<()> {
        self.before.thread_set_mask()
    }

    /// For a role that will wait for them itself: they stay blocked until it does.
    pub fn hold_back(&mut self) {
        self.fd = None;
    }

    /// For a role that was forked: what a terminal sends to all processes is for the parent to decide, and a `SIGTERM`
    /// is how the parent ends it, even if the parent inherited it as blocked.
    pub fn leave_to_parent(&mut self) {
        let mut mask = self.before;
        let held = ENDING.into_iter().chain(self.others.iter());
        held.for_each(|signal| mask.add(signal));
        mask.remove(Signal::SIGTERM);
        mask.remove(Signal::SIGCHLD);
        // With a wrong mask the role still works, and SIGKILL still ends it.
        let _ = mask.thread_set_mask();
        self.fd = None;
    }
}

/// `SIGTERM`, blocked, for a role that has something to say at its end.
pub struct EndRequest(SignalFd);

impl EndRequest {
    /// Blocks it; threads that are started later have it blocked too.
    ///
    /// # Errors
    /// When the host has no descriptor left.
    pub fn block() -> Result<Self, ProcessError> {
        let wanted: SigSet = [Signal::SIGTERM].into_iter().collect();
        let fd = SignalFd::with_flags(&wanted, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            .map_err(ProcessError::host("wait for signals"))?;
        wanted
            .thread_block()
            .map_err(ProcessError::host("block signals"))?;
        Ok(Self(fd))
    }

    /// Waits for it, or until the other side of `connection` has hung up, `limit_ms` at most.
    pub fn wait(&self, connection: Option<BorrowedFd<'_>>, limit_ms: Option<u16>) -> Waited {
        let limit = limit_ms.map_or(PollTimeout::NONE, PollTimeout::from);
        let mut fds = vec![PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        fds.extend(connection.map(|fd| PollFd::new(fd, PollFlags::empty())));
        while poll(&mut fds, limit) == Err(Errno::EINTR) {}
        let mut ready = fds.iter().map(|fd| fd.any() == Some(true));
        match (ready.next(), ready.next()) {
            (Some(true), _) => Waited::Asked,
            (_, Some(true)) => Waited::HungUp,
            _ => Waited::Limit,
        }
    }
}

/// What [`EndRequest::wait`] saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waited {
    /// This process is to end.
    Asked,
    /// The other side of the connection has gone.
    HungUp,
    /// The time is over.
    Limit,
}

fn received(info: &siginfo) -> Option<Received> {
    let signal = Signal::try_from(i32::try_from(info.ssi_signo).ok()?).ok()?;
    Some(Received {
        signal,
        from_terminal: info.ssi_code == libc::SI_KERNEL,
    })
}

/// Whether this process was started with `signal` ignored (proc(5), `SigIgn`). The kernel hands a blocked signal out even
/// if it is ignored.
fn is_ignored(signal: Signal) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (signal as i32 - 1) & 1 == 1)
}
