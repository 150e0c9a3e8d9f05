//! Waits for events: the only place where the parent blocks.

use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::super::workers::Worker;
use super::{SILENT_MAX, Server};

/// Pause after a failed poll(2), which happens when memory is short.
const PAUSE: Duration = Duration::from_millis(100);

/// The source of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EventSource {
    Signals,
    /// Index of a worker.
    Worker(usize),
    /// Index of an endpoint.
    Endpoint(usize),
    /// A status client connects or can receive more.
    Status,
}

impl Server<'_> {
    /// Waits for events. Returns their sources, or nothing if a deadline has passed.
    pub(super) fn wait(&mut self) -> Vec<EventSource> {
        let now = Instant::now();
        let may_take = self.is_confined && self.may_take_clients();
        let limit = self
            .wakes_at(now)
            .map(|at| at.saturating_duration_since(now));
        let mut sources = Vec::new();
        let mut fds = Vec::new();
        let mut add = |source, fd, flags| {
            sources.push(source);
            fds.push(PollFd::new(fd, flags));
        };
        for (index, endpoint) in self.endpoints.iter_mut().enumerate() {
            let waits = match endpoint.socket_mut() {
                Some(socket) => {
                    let silent =
                        |worker: &&Worker| worker.endpoint == index && !worker.is_connected;
                    may_take
                        && self.workers.iter().filter(silent).count() < SILENT_MAX
                        && socket.may_accept(now)
                }
                None => true,
            };
            if waits && let Some(fd) = endpoint.as_fd() {
                add(EventSource::Endpoint(index), fd, PollFlags::POLLIN);
            }
        }
        if let Some(fd) = self.signals.as_fd() {
            add(EventSource::Signals, fd, PollFlags::POLLIN);
        }
        for (fd, flags) in self.status.poll_fds().filter(|_| self.is_confined) {
            add(EventSource::Status, fd, flags);
        }
        for (index, worker) in self.workers.iter().enumerate() {
            if let Some(fd) = worker.as_fd() {
                add(EventSource::Worker(index), fd, PollFlags::POLLIN);
            }
        }
        match poll(&mut fds, timeout(limit)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => {
                tracing::error!("cannot wait for something to do: {errno}");
                std::thread::sleep(PAUSE);
            }
        }
        let is_ready = |fd: &PollFd<'_>| fd.revents().is_some_and(|events| !events.is_empty());
        let ready = fds.iter().map(is_ready);
        let ready = sources.iter().zip(ready).filter(|(_, ready)| *ready);
        ready.map(|(source, _)| *source).collect()
    }

    /// The next deadline.
    fn wakes_at(&mut self, now: Instant) -> Option<Instant> {
        let first_message = self.options.limits.first_message;
        let deadlines = self
            .workers
            .iter()
            .filter_map(|worker| worker.deadline(first_message));
        let others = self
            .next_status_update()
            .into_iter()
            .chain(self.jail.until());
        let deadline = deadlines.chain(others).min();
        let endpoints = self.endpoints.iter_mut();
        let due = endpoints.filter_map(|endpoint| endpoint.wakes_at(now));
        due.chain(deadline).min()
    }
}

/// Rounds up, so that the deadline has passed after the timeout.
fn timeout(limit: Option<Duration>) -> PollTimeout {
    limit.map_or(PollTimeout::NONE, |limit| {
        let millis = limit.as_millis() + 1;
        i32::try_from(millis)
            .ok()
            .and_then(|millis| millis.try_into().ok())
            .unwrap_or(PollTimeout::MAX)
    })
}
