//! Status sockets, which tell what the server's VMs do.
//!
//! Next to each socket `S` there is `S.status`, for the owner only. A client that connects gets one JSON object, and the
//! connection ends. Writes do not block: the rest of an answer is written when the client has read. A client that does
//! not read its answer within some seconds is disconnected.

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

/// Maximum number of clients at a time. Further ones wait.
const CLIENTS_MAX: usize = 16;

/// How long a client may take to read its answer.
const CLIENT_TIME: Duration = Duration::from_secs(5);

/// How long an answer is reused. With many VMs it costs some CPU time.
const ANSWER_LASTS: Duration = Duration::from_millis(50);

/// Pause after a failed accept(2). The connection stays pending, so the socket stays readable.
const RETRY: Duration = Duration::from_millis(100);

/// Suffix of the names of status sockets.
pub const STATUS_SUFFIX: &str = ".status";

/// Path of the status socket for `place`, a socket or the directory of a mount.
pub fn status_path(place: &Path) -> PathBuf {
    let place: PathBuf = place.components().collect();
    let mut name = OsString::from(place);
    name.push(STATUS_SUFFIX);
    name.into()
}

/// The status sockets and their clients.
#[derive(Default)]
pub(super) struct StatusServer {
    sockets: Vec<(PathBuf, ListeningSocket)>,
    clients: Vec<StatusClient>,
    answer: Option<(Instant, Arc<[u8]>)>,
    retry_at: Option<Instant>,
}

struct StatusClient {
    stream: UnixStream,
    answer: Arc<[u8]>,
    written: usize,
    deadline: Instant,
}

impl StatusServer {
    /// Listens at `paths`. Sockets that cannot be created are skipped: serving disks is more important.
    pub(super) fn bind(paths: Vec<PathBuf>) -> Self {
        let mut sockets = Vec::new();
        for path in paths {
            match ListeningSocket::bind(&path, SocketAccess::default()) {
                Ok(socket) => match socket.set_nonblocking() {
                    Ok(()) => sockets.push((path, socket)),
                    Err(error) => tracing::debug!("no status socket: {error}"),
                },
                Err(error) => tracing::debug!("no status socket: {error}"),
            }
        }
        Self {
            sockets,
            ..Self::default()
        }
    }

    /// Paths of the sockets.
    pub(super) fn paths(&self) -> impl Iterator<Item = &Path> {
        self.sockets.iter().map(|(path, _)| path.as_path())
    }

    /// Descriptors to poll.
    pub(super) fn poll_fds(&self) -> impl Iterator<Item = (BorrowedFd<'_>, PollFlags)> {
        let has_room = self.clients.len() < CLIENTS_MAX && self.retry_at.is_none();
        let sockets = self.sockets.iter().filter(move |_| has_room);
        let sockets = sockets.map(|(_, socket)| (socket.as_fd(), PollFlags::POLLIN));
        let clients = self.clients.iter();
        sockets.chain(clients.map(|client| (client.stream.as_fd(), PollFlags::POLLOUT)))
    }

    /// When [`process`](Self::process) must be called even without an event.
    pub(super) fn wakes_at(&self) -> Option<Instant> {
        let deadlines = self.clients.iter().map(|client| client.deadline);
        deadlines.chain(self.retry_at).min()
    }

    /// Accepts clients and writes answers, without blocking.
    pub(super) fn process(&mut self, now: Instant, status: &dyn Fn() -> ServerStatus) {
        self.retry_at.take_if(|retry_at| *retry_at <= now);
        for stream in self.accept(now) {
            let answer = self.answer(now, status);
            self.clients.push(StatusClient {
                stream,
                answer,
                written: 0,
                deadline: now + CLIENT_TIME,
            });
        }
        self.clients.retain_mut(|client| client.write_more(now));
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
        // Serializing numbers and strings does not fail.
        let answer: Arc<[u8]> = serde_json::to_vec(&status()).unwrap_or_default().into();
        self.answer = Some((now, Arc::clone(&answer)));
        answer
    }

    /// In a worker: closes all descriptors, and leaves the files to the parent.
    pub(super) fn leave_to_parent(&mut self) {
        self.clients.clear();
        let sockets = self.sockets.drain(..);
        sockets.for_each(|(_, socket)| drop(socket.into_listener()));
    }
}

impl StatusClient {
    /// Writes more of the answer. Returns whether the client is still to be served.
    fn write_more(&mut self, now: Instant) -> bool {
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
