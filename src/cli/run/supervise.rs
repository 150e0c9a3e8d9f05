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
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;

use crate::process::{Child, ENDING, End, Signals};

/// How long a process may take to end before it is killed.
pub const GRACE: Duration = Duration::from_secs(5);

/// What the server says when the disk can be attached.
pub const READY: u8 = b'+';
/// What it says when a VM has connected.
pub const CONNECTED: u8 = b'v';

/// What came of waiting for the server.
pub enum Start {
    /// The disk can be attached.
    Ready,
    /// It could not be served, and the server has said why.
    Failed,
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
        let [word, signal] = wait([Some(words.as_fd()), signals.as_fd()])?;
        let received = if signal { signals.take() } else { Vec::new() };
        let mut received = received.into_iter();
        // There is nothing to tell yet.
        if let Some(received) = received.find(|one| ENDING.contains(&one.signal)) {
            server.stop(GRACE);
            return Ok(Start::Interrupted(End::Killed(received.signal)));
        }
        if word {
            let mut said = [0];
            let is_ready = words.read(&mut said)? == 1 && said[0] == READY;
            return Ok(match is_ready {
                true => Start::Ready,
                false => {
                    server.stop(GRACE);
                    Start::Failed
                }
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
            return Ok(vm.stop(GRACE).unwrap_or(End::Unknown));
        }
        wait([signals.as_fd()])?;
        for received in signals.take() {
            match received.signal {
                signal @ (Signal::SIGUSR1 | Signal::SIGUSR2) => server.signal(signal),
                // A terminal sends its signals to the VM, too.
                _ if received.from_terminal => {}
                signal => vm.signal(signal),
            }
        }
    }
}

/// Waits until one of the descriptors is readable; says which.
fn wait<const N: usize>(fds: [Option<BorrowedFd<'_>>; N]) -> io::Result<[bool; N]> {
    let mut polled: Vec<PollFd<'_>> = fds
        .iter()
        .flatten()
        .map(|fd| PollFd::new(*fd, PollFlags::POLLIN))
        .collect();
    match poll(&mut polled, PollTimeout::NONE) {
        Ok(_) | Err(Errno::EINTR) => {}
        Err(errno) => return Err(errno.into()),
    }
    let mut polled = polled.iter();
    Ok(fds.map(|fd| {
        let polled = fd.and_then(|_| polled.next());
        polled.is_some_and(|fd| fd.revents().is_some_and(|events| !events.is_empty()))
    }))
}
