//! The questions of one process to its fetcher: each asked once, however many readers wait for the answer.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::protocol::{Answer, Connection, Found, Wanted};
use crate::source::IoMode;

/// A failure is told to all who ask again within this time; after it the fetcher is asked anew.
const FAILURE_REMEMBERED: Duration = Duration::from_secs(1);

/// When a server is killed its fetcher ends, too, and this process a moment later: no guest must see an I/O error then. Only a
/// fetcher that ended alone fails what waits for it, after this time.
const SERVER_ENDS_WITHIN: Duration = Duration::from_secs(5);

/// What the fetcher has answered, and what it has not.
pub(super) struct Channel {
    connection: Connection,
    state: Mutex<State>,
    /// Notified with every answer.
    arrived: Condvar,
    /// How long an answer is waited for.
    limit: Duration,
}

#[derive(Default)]
struct State {
    questions: HashMap<Wanted, Question>,
    /// Counts answers, so that nobody sleeps through one.
    arrivals: u64,
    /// Since when the fetcher will never answer again.
    over_since: Option<Instant>,
    is_listening: bool,
}

impl State {
    fn is_over(&self) -> bool {
        let since = self.over_since;
        since.is_some_and(|since| since.elapsed() >= SERVER_ENDS_WITHIN)
    }
}

enum Question {
    Asked(Instant),
    Answered(Found),
    Failed(String, Instant),
}

/// Why there is no answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NoAnswer {
    /// Not yet, and the caller does not wait.
    NotYet,
    /// In a sentence.
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

    /// What the fetcher answers to `wanted`. It is asked if it was not, or if what it had answered was taken already.
    pub(super) fn get(self: &Arc<Self>, wanted: Wanted, mode: IoMode) -> Result<Found, NoAnswer> {
        let mut state = self.lock();
        self.listen(&mut state);
        loop {
            self.expire(&mut state);
            match state.questions.get(&wanted) {
                Some(Question::Answered(_)) => {
                    if let Some(Question::Answered(found)) = state.questions.remove(&wanted) {
                        return Ok(found);
                    }
                }
                Some(Question::Failed(reason, _)) => return Err(NoAnswer::Failed(reason.clone())),
                Some(Question::Asked(_)) => {}
                None if state.is_over() => return Err(NoAnswer::Failed(over())),
                None => {
                    // If the fetcher has ended, the listening thread hears that too; if it is busy, it is asked at the next try.
                    if self.connection.ask(wanted).is_ok() {
                        let asked = Question::Asked(Instant::now());
                        state.questions.insert(wanted, asked);
                    }
                }
            }
            if mode != IoMode::Blocking {
                return Err(NoAnswer::NotYet);
            }
            state = self.wait(state, Duration::from_secs(1));
        }
    }

    /// How many answers there have been.
    pub(super) fn arrivals(&self) -> u64 {
        self.lock().arrivals
    }

    /// Waits until there have been other than `seen` answers, `limit` at most; says whether there have.
    pub(super) fn wait_for_arrival(&self, seen: u64, limit: Duration) -> bool {
        let mut state = self.lock();
        if state.arrivals == seen {
            state = self.wait(state, limit);
            self.expire(&mut state);
        }
        state.arrivals != seen
    }

    /// Questions that were not answered in time have failed, and failures that are long ago are forgotten.
    fn expire(&self, state: &mut State) {
        let (now, limit, is_over) = (Instant::now(), self.limit, state.is_over());
        let mut expired = 0;
        for question in state.questions.values_mut() {
            if let Question::Asked(at) = question
                && (is_over || now.duration_since(*at) >= limit)
            {
                expired += 1;
                let reason = if is_over { over() } else { late(limit) };
                *question = Question::Failed(reason, now);
            }
        }
        state.questions.retain(|_, question| {
            !matches!(question, Question::Failed(_, at) if now.duration_since(*at) >= FAILURE_REMEMBERED)
        });
        if expired > 0 {
            state.arrivals += expired;
            self.arrived.notify_all();
        }
    }

    /// Starts the thread that hears answers.
    fn listen(self: &Arc<Self>, state: &mut State) {
        if state.is_listening {
            return;
        }
        let channel = Arc::clone(self);
        let thread = thread::Builder::new().name("answers".to_owned());
        match thread.spawn(move || channel.hear()) {
            Ok(_) => state.is_listening = true,
            Err(error) => tracing::warn!("cannot start a thread: {error}"),
        }
    }

    fn hear(&self) {
        loop {
            match self.connection.next_answer() {
                Ok(Some(answer)) => self.heard(answer),
                Ok(None) => {}
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        let mut state = self.lock();
        state.over_since = Some(Instant::now());
    }

    fn heard(&self, answer: Answer) {
        let mut state = self.lock();
        let (wanted, question) = match answer {
            Answer::Hello => return self.ask_again(&state),
            Answer::Here { wanted, found } => (wanted, Question::Answered(found)),
            Answer::Failed { wanted, reason } => (wanted, Question::Failed(reason, Instant::now())),
        };
        // What nobody has asked for is dropped.
        if let Some(asked @ Question::Asked(_)) = state.questions.get_mut(&wanted) {
            *asked = question;
            state.arrivals += 1;
            self.arrived.notify_all();
        }
    }

    fn ask_again(&self, state: &State) {
        for (wanted, question) in &state.questions {
            if let Question::Asked(_) = question {
                let _ = self.connection.ask(*wanted);
            }
        }
    }

    /// A state is whole between any two statements.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'s>(&self, state: MutexGuard<'s, State>, limit: Duration) -> MutexGuard<'s, State> {
        let waited = self.arrived.wait_timeout(state, limit);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

impl std::fmt::Debug for Channel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Channel").finish_non_exhaustive()
    }
}

fn over() -> String {
    "the process that fetches has ended (see the log; a restart of the server starts it again)"
        .to_owned()
}

fn late(limit: Duration) -> String {
    format!(
        "not fetched within {} seconds (the next read tries again)",
        limit.as_secs()
    )
}
