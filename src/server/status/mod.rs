//! Where the server can be asked what its VMs do.
//!
//! Next to each socket `S` there is `S.status`, for the owner only. Whoever connects gets one JSON object, and the
//! connection ends. The server waits for no client: what a socket does not take at once is written later, and one that
//! takes nothing for some seconds is let go.

mod figures;
mod metrics;
mod prometheus;

use std::ffi::OsString;
use std::io::{ErrorKind, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::PollFlags;

pub use figures::{ClientKind, ClientStatus, ExportStatus, ServerStatus};
pub(super) use metrics::MetricsFile;
pub use prometheus::text as prometheus_text;

use super::listener::{ListeningSocket, SocketAccess};

/// Clients at a time; further ones wait.
const CLIENTS_MAX: usize = 16;

/// How long one may take to read its answer.
const CLIENT_TIME: Duration = Duration::from_secs(5);

/// All who ask within this time get the same answer, which costs something with many VMs.
const ANSWER_LASTS: Duration = Duration::from_millis(50);

/// Pause after a connection that could not be accepted, which would be tried again at once.
const RETRY: Duration = Duration::from_millis(100);

/// The end of the names of status sockets.
pub const STATUS_SUFFIX: &str = ".status";

/// Where the status of what is served at `place`, a socket or a directory, can be asked for.
pub fn status_path(place: &Path) -> PathBuf {
    let place: PathBuf = place.components().collect();
    let mut name = OsString::from(place);
    name.push(STATUS_SUFFIX);
    name.into()
}

/// The sockets, and who is being answered.
#[derive(Default)]
pub(super) struct StatusPoint {
    sockets: Vec<(PathBuf, ListeningSocket)>,
    clients: Vec<Client>,
    answer: Option<(Instant, Arc<[u8]>)>,
    retry_at: Option<Instant>,
}

struct Client {
    stream: UnixStream,
    answer: Arc<[u8]>,
    written: usize,
    deadline: Instant,
}

impl StatusPoint {
    /// Listens at `paths`. One that cannot be made is no reason not to serve.
    pub(super) fn bind(paths: Vec<PathBuf>) -> Self {
        let mut sockets = Vec::new();
        for path in paths {
            match ListeningSocket::bind(&path, SocketAccess::default()) {
                Ok(socket) => match socket.set_nonblocking() {
                    Ok(()) => sockets.push((path, socket)),
                    Err(error) => tracing::debug!("no status can be asked for: {error}"),
                },
                Err(error) => tracing::debug!("no status can be asked for: {error}"),
            }
        }
        Self {
            sockets,
            ..Self::default()
        }
    }

    /// Where it listens.
    pub(super) fn paths(&self) -> impl Iterator<Item = &Path> {
        self.sockets.iter().map(|(path, _)| path.as_path())
    }

    /// What to wait for.
    pub(super) fn awaited(&self) -> impl Iterator<Item = (BorrowedFd<'_>, PollFlags)> {
        let has_room = self.clients.len() < CLIENTS_MAX && self.retry_at.is_none();
        let sockets = self.sockets.iter().filter(move |_| has_room);
        let sockets = sockets.map(|(_, socket)| (socket.as_fd(), PollFlags::POLLIN));
        let clients = self.clients.iter();
        sockets.chain(clients.map(|client| (client.stream.as_fd(), PollFlags::POLLOUT)))
    }

    /// When it wants to be looked at, if nothing happens before.
    pub(super) fn wakes_at(&self) -> Option<Instant> {
        let deadlines = self.clients.iter().map(|client| client.deadline);
        deadlines.chain(self.retry_at).min()
    }

    /// Answers those who ask, as far as that is possible without waiting.
    pub(super) fn turn(&mut self, now: Instant, status: &dyn Fn() -> ServerStatus) {
        self.retry_at.take_if(|retry_at| *retry_at <= now);
        for stream in self.accept(now) {
            let answer = self.answer(now, status);
            self.clients.push(Client {
                stream,
                answer,
                written: 0,
                deadline: now + CLIENT_TIME,
            });
        }
        self.clients.retain_mut(|client| client.is_unfinished(now));
    }

    fn accept(&mut self, now: Instant) -> Vec<UnixStream> {
        let mut room = CLIENTS_MAX.saturating_sub(self.clients.len());
        let mut accepted = Vec::new();
        for (_, socket) in &self.sockets {
            while room > 0 {
                match socket.accept() {
                    Ok(stream) => accepted.push(stream),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(_) => {
                        self.retry_at = Some(now + RETRY);
                        return accepted;
                    }
                }
                room -= 1;
            }
        }
        accepted
    }

    fn answer(&mut self, now: Instant, status: &dyn Fn() -> ServerStatus) -> Arc<[u8]> {
        if let Some((made, answer)) = &self.answer
            && now.saturating_duration_since(*made) < ANSWER_LASTS
        {
            return Arc::clone(answer);
        }
        // Numbers and strings can always be written.
        let answer: Arc<[u8]> = serde_json::to_vec(&status()).unwrap_or_default().into();
        self.answer = Some((now, Arc::clone(&answer)));
        answer
    }

    /// In a worker: closes all of it, and leaves the files to the parent.
    pub(super) fn leave_to_parent(&mut self) {
        self.clients.clear();
        let sockets = self.sockets.drain(..);
        sockets.for_each(|(_, socket)| drop(socket.into_listener()));
    }
}

impl Client {
    /// Writes on; says whether there is something left to write.
    fn is_unfinished(&mut self, now: Instant) -> bool {
        while let rest @ [_, ..] = &self.answer[self.written..] {
            match self.stream.write(rest) {
                Ok(0) => return false,
                Ok(count) => self.written += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return now < self.deadline,
                Err(_) => return false,
            }
        }
        false
    }
}
