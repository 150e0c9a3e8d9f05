//! A child process: how it ended, and its end within a bounded time.

use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// How long a killed process may take to go. One that waits for a disk in the kernel goes only when that answers.
const KILL_GRACE: Duration = Duration::from_secs(2);

/// Pause between two looks at children that were asked to end.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It exited with this code.
    Exited(u8),
    /// This signal ended it.
    Killed(Signal),
    /// The kernel does not tell, or by a signal without a name.
    Unknown,
}

impl End {
    /// As a shell has it: the exit code, or 128 and the number of the signal.
    pub fn shell_code(self) -> u8 {
        match self {
            Self::Exited(code) => code,
            Self::Killed(signal) => 128 + u8::try_from(signal as i32).unwrap_or(0),
            Self::Unknown => 1,
        }
    }
}

/// A child. Its number belongs to it until its end has been seen here, so signals cannot reach anyone else.
#[derive(Debug)]
pub struct Child {
    pid: Pid,
    end: Option<End>,
}

impl Child {
    pub(super) fn new(pid: Pid) -> Self {
        Self { pid, end: None }
    }

    /// Its process number.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// How it ended; none while it lives.
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

    /// Waits until it has ended, however long that takes.
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

    /// Sends a signal, unless it has ended.
    pub fn signal(&mut self, signal: Signal) {
        if self.end().is_none() {
            // It may end at this moment; it is not waited for yet, so its number is still its own.
            let _ = kill(self.pid, signal);
        }
    }

    /// Asks it to end, kills it after `grace`, and returns how it ended; none if even that did not end it in time.
    pub fn stop(&mut self, grace: Duration) -> Option<End> {
        stop_all(&mut [&mut *self], grace);
        self.end()
    }
}

/// How a process ended that `waitpid` tells of; none if it lives.
fn ended(status: WaitStatus) -> Option<End> {
    match status {
        WaitStatus::Exited(_, code) => Some(u8::try_from(code).map_or(End::Unknown, End::Exited)),
        WaitStatus::Signaled(_, signal, _) => Some(End::Killed(signal)),
        _ => None,
    }
}

/// Asks all of them to end, and kills those that have not after `grace`. Takes two seconds more at most: what a kill does
/// not end waits in the kernel, and goes when the kernel lets it.
pub fn stop_all(children: &mut [&mut Child], grace: Duration) {
    for (signal, time) in [(Signal::SIGTERM, grace), (Signal::SIGKILL, KILL_GRACE)] {
        children.iter_mut().for_each(|child| child.signal(signal));
        let deadline = Instant::now() + time;
        while children.iter_mut().any(|child| child.end().is_none()) {
            if Instant::now() >= deadline {
                break;
            }
            thread::sleep(LOOK_AGAIN);
        }
    }
    for child in children.iter_mut().filter(|child| child.end.is_none()) {
        tracing::warn!(
            pid = child.pid.as_raw(),
            "a process was killed and has not ended: it waits in the kernel, for a disk perhaps"
        );
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;
    use std::process::Command;

    use super::*;

    /// A child that the standard library started, and that it does not wait for.
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
                None => thread::sleep(LOOK_AGAIN),
            }
        }
    }

    #[test]
    fn ends_are_told_as_a_shell_tells_them() {
        let ends =
            ["exit 0", "exit 7", "kill -TERM $$"].map(|script| await_end(&mut shell(script)));
        let expected = [End::Exited(0), End::Exited(7), End::Killed(Signal::SIGTERM)];
        assert_eq!(ends, expected);
        assert_eq!(ends.map(End::shell_code), [0, 7, 143]);
    }

    #[test]
    fn a_child_that_ignores_the_request_is_killed() {
        let mut child = shell("trap '' TERM; while :; do sleep 1; done");
        let end = child.stop(Duration::from_millis(50));
        // The signal may have come before the shell ignored it.
        assert!(matches!(
            end,
            Some(End::Killed(Signal::SIGKILL | Signal::SIGTERM))
        ));
        child.signal(Signal::SIGTERM);
        assert_eq!(child.end(), end);
    }
}
