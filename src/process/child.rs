//! Child processes: exit status, and termination within a bounded time.

use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// How long to wait for a killed process. A process in uninterruptible sleep (waiting for a disk) exits only when the
/// kernel wakes it up.
const KILL_GRACE: Duration = Duration::from_secs(2);

/// Polling interval while waiting for children to exit.
const POLL_INTERVAL: Duration = Duration::from_millis(2);

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It exited with this code.
    Exited(u8),
    /// This signal ended it.
    Killed(Signal),
    /// The status is not known, or the signal has no name.
    Unknown,
}

impl End {
    /// Returns the status as a shell's `$?`: the exit code, or 128 plus the signal number.
    pub fn shell_code(self) -> u8 {
        match self {
            Self::Exited(code) => code,
            Self::Killed(signal) => 128 + u8::try_from(signal as i32).unwrap_or(0),
            Self::Unknown => 1,
        }
    }
}

/// A child process. Its PID is not reused before it is reaped here, so signals cannot reach another process.
#[derive(Debug)]
pub struct Child {
    pid: Pid,
    end: Option<End>,
}

impl Child {
    pub(super) fn new(pid: Pid) -> Self {
        Self { pid, end: None }
    }

    /// Returns its PID.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Returns how it ended; `None` while it is running.
    pub fn end(&mut self) -> Option<End> {
        if self.end.is_none() {
            self.end = match waitpid(self.pid, Some(WaitPidFlag::WNOHANG)) {
                Ok(status) => ended(status),
                Err(Errno::EINTR) => None,
                Err(_) => Some(End::Unknown),
            };
        }
        self.end
    }

    /// Waits without limit until it has ended.
    pub fn wait(&mut self) -> End {
        loop {
            if let Some(end) = self.end {
                return end;
            }
            self.end = match waitpid(self.pid, None) {
                Ok(status) => ended(status),
                Err(Errno::EINTR) => None,
                Err(_) => Some(End::Unknown),
            };
        }
    }

    /// Sends a signal, unless the child has ended.
    pub fn signal(&mut self, signal: Signal) {
        if self.end().is_none() {
            // If it exits right now, it is a zombie that still owns the PID.
            let _ = kill(self.pid, signal);
        }
    }

    /// Sends SIGTERM, then SIGKILL after `grace`, and returns how it ended. `None` if it is still running after the
    /// kill, see [`stop_all`].
    pub fn stop(&mut self, grace: Duration) -> Option<End> {
        stop_all(&mut [&mut *self], grace);
        self.end()
    }
}

/// Converts a status from waitpid(2); `None` if the process is still running.
fn ended(status: WaitStatus) -> Option<End> {
    match status {
        WaitStatus::Exited(_, code) => Some(u8::try_from(code).map_or(End::Unknown, End::Exited)),
        WaitStatus::Signaled(_, signal, _) => Some(End::Killed(signal)),
        _ => None,
    }
}

/// Sends SIGTERM to all of them, and SIGKILL to those that are still running after `grace`. Returns at most two seconds
/// later, even if a killed process is stuck in the kernel and still exists.
pub fn stop_all(children: &mut [&mut Child], grace: Duration) {
    for (signal, time) in [(Signal::SIGTERM, grace), (Signal::SIGKILL, KILL_GRACE)] {
        children.iter_mut().for_each(|child| child.signal(signal));
        let deadline = Instant::now() + time;
        while children.iter_mut().any(|child| child.end().is_none()) {
            if Instant::now() >= deadline {
                break;
            }
            thread::sleep(POLL_INTERVAL);
        }
    }
    for child in children.iter_mut().filter(|child| child.end.is_none()) {
        tracing::warn!(
            pid = child.pid.as_raw(),
            "a killed process still exists: it is blocked in the kernel, perhaps by a disk"
        );
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;
    use std::process::Command;

    use super::*;

    /// Returns a child that was started by the standard library but is reaped by [`Child`].
    #[expect(clippy::zombie_processes, reason = "Child waits for it")]
    fn shell(script: &str) -> Child {
        let child = Command::new("sh")
            .args(["-c", script])
            .process_group(0)
            .spawn()
            .unwrap();
        Child::new(Pid::from_raw(i32::try_from(child.id()).unwrap()))
    }

    fn await_end(child: &mut Child) -> End {
        loop {
            match child.end() {
                Some(end) => return end,
                None => thread::sleep(POLL_INTERVAL),
            }
        }
    }

    #[test]
    fn ends_have_the_codes_of_a_shell() {
        let ends =
            ["exit 0", "exit 7", "kill -TERM $$"].map(|script| await_end(&mut shell(script)));
        let expected = [End::Exited(0), End::Exited(7), End::Killed(Signal::SIGTERM)];
        assert_eq!(ends, expected);
        assert_eq!(ends.map(End::shell_code), [0, 7, 143]);
    }

    #[test]
    fn a_child_that_ignores_sigterm_is_killed() {
        let mut child = shell("trap '' TERM; while :; do sleep 1; done");
        let end = child.stop(Duration::from_millis(50));
        // SIGTERM may arrive before the shell ignores it.
        assert!(matches!(
            end,
            Some(End::Killed(Signal::SIGKILL | Signal::SIGTERM))
        ));
        child.signal(Signal::SIGTERM);
        assert_eq!(child.end(), end);
    }
}
