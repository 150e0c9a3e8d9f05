//! Follows references from the roots by narinfos. Uses kept narinfos only; if one is missing, starts over with the network.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

use nix::sys::signal::Signal;

use crate::cache::fetcher::confine;
use crate::cache::meter::{LINE_EVERY, ProgressLine};
use crate::cache::narinfos::Located;
use crate::cache::sources::Sources;
use crate::cache::transport::Http;
use crate::closure::narinfo::Narinfo;
use crate::closure::{is_nix_name, shown};
use crate::parallel;
use crate::process::{self, ProcessError};

/// Concurrent requests to caches. Most of the time each waits for its response.
const AT_ONCE: usize = 48;

/// Narinfos by the names of their store paths.
pub(super) type Narinfos = HashMap<Box<[u8]>, Narinfo>;

/// Why narinfos are missing.
#[derive(Debug, thiserror::Error)]
pub enum WalkError {
    /// The fetcher process cannot be started.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// The fetcher process could not be read from.
    #[error("cannot read from the process that queries binary caches: {0}")]
    Pipe(#[from] io::Error),
    /// A narinfo could not be fetched.
    #[error("{0}")]
    Failed(String),
    /// A narinfo that was just fetched is missing.
    #[error("narinfos disappeared from the cache directory: another program may be removing them")]
    Lost,
}

/// Parameters of the walk.
#[derive(Debug, Clone, Copy)]
pub(super) struct ClosureWalk<'w> {
    pub(super) sources: &'w Sources,
    pub(super) store_dir: &'w Path,
    /// Names whose closure is already known; the walk stops there.
    pub(super) stops: &'w HashSet<Box<[u8]>>,
    /// Whether references are followed.
    pub(super) follows_references: bool,
}

impl ClosureWalk<'_> {
    /// Returns the narinfos of `roots` and, if references are followed, of their closures.
    pub(super) fn narinfos(&self, roots: &[Box<[u8]>]) -> Result<Narinfos, WalkError> {
        if let Some(all) = self.kept(roots) {
            return Ok(all);
        }
        self.fetch_apart(roots)?;
        self.kept(roots).ok_or(WalkError::Lost)
    }

    /// Returns `None` if a narinfo is not kept.
    fn kept(&self, roots: &[Box<[u8]>]) -> Option<Narinfos> {
        let located = self.located();
        let mut found = Narinfos::new();
        let mut level = self.unknown(roots, &found);
        while !level.is_empty() {
            let read = |(): &mut (), at: usize| located.kept(&level[at]);
            let read = parallel::for_each(level.len(), || (), read);
            let mut referenced = Vec::new();
            for narinfo in read {
                let narinfo = narinfo?;
                if self.follows_references {
                    referenced.extend(narinfo.references.iter().cloned());
                }
                found.insert(narinfo.name.clone(), narinfo);
            }
            level = self.unknown(&referenced, &found);
        }
        Some(found)
    }

    /// Returns the names that still have to be looked up, without duplicates.
    fn unknown(&self, names: &[Box<[u8]>], found: &Narinfos) -> Vec<Box<[u8]>> {
        let mut unknown = names.to_vec();
        unknown.retain(|name| !self.stops.contains(name) && !found.contains_key(name));
        unknown.sort_unstable();
        unknown.dedup();
        unknown
    }

    fn located(&self) -> Located<'_> {
        self.sources.located(self.store_dir)
    }

    /// Fetches missing narinfos in a child process: the HTTP client starts threads, and this process must stay single-threaded
    /// to fork.
    fn fetch_apart(&self, roots: &[Box<[u8]>]) -> Result<(), WalkError> {
        let (mut told, mut teller) = io::pipe()?;
        let mut child = process::spawn(Signal::SIGKILL, || match self.fetch(roots) {
            Ok(()) => 0,
            Err(reason) => {
                let _ = teller.write_all(reason.as_bytes());
                1
            }
        })?;
        drop(teller);
        let mut reason = String::new();
        told.read_to_string(&mut reason)?;
        match child.wait() {
            process::End::Exited(0) => Ok(()),
            end if reason.is_empty() => Err(WalkError::Failed(format!(
                "the process that queries binary caches failed ({end:?})"
            ))),
            _ => Err(WalkError::Failed(reason)),
        }
    }

    fn fetch(&self, roots: &[Box<[u8]>]) -> Result<(), String> {
        confine(self.sources.dir.path());
        let http = Http::new(&self.sources.http);
        let queue = NarinfoQueue::default();
        queue.add(self, roots);
        thread::scope(|scope| {
            if self.sources.shows_progress {
                // Without the thread only the progress line is missing.
                let _ = thread::Builder::new().spawn_scoped(scope, || queue.show());
            }
            for _ in 0..AT_ONCE {
                let started =
                    thread::Builder::new().spawn_scoped(scope, || self.work(&queue, &http));
                if started.is_err() {
                    break;
                }
            }
            self.work(&queue, &http);
        });
        let state = queue.lock();
        state.failed.clone().map_or(Ok(()), Err)
    }

    fn work(&self, queue: &NarinfoQueue, http: &Http) {
        while let Some(name) = queue.next() {
            match self.find(http, &name) {
                Ok(narinfo) if self.follows_references => queue.add(self, &narinfo.references),
                Ok(_) => {}
                Err(reason) => queue.fail(reason),
            }
            queue.done();
        }
    }

    fn find(&self, http: &Http, name: &[u8]) -> Result<Narinfo, String> {
        let fail = |reason: &dyn std::fmt::Display| {
            format!("{}/{}: {reason}", self.store_dir.display(), shown(name))
        };
        if !is_nix_name(name) {
            return Err(fail(
                &"it is not on this host, and a binary cache cannot have a path of this name",
            ));
        }
        let located = self.located();
        if let Some(narinfo) = located.kept(name) {
            return Ok(narinfo);
        }
        let found = located.fetch(http, &self.sources.caches, name);
        found.map_err(|error| fail(&error))
    }
}

/// Names that still have to be looked up.
#[derive(Default)]
struct NarinfoQueue {
    state: Mutex<WalkState>,
    changed: Condvar,
}

#[derive(Default)]
struct WalkState {
    names: VecDeque<Box<[u8]>>,
    seen: HashSet<Box<[u8]>>,
    /// Lookups in progress.
    busy: usize,
    /// Why a lookup failed. After a failure no further lookup starts.
    failed: Option<String>,
}

impl NarinfoQueue {
    fn add(&self, walk: &ClosureWalk<'_>, names: &[Box<[u8]>]) {
        let mut state = self.lock();
        for name in names {
            if !walk.stops.contains(name) && state.seen.insert(name.clone()) {
                state.names.push_back(name.clone());
            }
        }
        self.changed.notify_all();
    }

    /// Waits for a name to look up. Returns `None` when all lookups are done or one has failed.
    fn next(&self) -> Option<Box<[u8]>> {
        let mut state = self.lock();
        loop {
            if state.failed.is_some() {
                return None;
            }
            if let Some(name) = state.names.pop_front() {
                state.busy += 1;
                return Some(name);
            }
            if state.busy == 0 {
                return None;
            }
            let waited = self.changed.wait(state);
            state = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Shows the progress on a terminal until all lookups are done.
    fn show(&self) {
        let mut line = ProgressLine::default();
        let mut due = Instant::now() + LINE_EVERY;
        let mut state = self.lock();
        while state.failed.is_none() && (state.busy > 0 || !state.names.is_empty()) {
            let waited = self.changed.wait_timeout(state, LINE_EVERY);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
            if Instant::now() >= due {
                due = Instant::now() + LINE_EVERY;
                let (all, open) = (state.seen.len(), state.names.len() + state.busy);
                line.show(&format!(
                    "querying binary caches for store paths: {} of {all}",
                    all - open
                ));
            }
        }
    }

    fn done(&self) {
        self.lock().busy -= 1;
        self.changed.notify_all();
    }

    fn fail(&self, reason: String) {
        self.lock().failed.get_or_insert(reason);
    }

    fn lock(&self) -> MutexGuard<'_, WalkState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
