//! Receives signals through a signalfd(2).

use std::fs;
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd, siginfo};

use super::ProcessError;

/// Signals that request termination: from a supervisor, by Ctrl-C or Ctrl-\, or when the terminal is closed.
pub const ENDING: [Signal; 4] = [
    Signal::SIGTERM,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGHUP,
];

/// A received signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReceivedSignal {
    /// Its number.
    pub signal: Signal,
    /// The terminal sent it, so the whole process group has received it.
    pub from_terminal: bool,
}

/// [`ENDING`], `SIGCHLD` and optional others, blocked so that they can be read from a descriptor.
pub struct Signals {
    /// `None` in a forked role, which leaves waiting to its parent.
    fd: Option<SignalFd>,
    /// The signal mask before [`Signals::block`].
    before: SigSet,
    others: SigSet,
}

impl Signals {
    /// Blocks [`ENDING`], `SIGCHLD` and `others`. A `SIGHUP` that is ignored, as by nohup(1), stays ignored.
    ///
    /// # Errors
    /// No descriptor is left.
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

    /// Readable when a signal is pending; `None` in a role.
    pub fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        self.fd.as_ref().map(AsFd::as_fd)
    }

    /// Returns the pending signals. `SIGCHLD` is consumed but not returned, so check all children after this call.
    pub fn take(&self) -> Vec<ReceivedSignal> {
        let next = || self.fd.as_ref()?.read_signal().ok().flatten();
        std::iter::from_fn(next)
            .filter_map(|info| received(&info))
            .filter(|one| ENDING.contains(&one.signal) || self.others.contains(one.signal))
            .collect()
    }

    /// Restores the previous signal mask, for a program that this process executes.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn restore(&self) -> nix::Result<()> {
        self.before.thread_set_mask()
    }

    /// For a forked role that will block signals itself later. They stay blocked until then.
    pub fn hold_back(&mut self) {
        self.fd = None;
    }

    /// For a forked role: keeps the signals that a terminal sends to the whole process group blocked, because the
    /// parent handles them. Unblocks `SIGTERM`, with which the parent ends the role, even if the parent inherited it
    /// blocked.
    pub fn leave_to_parent(&mut self) {
        let mut mask = self.before;
        let held = ENDING.into_iter().chain(self.others.iter());
        held.for_each(|signal| mask.add(signal));
        mask.remove(Signal::SIGTERM);
        mask.remove(Signal::SIGCHLD);
        // An error is harmless: with a wrong mask the role still works, and SIGKILL still ends it.
        let _ = mask.thread_set_mask();
        self.fd = None;
    }
}

/// A blocked `SIGTERM`, for a role that reports something before it exits.
pub struct EndRequest(SignalFd);

impl EndRequest {
    /// Blocks `SIGTERM` for this thread and the threads that it starts later.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn block() -> Result<Self, ProcessError> {
        let wanted: SigSet = [Signal::SIGTERM].into_iter().collect();
        let fd = SignalFd::with_flags(&wanted, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            .map_err(ProcessError::host("wait for signals"))?;
        wanted
            .thread_block()
            .map_err(ProcessError::host("block signals"))?;
        Ok(Self(fd))
    }

    /// Waits until `SIGTERM` arrives, the peer of `connection` hangs up, or `limit_ms` have passed.
    pub fn wait(&self, connection: Option<BorrowedFd<'_>>, limit_ms: Option<u16>) -> WaitEnd {
        let limit = limit_ms.map_or(PollTimeout::NONE, PollTimeout::from);
        let mut fds = vec![PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        fds.extend(connection.map(|fd| PollFd::new(fd, PollFlags::empty())));
        while poll(&mut fds, limit) == Err(Errno::EINTR) {}
        let mut ready = fds.iter().map(|fd| fd.any() == Some(true));
        match (ready.next(), ready.next()) {
            (Some(true), _) => WaitEnd::Asked,
            (_, Some(true)) => WaitEnd::HungUp,
            _ => WaitEnd::Limit,
        }
    }
}

/// Why [`EndRequest::wait`] returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaitEnd {
    /// `SIGTERM` arrived.
    Asked,
    /// The peer of the connection hung up.
    HungUp,
    /// The time limit passed.
    Limit,
}

fn received(info: &siginfo) -> Option<ReceivedSignal> {
    let signal = Signal::try_from(i32::try_from(info.ssi_signo).ok()?).ok()?;
    Some(ReceivedSignal {
        signal,
        from_terminal: info.ssi_code == libc::SI_KERNEL,
    })
}

/// Returns whether this process was started with `signal` ignored (`SigIgn` in proc(5)). Needed because a blocked signal is
/// delivered to a signalfd even if it is ignored.
fn is_ignored(signal: Signal) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (signal as i32 - 1) & 1 == 1)
}
