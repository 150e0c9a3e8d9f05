//! The requests of one process to the fetcher. Each is sent once, however many readers wait for the answer.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::protocol::{Answer, Connection, FetchRequest, Fetched};
use crate::source::IoMode;

/// How long a failure answers further requests for the same part, before the fetcher is asked again.
const FAILURE_REMEMBERED: Duration = Duration::from_secs(1);

/// How long requests still wait after the fetcher has ended. When the server is killed, the fetcher ends first and this process
/// a moment later; no guest may see an I/O error in between.
const SERVER_ENDS_WITHIN: Duration = Duration::from_secs(5);

/// The requests that have been answered, and the pending ones.
pub(super) struct Channel {
    connection: Connection,
    state: Mutex<ChannelState>,
    /// Notified at every answer.
    arrived: Condvar,
    /// How long to wait for an answer.
    limit: Duration,
}

#[derive(Default)]
struct ChannelState {
    requests: HashMap<FetchRequest, RequestState>,
    /// Number of answers; a waiter compares it, so that it misses none.
    arrivals: u64,
    /// When the connection to the fetcher ended.
    ended_at: Option<Instant>,
    is_receiving: bool,
}

impl ChannelState {
    fn is_over(&self) -> bool {
        let since = self.ended_at;
        since.is_some_and(|since| since.elapsed() >= SERVER_ENDS_WITHIN)
    }
}

enum RequestState {
    Pending(Instant),
    Answered(Fetched),
    Failed(String, Instant),
}

/// Why there is no answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NoAnswer {
    /// The answer has not arrived, and the caller does not wait.
    NotYet,
    /// The reason, as a sentence.
    Failed(String),
}

impl Channel {
    pub(super) fn new(connection: Connection, limit: Duration) -> Self {
        Self {
            connection,
            state: Mutex::default(),
            arrived: Condvar::new(),
            limit,
        }
    }

    /// Returns the answer to `request`. Sends a request unless one is pending or an answer is waiting to be taken.
    pub(super) fn get(
        self: &Arc<Self>,
        request: FetchRequest,
        mode: IoMode,
    ) -> Result<Fetched, NoAnswer> {
        let mut state = self.lock();
        self.start_receiving(&mut state);
        loop {
            self.expire(&mut state);
            match state.requests.get(&request) {
                Some(RequestState::Answered(_)) => {
                    if let Some(RequestState::Answered(found)) = state.requests.remove(&request) {
                        return Ok(found);
                    }
                }
                Some(RequestState::Failed(reason, _)) => {
                    return Err(NoAnswer::Failed(reason.clone()));
                }
                Some(RequestState::Pending(_)) => {}
                None if state.is_over() => return Err(NoAnswer::Failed(fetcher_ended())),
                None => {
                    // If the fetcher has ended, the receiving thread notices; if it is busy, the next try sends the request.
                    if self.connection.send_request(request).is_ok() {
                        let pending = RequestState::Pending(Instant::now());
                        state.requests.insert(request, pending);
                    }
                }
            }
            if mode != IoMode::Blocking {
                return Err(NoAnswer::NotYet);
            }
            state = self.wait(state, Duration::from_secs(1));
        }
    }

    /// Returns the number of answers received so far.
    pub(super) fn arrivals(&self) -> u64 {
        self.lock().arrivals
    }

    /// Waits at most `limit` until the number of answers differs from `seen`. Returns whether it does.
    pub(super) fn wait_for_arrival(&self, seen: u64, limit: Duration) -> bool {
        let mut state = self.lock();
        if state.arrivals == seen {
            state = self.wait(state, limit);
            self.expire(&mut state);
        }
        state.arrivals != seen
    }

    /// Fails requests that were not answered in time, and forgets old failures.
    fn expire(&self, state: &mut ChannelState) {
        let (now, limit, is_over) = (Instant::now(), self.limit, state.is_over());
        let mut expired = 0;
        for entry in state.requests.values_mut() {
            if let RequestState::Pending(at) = entry
                && (is_over || now.duration_since(*at) >= limit)
            {
                expired += 1;
                let reason = if is_over {
                    fetcher_ended()
                } else {
                    late(limit)
                };
                *entry = RequestState::Failed(reason, now);
            }
        }
        state.requests.retain(|_, entry| {
            !matches!(entry, RequestState::Failed(_, at) if now.duration_since(*at) >= FAILURE_REMEMBERED)
        });
        if expired > 0 {
            state.arrivals += expired;
            self.arrived.notify_all();
        }
    }

    /// Starts the thread that receives answers.
    fn start_receiving(self: &Arc<Self>, state: &mut ChannelState) {
        if state.is_receiving {
            return;
        }
        let channel = Arc::clone(self);
        let thread = thread::Builder::new().name("answers".to_owned());
        match thread.spawn(move || channel.receive()) {
            Ok(_) => state.is_receiving = true,
            Err(error) => tracing::warn!("cannot start a thread: {error}"),
        }
    }

    fn receive(&self) {
        loop {
            match self.connection.next_answer() {
                Ok(Some(answer)) => self.store(answer),
                Ok(None) => {}
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        let mut state = self.lock();
        state.ended_at = Some(Instant::now());
    }

    fn store(&self, answer: Answer) {
        let mut state = self.lock();
        let (request, entry) = match answer {
            Answer::Hello => return self.resend_requests(&state),
            Answer::Here { request, found } => (request, RequestState::Answered(found)),
            Answer::Failed { request, reason } => {
                (request, RequestState::Failed(reason, Instant::now()))
            }
        };
        // Drop answers that nobody has requested.
        if let Some(pending @ RequestState::Pending(_)) = state.requests.get_mut(&request) {
            *pending = entry;
            state.arrivals += 1;
            self.arrived.notify_all();
        }
    }

    fn resend_requests(&self, state: &ChannelState) {
        for (request, entry) in &state.requests {
            if let RequestState::Pending(_) = entry {
                let _ = self.connection.send_request(*request);
            }
        }
    }

    /// Every statement leaves the state consistent, so a poisoned lock is usable.
    fn lock(&self) -> MutexGuard<'_, ChannelState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'s>(
        &self,
        state: MutexGuard<'s, ChannelState>,
        limit: Duration,
    ) -> MutexGuard<'s, ChannelState> {
        let waited = self.arrived.wait_timeout(state, limit);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

impl std::fmt::Debug for Channel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Channel").finish_non_exhaustive()
    }
}

fn fetcher_ended() -> String {
    "the fetcher process has ended (see the log; restart the server to start it again)".to_owned()
}

fn late(limit: Duration) -> String {
    format!(
        "not fetched within {} seconds (the next read tries again)",
        limit.as_secs()
    )
}
