//! Restarts the fetcher process when it dies, and can itself be replaced.
//!
//! The *keeper* forks the fetcher and a *spare*, which only holds the same connections. If either dies, the keeper forks a new
//! one. If the keeper dies, the kernel kills the fetcher, and the spare becomes the next keeper.

use std::io::{self, PipeReader};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use rustix::thread::set_name;

use super::switchboard;
use crate::cache::fetch::Fetcher;
use crate::process::{self, Child};
use crate::source::remote::protocol::Connection;

/// Pause before restarting a process that ended soon after its start. Doubles each time.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// After the keeper's end, how long to wait for the server's end, which often follows.
const SERVER_ENDS_WITHIN: Duration = Duration::from_millis(5);

/// After this lifetime the pause starts at [`FIRST_PAUSE`] again.
const LONG_LIFE: Duration = Duration::from_secs(10);

/// The keeper. Every fetcher process calls `start`.
pub(super) struct FetcherKeeper<F> {
    /// Receives the ends of new connections.
    control: Connection,
    connections: Vec<Connection>,
    start: F,
    fetcher: ProcessSlot,
    spare: ProcessSlot,
}

/// The role of a child process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Fetcher,
    Spare,
}

/// The running process of a role, or when to start the next one.
struct ProcessSlot {
    running: Option<Running>,
    pause: Duration,
    /// Not started before this time.
    due: Instant,
}

struct Running {
    child: Child,
    /// Sends it the ends of new connections.
    relay: Connection,
    /// Reaches end of file when the process ends, as only that process holds the other end.
    life: PipeReader,
    started: Instant,
}

/// Events since the last wait.
#[derive(Debug, Default)]
struct Happened {
    control: bool,
    fetcher: bool,
    spare: bool,
}

impl<F: Fn() -> Fetcher> FetcherKeeper<F> {
    pub(super) fn new(control: Connection, start: F) -> Self {
        Self {
            control,
            connections: Vec::new(),
            start,
            fetcher: ProcessSlot::new(Duration::ZERO),
            spare: ProcessSlot::new(Duration::ZERO),
        }
    }

    /// Runs the keeper until the server has ended.
    pub(super) fn keep(&mut self) -> u8 {
        // For ps and top.
        let _ = set_name(c"keeper");
        loop {
            for role in [Role::Spare, Role::Fetcher] {
                self.start_if_due(role);
            }
            let happened = self.wait();
            // If the server has ended, so does the spare.
            if happened.control && self.pass_on_connection().is_err() {
                return 0;
            }
            for (role, has_ended) in [
                (Role::Spare, happened.spare),
                (Role::Fetcher, happened.fetcher),
            ] {
                if has_ended {
                    self.place(role).record_end(role);
                }
            }
        }
    }

    /// Runs a spare until the server or the keeper has ended.
    fn stand_by(&mut self, from: &Connection) -> u8 {
        // It must outlive its parent, which it replaces.
        if let Err(errno) = prctl::set_pdeathsig(None) {
            tracing::warn!("the spare keeper cannot outlive the keeper: {errno}");
        }
        let _ = set_name(c"spare keeper");
        loop {
            let (control, from_keeper) = self.wait_for_keeper(from);
            if control {
                return 0;
            }
            match from_keeper.then(|| from.receive_connection()) {
                Some(Ok(Some(connection))) => self.connections.push(connection),
                Some(Err(error)) if error.kind() != io::ErrorKind::Interrupted => break,
                _ => {}
            }
        }
        // If the server has ended, the keeper ended because of that.
        if poll_for(&mut [hang_up(&self.control)], Some(SERVER_ENDS_WITHIN)) == [true] {
            return 0;
        }
        self.fetcher = ProcessSlot::new(FIRST_PAUSE);
        tracing::error!("the keeper of the fetcher process ended; the spare takes over");
        self.keep()
    }

    fn start_if_due(&mut self, role: Role) {
        let place = self.place(role);
        if place.running.is_some() || Instant::now() < place.due {
            return;
        }
        match self.run(role) {
            Ok(running) => self.place(role).running = Some(running),
            Err(error) => {
                tracing::error!("{} cannot be started: {error}", role.name());
                self.place(role).postpone();
            }
        }
    }

    fn run(&mut self, role: Role) -> Result<Running, Box<dyn std::error::Error>> {
        let (relay, far) = Connection::pair()?;
        let (life, held) = io::pipe()?;
        let mut relay = Some(relay);
        let child = process::spawn(Signal::SIGKILL, || {
            relay = None;
            // Held open until this process ends.
            let _held = held;
            // Close the connections to the keeper's other child.
            (self.fetcher.running, self.spare.running) = (None, None);
            match role {
                Role::Fetcher => {
                    let _ = set_name(c"fetcher");
                    let connections = std::mem::take(&mut self.connections);
                    switchboard::serve(far, connections, (self.start)())
                }
                Role::Spare => self.stand_by(&far),
            }
        })?;
        Ok(Running {
            child,
            relay: relay.ok_or("no connection")?,
            life,
            started: Instant::now(),
        })
    }

    fn place(&mut self, role: Role) -> &mut ProcessSlot {
        match role {
            Role::Fetcher => &mut self.fetcher,
            Role::Spare => &mut self.spare,
        }
    }

    /// Waits for an event. Drops connections whose other end is closed.
    fn wait(&mut self) -> Happened {
        let places = [&self.fetcher, &self.spare];
        let due = places.iter().filter_map(|place| place.due_in()).min();
        let lives = places.iter().filter_map(|place| place.running.as_ref());
        let mut fds = vec![PollFd::new(self.control.as_fd(), PollFlags::POLLIN)];
        fds.extend(lives.map(|running| PollFd::new(running.life.as_fd(), PollFlags::POLLIN)));
        fds.extend(self.connections.iter().map(hang_up));
        let mut happened = poll_for(&mut fds, due).into_iter();
        let mut next = || happened.next() == Some(true);
        let found = Happened {
            control: next(),
            fetcher: self.fetcher.running.is_some() && next(),
            spare: self.spare.running.is_some() && next(),
        };
        self.connections.retain(|_| !next());
        found
    }

    /// Returns whether the server has ended, and whether the keeper sent something or ended.
    fn wait_for_keeper(&mut self, from: &Connection) -> (bool, bool) {
        let mut fds = vec![
            hang_up(&self.control),
            PollFd::new(from.as_fd(), PollFlags::POLLIN),
        ];
        fds.extend(self.connections.iter().map(hang_up));
        let mut happened = poll_for(&mut fds, None).into_iter();
        let mut next = || happened.next() == Some(true);
        let found = (next(), next());
        self.connections.retain(|_| !next());
        found
    }

    /// Passes a new connection on to both children. If one has just ended, its successor inherits the connection.
    fn pass_on_connection(&mut self) -> io::Result<()> {
        let connection = match self.control.receive_connection() {
            Ok(Some(connection)) => connection,
            Ok(None) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            Err(error) => return Err(error),
        };
        for place in [&self.spare, &self.fetcher] {
            if let Some(running) = &place.running {
                let _ = running.relay.send_connection(&connection);
            }
        }
        self.connections.push(connection);
        Ok(())
    }
}

/// Polls for the hang-up of a connection only, which poll(2) always reports.
fn hang_up(connection: &Connection) -> PollFd<'_> {
    PollFd::new(connection.as_fd(), PollFlags::empty())
}

/// Returns which of `fds` have an event, within `limit`.
fn poll_for(fds: &mut [PollFd<'_>], limit: Option<Duration>) -> Vec<bool> {
    let timeout = limit.map_or(PollTimeout::NONE, |limit| {
        // Round up, so that the wait does not end early.
        let limit = limit + Duration::from_millis(1);
        PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX)
    });
    match poll(fds, timeout) {
        Ok(_) | Err(Errno::EINTR) => {}
        Err(errno) => {
            tracing::error!("cannot wait for events: {errno}");
            std::thread::sleep(FIRST_PAUSE);
        }
    }
    let happened = |fd: &PollFd<'_>| fd.revents().is_some_and(|events| !events.is_empty());
    fds.iter().map(happened).collect()
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Self::Fetcher => "the fetcher process",
            Self::Spare => "the spare keeper",
        }
    }
}

impl ProcessSlot {
    fn new(pause: Duration) -> Self {
        Self {
            running: None,
            pause: FIRST_PAUSE,
            due: Instant::now() + pause,
        }
    }

    /// Returns the time until the next start, or `None` if a process is running.
    fn due_in(&self) -> Option<Duration> {
        let left = self.due.saturating_duration_since(Instant::now());
        self.running.is_none().then_some(left)
    }

    /// Records the end of the process.
    fn record_end(&mut self, role: Role) {
        let Some(mut running) = self.running.take() else {
            return;
        };
        let end = running.child.wait();
        tracing::error!("{} ended ({end:?}); restarting it", role.name());
        if running.started.elapsed() >= LONG_LIFE {
            self.pause = FIRST_PAUSE;
        }
        self.postpone();
    }

    fn postpone(&mut self) {
        self.due = Instant::now() + self.pause;
        self.pause = (2 * self.pause).min(PAUSE_MAX);
    }
}
