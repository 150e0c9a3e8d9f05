//! Forks a process that runs one function and exits.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::thread;
use std::time::Duration;

use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::{ForkResult, Pid, fork, getpid, getppid};

use super::{Child, ProcessError};

/// Exit code of a role that panicked, the same as of any Rust program.
const EXIT_PANICKED: u8 = 101;

/// Forks a process that runs `role` and exits with its return value. The kernel sends it `on_parent_death` when this
/// process dies.
///
/// The new process drops nothing of the caller, so destructors that remove files or unmount run only in the parent.
///
/// # Errors
/// This process has other threads, or fork(2) fails.
#[allow(unsafe_code)]
pub fn spawn(on_parent_death: Signal, role: impl FnOnce() -> u8) -> Result<Child, ProcessError> {
    require_one_thread()?;
    let parent = getpid();
    // SAFETY: this process has one thread, as was just checked, so no lock is held by a thread that the child lacks.
    match unsafe { fork() }.map_err(ProcessError::host("start a process"))? {
        ForkResult::Parent { child } => Ok(Child::new(child)),
        ForkResult::Child => run(parent, on_parent_death, role),
    }
}

/// Runs `role` in the child.
fn run(parent: Pid, on_parent_death: Signal, role: impl FnOnce() -> u8) -> ! {
    // A panic must not unwind into the parent's stack frames.
    let _guard = ExitOnUnwind;
    let tied = prctl::set_pdeathsig(on_parent_death);
    // If the parent died before prctl(2), no signal will come.
    if tied.is_err() || getppid() != parent {
        exit_now(EXIT_PANICKED);
    }
    exit_now(role())
}

struct ExitOnUnwind;

impl Drop for ExitOnUnwind {
    fn drop(&mut self) {
        exit_now(EXIT_PANICKED);
    }
}

/// Exits at once, without destructors and without the `atexit` handlers inherited from the parent.
#[allow(unsafe_code)]
pub fn exit_now(code: u8) -> ! {
    // SAFETY: _exit(2) has no preconditions; nothing of this process is used afterwards.
    unsafe { libc::_exit(i32::from(code)) }
}

/// Retries, because a thread stays visible in /proc for an instant after it was joined.
fn require_one_thread() -> Result<(), ProcessError> {
    let mut threads = 0;
    for _ in 0..50 {
        threads = count_threads().map_err(ProcessError::host("count threads"))?;
        if threads == 1 {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(2));
    }
    Err(ProcessError::Threads { threads })
}

/// The links of this directory are the two of any directory and one for each thread.
///
/// Landlock allows stat(2) of any file. Listing the directory would need a rule, which does not last: it holds for an
/// inode, and procfs makes a new one for the same directory whenever the kernel has dropped the old one from its caches.
fn count_threads() -> io::Result<u64> {
    let links = fs::metadata("/proc/self/task")?.nlink();
    Ok(links.saturating_sub(2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_threads_does_not_fork() {
        // The test harness runs each test in a thread of its own.
        let refused = spawn(Signal::SIGKILL, || 0);
        assert!(matches!(refused, Err(ProcessError::Threads { threads }) if threads > 1));
    }
}
