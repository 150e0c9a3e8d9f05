//! The main loop of the fetcher: receives requests, has threads fetch, and sends the answers.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::cache::fetch::{CannotFetch, Fetcher};
use crate::source::remote::protocol::{Answer, Connection, FetchRequest, Fetched, PathPart};

/// Concurrent NAR fetches. Each decompresses its NAR, which takes a core and some MiB of memory.
const NARS_AT_ONCE: usize = 5;

/// Concurrent tree fetches. Most of the time each waits for its response.
const TREES_AT_ONCE: usize = 12;

/// Concurrent fetches of pieces. Each takes 1 MiB of memory.
const PIECES_AT_ONCE: usize = 8;

/// Requests read from one connection before the next one's turn.
const REQUESTS_AT_ONCE: usize = 64;

/// Pause after poll(2) itself failed for lack of memory.
const PAUSE: Duration = Duration::from_millis(100);

/// State shared by the threads.
struct SwitchboardShared {
    fetcher: Fetcher,
    state: Mutex<FetchQueues>,
}

#[derive(Default)]
struct FetchQueues {
    /// Connections that wait for each fetch in progress.
    waiting: HashMap<FetchRequest, Vec<Arc<Connection>>>,
    trees: Lane,
    nars: Lane,
    pieces: Lane,
}

/// A queue with a bounded number of threads.
#[derive(Default)]
struct Lane {
    queue: VecDeque<FetchRequest>,
    threads: usize,
}

/// Serves `connections`, and those received over `relay`, until the keeper has ended.
pub(super) fn serve(relay: Connection, connections: Vec<Connection>, fetcher: Fetcher) -> u8 {
    fetcher.begin();
    let shared = Arc::new(SwitchboardShared {
        fetcher,
        state: Mutex::default(),
    });
    let mut connections: Vec<_> = connections.into_iter().map(Arc::new).collect();
    // The hello makes clients repeat the requests that the previous process did not answer.
    connections.retain(|connection| match connection.answer(&Answer::Hello) {
        Err(error) => error.kind() == io::ErrorKind::WouldBlock,
        Ok(()) => true,
    });
    loop {
        let ready = wait(&relay, &connections);
        if ready.first() == Some(&true) {
            match relay.receive_connection() {
                Ok(Some(connection)) => connections.push(Arc::new(connection)),
                Ok(None) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return 0,
            }
        }
        let mut ready = ready.into_iter().skip(1);
        connections.retain(|connection| {
            ready.next() != Some(true)
                || shared.receive_requests(connection) == ConnectionState::Open
        });
    }
}

/// Waits, and returns which of them are readable.
fn wait(relay: &Connection, connections: &[Arc<Connection>]) -> Vec<bool> {
    let all = std::iter::once(relay).chain(connections.iter().map(|connection| &**connection));
    let mut fds: Vec<_> = all
        .map(|connection| PollFd::new(connection.as_fd(), PollFlags::POLLIN))
        .collect();
    match poll(&mut fds, PollTimeout::NONE) {
        Ok(_) | Err(Errno::EINTR) => {}
        Err(errno) => {
            tracing::error!("cannot wait for events: {errno}");
            thread::sleep(PAUSE);
        }
    }
    let is_ready = |fd: &PollFd<'_>| fd.revents().is_some_and(|events| !events.is_empty());
    fds.iter().map(is_ready).collect()
}

#[derive(Debug, PartialEq, Eq)]
enum ConnectionState {
    Open,
    Closed,
}

impl SwitchboardShared {
    fn receive_requests(self: &Arc<Self>, connection: &Arc<Connection>) -> ConnectionState {
        for _ in 0..REQUESTS_AT_ONCE {
            match connection.next_request() {
                Ok(Some(request)) => self.find(connection, request),
                Ok(None) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return ConnectionState::Closed,
            }
        }
        ConnectionState::Open
    }

    /// Answers at once if the cache directory has it; otherwise fetches it.
    fn find(self: &Arc<Self>, connection: &Arc<Connection>, request: FetchRequest) {
        match self.fetcher.kept(request) {
            Some(kept) => send(connection, answer(request, kept)),
            None => self.fetch(request, Some(connection)),
        }
        for ahead in self.fetcher.ahead(request) {
            self.fetch(ahead, None);
        }
    }

    /// Queues `request`. The answer goes to `connection`, if any.
    fn fetch(self: &Arc<Self>, request: FetchRequest, connection: Option<&Arc<Connection>>) {
        let mut state = self.lock();
        let is_new = !state.waiting.contains_key(&request);
        let waiting = state.waiting.entry(request).or_default();
        waiting.extend(connection.cloned());
        if !is_new {
            return;
        }
        let (lane, most) = state.lane(request.part);
        lane.queue.push_back(request);
        if lane.threads < most {
            let shared = Arc::clone(self);
            let name = "fetch".to_owned();
            let thread = thread::Builder::new().name(name);
            let started = thread.spawn(move || shared.work(request.part));
            lane.threads += usize::from(started.is_ok());
            if lane.threads == 0 {
                drop(state);
                self.done(request, Err(CannotFetch::NoThread));
            }
        }
    }

    /// Runs a thread until its queue is empty.
    fn work(self: &Arc<Self>, part: PathPart) {
        while let Some(request) = self.next(part) {
            let found = self.fetcher.get(request);
            let is_found = found.is_ok();
            self.done(request, found);
            if is_found && let Some(next) = self.fetcher.next_to_complete(request) {
                self.fetch(next, None);
            }
        }
    }

    fn next(&self, part: PathPart) -> Option<FetchRequest> {
        let mut state = self.lock();
        let (lane, _) = state.lane(part);
        let next = lane.queue.pop_front();
        if next.is_none() {
            lane.threads -= 1;
        }
        next
    }

    fn done(&self, request: FetchRequest, found: Result<Fetched, CannotFetch>) {
        if let Err(error) = &found {
            self.fetcher.meter().failed();
            tracing::warn!("{}: {error}", self.fetcher.path_name(request.path));
        }
        let waiting = self.lock().waiting.remove(&request).unwrap_or_default();
        let answer = answer(request, found);
        for connection in waiting {
            send(&connection, answer.try_clone());
        }
    }

    /// Every statement leaves the state consistent, so a poisoned lock is usable.
    fn lock(&self) -> MutexGuard<'_, FetchQueues> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FetchQueues {
    /// Returns the lane of a part, and the most threads it may have.
    fn lane(&mut self, part: PathPart) -> (&mut Lane, usize) {
        match part {
            PathPart::Tree => (&mut self.trees, TREES_AT_ONCE),
            PathPart::Nar => (&mut self.nars, NARS_AT_ONCE),
            PathPart::Piece(_) => (&mut self.pieces, PIECES_AT_ONCE),
        }
    }
}

fn answer(request: FetchRequest, found: Result<Fetched, CannotFetch>) -> Answer {
    match found {
        Ok(found) => Answer::Here { request, found },
        Err(error) => Answer::Failed {
            request,
            reason: error.to_string(),
        },
    }
}

/// A client that does not read, or has ended, gets no answer.
fn send(connection: &Connection, answer: Answer) {
    if let Err(error) = connection.answer(&answer) {
        tracing::debug!("cannot send an answer: {error}");
    }
}
