//! Forking a worker, and how it ended.

use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, getpid, getppid};

use super::{EXIT_NOBODY, ServeOutcome};
use crate::device::TransportError;

/// How a worker ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum WorkerEnd {
    /// The frontend left.
    Served,
    /// Nobody had spoken.
    Nobody,
    /// With an error, which it has logged.
    Failed(i32),
    /// By a signal.
    Killed(Signal),
}

impl WorkerEnd {
    /// None while the worker lives.
    pub(super) fn of(pid: Pid) -> Option<Self> {
        match waitpid(pid, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(_, 0)) => Some(Self::Served),
            Ok(WaitStatus::Exited(_, code)) if code == i32::from(EXIT_NOBODY) => Some(Self::Nobody),
            Ok(WaitStatus::Exited(_, code)) => Some(Self::Failed(code)),
            Ok(WaitStatus::Signaled(_, signal, _)) => Some(Self::Killed(signal)),
            Ok(_) | Err(Errno::EINTR) => None,
            // No such child: nothing to wait for.
            Err(_) => Some(Self::Failed(-1)),
        }
    }

    pub(super) fn log(&self, pid: Pid) {
        if let Self::Killed(signal) = self {
            tracing::error!("worker {pid} was killed by {signal}; its VM may reconnect");
        }
    }

    pub(super) fn into_outcome(self) -> Result<ServeOutcome, TransportError> {
        let how = match self {
            Self::Served | Self::Nobody => return Ok(ServeOutcome::Parent),
            Self::Failed(code) => format!("exit code {code}"),
            Self::Killed(signal) => signal.to_string(),
        };
        Err(TransportError::Worker { how })
    }
}

/// Which process this is.
pub(crate) enum Forked {
    /// The one that forked; the other one's number.
    Parent(Pid),
    /// The new one.
    Worker,
}

/// Forks a worker; it dies with its parent.
pub(super) fn fork_worker(parent: Pid) -> Result<Forked, Errno> {
    fork_tied(parent, Signal::SIGKILL)
}

/// Forks; the child gets `signal` when this process, `parent`, dies.
#[allow(unsafe_code)]
pub(crate) fn fork_tied(parent: Pid, signal: Signal) -> Result<Forked, Errno> {
    // SAFETY: after a fork only the calling thread exists in the child, so a lock that another thread held would stay
    // locked for ever. The caller has made sure that there is no other thread.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => Ok(Forked::Parent(child)),
        ForkResult::Child => {
            let tied = prctl::set_pdeathsig(signal);
            if tied.is_err() || getppid() != parent {
                // The parent died before the child was tied to it.
                let _ = kill(getpid(), Signal::SIGKILL);
            }
            Ok(Forked::Worker)
        }
    }
}

/// A joined thread stays visible for an instant, so this looks several times.
pub(super) fn require_one_thread() -> Result<(), TransportError> {
    let mut threads = 0;
    for _ in 0..50 {
        let tasks =
            std::fs::read_dir("/proc/self/task").map_err(TransportError::host("count threads"))?;
        threads = tasks.count();
        if threads == 1 {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(2));
    }
    Err(TransportError::Threads { threads })
}
