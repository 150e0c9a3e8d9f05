//! Supervises the server and the VM. If one of the three processes ends, so do the others.
//!
//! | ends | noticed by | consequence |
//! |---|---|---|
//! | the VM | this process | stops the server; returns the VM's exit code |
//! | the server | this process | stops the VM, whose store is gone; removes what the server left |
//! | this process | the kernel | sends SIGTERM to both (`PR_SET_PDEATHSIG`); the server removes all files |
//!
//! The server has its own session, so that a terminal's signals go only to the VM.

use std::io::{self, PipeReader, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;

use crate::process::{Child, ENDING, End, Signals};

/// How long to wait for a process to end before it is killed.
pub const GRACE: Duration = Duration::from_secs(5);

/// The server writes this byte when the disk can be attached.
pub const READY: u8 = b'+';
/// The server writes this byte when a VM has connected.
pub const CONNECTED: u8 = b'v';

/// Result of waiting for the server.
pub enum ServerStart {
    /// The disk can be attached.
    Ready,
    /// The disk could not be served; the server has printed the error.
    Failed,
    /// A signal requested termination.
    Interrupted(End),
}

/// Waits until the server is ready.
pub fn await_ready(
    signals: &Signals,
    server: &mut Child,
    events: &mut PipeReader,
) -> io::Result<ServerStart> {
    loop {
        let [event, signal] = wait([Some(events.as_fd()), signals.as_fd()])?;
        let received = if signal { signals.take() } else { Vec::new() };
        let mut received = received.into_iter();
        // There is no VM yet to forward other signals to.
        if let Some(received) = received.find(|one| ENDING.contains(&one.signal)) {
            server.stop(GRACE);
            return Ok(ServerStart::Interrupted(End::Killed(received.signal)));
        }
        if event {
            let mut byte = [0];
            let is_ready = events.read(&mut byte)? == 1 && byte[0] == READY;
            return Ok(match is_ready {
                true => ServerStart::Ready,
                false => {
                    server.stop(GRACE);
                    ServerStart::Failed
                }
            });
        }
    }
}

/// Waits until the VM ends, and forwards signals to it. If the server ends first, stops the VM.
pub fn await_end(signals: &Signals, server: &mut Child, vm: &mut Child) -> io::Result<End> {
    loop {
        if let Some(end) = vm.end() {
            return Ok(end);
        }
        if server.end().is_some() {
            tracing::error!("the disk's server ended, so the VM is stopped");
            return Ok(vm.stop(GRACE).unwrap_or(End::Unknown));
        }
        wait([signals.as_fd()])?;
        for received in signals.take() {
            match received.signal {
                signal @ (Signal::SIGUSR1 | Signal::SIGUSR2) => server.signal(signal),
                // The terminal has sent this signal to the VM as well.
                _ if received.from_terminal => {}
                signal => vm.signal(signal),
            }
        }
    }
}

/// Waits until one of the descriptors is readable, and returns which ones are.
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
