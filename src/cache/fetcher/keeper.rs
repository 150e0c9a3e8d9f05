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

/// Pause before a process that died at once is started again; it doubles each time.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// How long after the keeper's end the server's may be heard.
const SERVER_ENDS_WITHIN: Duration = Duration::from_millis(5);

/// One that lived so long did not die at once.
const LONG_LIFE: Duration = Duration::from_secs(10);

/// The keeper. `start` is called in every fetcher process.
pub(super) struct Keeper<F> {
    /// Takes ends of new connections.
    control: Connection,
    connections: Vec<Connection>,
    start: F,
    fetcher: Place,
    spare: Place,
}

/// What another process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Fetcher,
    Spare,
}

/// The process of a role, or when it is to be started.
struct Place {
    running: Option<Running>,
    pause: Duration,
    /// Before that none is started.
    due: Instant,
}

struct Running {
    child: Child,
    /// Takes ends of new connections.
    relay: Connection,
    /// Ends when the process does: nobody else has the other end.
    life: PipeReader,
    started: Instant,
}

/// What was waited for.
#[derive(Debug, Default)]
struct Happened {
    control: bool,
    fetcher: bool,
    spare: bool,
}

impl<F: Fn() -> Fetcher> Keeper<F> {
    pub(super) fn new(control: Connection, start: F) -> Self {
        Self {
            control,
            connections: Vec::new(),
            start,
            fetcher: Place::new(Duration::ZERO),
            spare: Place::new(Duration::ZERO),
        }
    }

    /// The keeper's life: until the server has gone.
    pub(super) fn keep(&mut self) -> u8 {
        // For those who look at processes.
        let _ = set_name(c"keeper");
        loop {
            for role in [Role::Spare, Role::Fetcher] {
                self.start_if_due(role);
            }
            let happened = self.wait();
            // The spare ends with the server, too.
            if happened.control && self.hear_server().is_err() {
                return 0;
            }
            for (role, has_ended) in [
                (Role::Spare, happened.spare),
                (Role::Fetcher, happened.fetcher),
            ] {
                if has_ended {
                    self.place(role).bury(role);
                }
            }
        }
    }

    /// A spare's life: until the server has gone or the keeper has.
    fn stand_by(&mut self, from: &Connection) -> u8 {
        // It must outlive its parent, whose place it takes.
        if let Err(errno) = prctl::set_pdeathsig(None) {
            tracing::warn!("the spare keeper ends with the keeper: {errno}");
        }
        let _ = set_name(c"spare keeper");
        loop {
            let (control, from_keeper) = self.wait_for_keeper(from);
            if control {
                return 0;
            }
            match from_keeper.then(|| from.take_over()) {
                Some(Ok(Some(connection))) => self.connections.push(connection),
                Some(Err(error)) if error.kind() != io::ErrorKind::Interrupted => break,
                _ => {}
            }
        }
        // Both end when the server does.
        if poll_for(&mut [ends(&self.control)], Some(SERVER_ENDS_WITHIN)) == [true] {
            return 0;
        }
        self.fetcher = Place::new(FIRST_PAUSE);
        tracing::error!(
            "the process that keeps the one that fetches ended: another one takes its place"
        );
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
            // Held until this process ends.
            let _held = held;
            // What leads to the keeper's other child.
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

    fn place(&mut self, role: Role) -> &mut Place {
        match role {
            Role::Fetcher => &mut self.fetcher,
            Role::Spare => &mut self.spare,
        }
    }

    /// Waits until there is something to do. Connections that have ended are dropped.
    fn wait(&mut self) -> Happened {
        let places = [&self.fetcher, &self.spare];
        let due = places.iter().filter_map(|place| place.due_in()).min();
        let lives = places.iter().filter_map(|place| place.running.as_ref());
        let mut fds = vec![PollFd::new(self.control.as_fd(), PollFlags::POLLIN)];
        fds.extend(lives.map(|running| PollFd::new(running.life.as_fd(), PollFlags::POLLIN)));
        fds.extend(self.connections.iter().map(ends));
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

    /// Whether the server has ended, and whether the keeper has something to say.
    fn wait_for_keeper(&mut self, from: &Connection) -> (bool, bool) {
        let mut fds = vec![
            ends(&self.control),
            PollFd::new(from.as_fd(), PollFlags::POLLIN),
        ];
        fds.extend(self.connections.iter().map(ends));
        let mut happened = poll_for(&mut fds, None).into_iter();
        let mut next = || happened.next() == Some(true);
        let found = (next(), next());
        self.connections.retain(|_| !next());
        found
    }

    /// Passes a new connection on. If one of the two has just ended, the next one inherits it.
    fn hear_server(&mut self) -> io::Result<()> {
        let connection = match self.control.take_over() {
            Ok(Some(connection)) => connection,
            Ok(None) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            Err(error) => return Err(error),
        };
        for place in [&self.spare, &self.fetcher] {
            if let Some(running) = &place.running {
                let _ = running.relay.hand_over(&connection);
            }
        }
        self.connections.push(connection);
        Ok(())
    }
}

/// Of a connection only the end is of interest, which is told in any case.
fn ends(connection: &Connection) -> PollFd<'_> {
    PollFd::new(connection.as_fd(), PollFlags::empty())
}

/// Which of them something happened to, within `limit`.
fn poll_for(fds: &mut [PollFd<'_>], limit: Option<Duration>) -> Vec<bool> {
    let timeout = limit.map_or(PollTimeout::NONE, |limit| {
        // Not before it is over.
        let limit = limit + Duration::from_millis(1);
        PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX)
    });
    match poll(fds, timeout) {
        Ok(_) | Err(Errno::EINTR) => {}
        Err(errno) => {
            tracing::error!("cannot wait for something to do: {errno}");
            std::thread::sleep(FIRST_PAUSE);
        }
    }
    let happened = |fd: &PollFd<'_>| fd.revents().is_some_and(|events| !events.is_empty());
    fds.iter().map(happened).collect()
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Self::Fetcher => "the process that fetches",
            Self::Spare => "the spare of the process that keeps it",
        }
    }
}

impl Place {
    fn new(pause: Duration) -> Self {
        Self {
            running: None,
            pause: FIRST_PAUSE,
            due: Instant::now() + pause,
        }
    }

    /// How long it is until one is to be started; none if one is running.
    fn due_in(&self) -> Option<Duration> {
        let left = self.due.saturating_duration_since(Instant::now());
        self.running.is_none().then_some(left)
    }

    /// Takes note of an end.
    fn bury(&mut self, role: Role) {
        let Some(mut running) = self.running.take() else {
            return;
        };
        let end = running.child.wait();
        tracing::error!(
            "{} ended ({end:?}): another one takes its place",
            role.name()
        );
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
