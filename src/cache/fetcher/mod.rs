//! The process that fetches, and the one that keeps it alive.
//!
//! The server starts a *keeper*, which forks the process that fetches and, if that dies, forks another one. The keeper holds
//! a copy of every connection to a process that serves, so none is lost then: the new process says hello on all of them, and
//! is asked again. A second keeper stands by, for the case that the first one dies. Processes that serve have no network and no
//! cache directory; these meet no guest.

mod keeper;
mod switchboard;

use std::io;
use std::path::Path;

use nix::sys::signal::{SigSet, Signal};

use super::dir::User;
use super::fetch::{Fetcher, Plan};
use super::meter::FetchMeter;
use crate::process::{self, Child, ENDING, ProcessError};
use crate::sandbox;
use crate::source::remote::protocol::Connection;

/// The fetcher, as the server has it. It ends with the server.
#[derive(Debug)]
pub struct FetcherProcess {
    _keeper: Child,
    meter: FetchMeter,
    /// What this server needs stays in the cache directory.
    _user: User,
}

/// Why there is no fetcher.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No process can be started.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// No connection can be made.
    #[error("cannot make a connection to the process that fetches: {0}")]
    Connection(#[from] io::Error),
    /// The cache directory.
    #[error(transparent)]
    Dir(#[from] super::dir::DirError),
}

impl FetcherProcess {
    /// Starts it, and returns what takes ends of connections to it. This process must have one thread.
    ///
    /// # Errors
    /// The host has no room for it, or the cache directory cannot be written to.
    pub fn start(plan: Plan) -> Result<(Self, Connection), StartError> {
        let hashes = plan.paths.iter().map(|path| &path.nar_hash);
        let user = plan.sources.dir.register(hashes)?;
        let (near, far) = Connection::pair()?;
        let mut near = Some(near);
        // The server is confined later, and Landlock then keeps the kernel from killing this process on the server's death
        // (its scopes, Linux 6.12). It ends when the last copy of the server's end has gone.
        let keeper = process::spawn(Signal::SIGKILL, || {
            near = None;
            leave_terminal_to_parent();
            let start = || {
                confine(plan.sources.dir.path());
                Fetcher::new(plan.clone())
            };
            keeper::Keeper::new(far, start).keep()
        })?;
        let process = Self {
            _keeper: keeper,
            meter: plan.meter,
            _user: user,
        };
        let near = near.ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected))?;
        Ok((process, near))
    }

    /// Counts what it fetches.
    pub fn meter(&self) -> &FetchMeter {
        &self.meter
    }
}

/// Confines this process, which is about to read what strangers send and writes below `dir` only.
pub(super) fn confine(dir: &Path) {
    if let Err(error) = sandbox::confine_fetcher(dir) {
        tracing::warn!("the process that asks binary caches is not confined: {error}");
    }
}

/// What a terminal sends to all processes is for the server to decide.
fn leave_terminal_to_parent() {
    let mut signals: SigSet = ENDING.into_iter().collect();
    signals.remove(Signal::SIGTERM);
    // With a wrong mask the role still works.
    let _ = signals.thread_block();
}
