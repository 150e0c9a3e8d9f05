//! Keeps a process that fetches alive.

use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;

use super::switchboard;
use crate::cache::fetch::Fetcher;
use crate::process::{self, Child};
use crate::source::remote::protocol::Connection;

/// Pause before a process that died at once is started again; it doubles each time.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// One that lived so long did not die at once.
const LONG_LIFE: Duration = Duration::from_secs(10);

/// A process that fetches.
struct Running {
    child: Child,
    /// Takes ends of new connections.
    relay: Connection,
    /// Ends when the process does: nobody else has the other end.
    life: PipeReader,
    started: Instant,
}

/// The keeper's life: until the server has gone. `control` takes ends of new connections, `start` is called in every process
/// that fetches.
pub(super) fn keep(control: Connection, start: impl Fn() -> Fetcher) -> u8 {
    let mut connections: Vec<Connection> = Vec::new();
    let mut pause = FIRST_PAUSE;
    loop {
        let mut running = match run(&control, &connections, &start) {
            Ok(running) => running,
            Err(error) => {
                tracing::error!("the process that fetches cannot be started: {error}");
                thread::sleep(PAUSE_MAX);
                continue;
            }
        };
        if look_after(&control, &mut connections, &running) == Why::ServerEnded {
            return 0;
        }
        let end = running.child.wait();
        tracing::error!("the process that fetches ended ({end:?}): another one takes its place");
        pause = match running.started.elapsed() {
            lived if lived >= LONG_LIFE => FIRST_PAUSE,
            _ => (2 * pause).min(PAUSE_MAX),
        };
        thread::sleep(pause);
    }
}

fn run(
    control: &Connection,
    connections: &[Connection],
    start: &impl Fn() -> Fetcher,
) -> Result<Running, Box<dyn std::error::Error>> {
    let (relay, far) = Connection::pair()?;
    let (life, held): (PipeReader, PipeWriter) = io::pipe()?;
    let copies: Result<Vec<_>, _> = connections.iter().map(Connection::try_clone).collect();
    let copies = copies?;
    let mut relay = Some(relay);
    let child = process::spawn(Signal::SIGKILL, || {
        relay = None;
        // Held until this process ends.
        let _held = held;
        let _ = control;
        switchboard::serve(far, copies, start())
    })?;
    Ok(Running {
        child,
        relay: relay.ok_or("no connection")?,
        life,
        started: Instant::now(),
    })
}

#[derive(Debug, PartialEq, Eq)]
enum Why {
    ServerEnded,
    FetcherEnded,
}

/// Passes connections on until one of the two has ended.
fn look_after(control: &Connection, connections: &mut Vec<Connection>, running: &Running) -> Why {
    loop {
        let mut fds = vec![
            PollFd::new(control.as_fd(), PollFlags::POLLIN),
            PollFd::new(running.life.as_fd(), PollFlags::POLLIN),
        ];
        // Of these only the end is of interest, which is told in any case.
        fds.extend(
            connections
                .iter()
                .map(|connection| PollFd::new(connection.as_fd(), PollFlags::empty())),
        );
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => {
                tracing::error!("cannot wait for something to do: {errno}");
                thread::sleep(FIRST_PAUSE);
            }
        }
        let happened: Vec<bool> = fds
            .iter()
            .map(|fd| fd.revents().is_some_and(|events| !events.is_empty()))
            .collect();
        drop(fds);
        let mut ended = happened[2..].iter();
        connections.retain(|_| ended.next() == Some(&false));
        if happened[1] {
            return Why::FetcherEnded;
        }
        if happened[0] {
            match control.take_over() {
                Ok(Some(connection)) => {
                    // If it has just ended, the next one inherits the connection.
                    let _ = running.relay.hand_over(&connection);
                    connections.push(connection);
                }
                Ok(None) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Why::ServerEnded,
            }
        }
    }
}
