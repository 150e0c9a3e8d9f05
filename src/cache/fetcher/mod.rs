//! The fetcher process, and the keeper that restarts it.
//!
//! The server starts a *keeper*, which forks the fetcher and restarts it if it dies. The keeper holds a copy of every
//! connection to a worker, so none is lost then: the new fetcher sends a hello on each, and the workers repeat their requests.
//! A spare keeper stands by in case the keeper dies. Workers have no network and no cache directory; the fetcher and the keeper
//! never read anything from a guest.

mod keeper;
mod switchboard;

use std::io;
use std::path::Path;

use nix::sys::signal::{SigSet, Signal};

use super::dir::User;
use super::fetch::{FetchPlan, Fetcher};
use super::meter::FetchMeter;
use crate::process::{self, Child, ENDING, ProcessError};
use crate::sandbox;
use crate::source::remote::protocol::Connection;

/// The server's handle of the fetcher, which ends with the server.
#[derive(Debug)]
pub struct FetcherProcess {
    _keeper: Child,
    meter: FetchMeter,
    /// Keeps the NARs that this server needs in the cache directory.
    _user: User,
}

/// Why the fetcher cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The process cannot be started.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// The connection cannot be made.
    #[error("cannot connect to the fetcher process: {0}")]
    Connection(#[from] io::Error),
    /// The cache directory cannot be used.
    #[error(transparent)]
    Dir(#[from] super::dir::DirError),
}

impl FetcherProcess {
    /// Starts the fetcher. Returns it with the connection that takes the ends of new ones. This process must have one thread.
    ///
    /// # Errors
    /// The host has no resources left, or the cache directory cannot be written to.
    pub fn start(plan: FetchPlan) -> Result<(Self, Connection), StartError> {
        let hashes = plan.paths.iter().map(|path| &path.nar_hash);
        let user = plan.sources.dir.register(hashes)?;
        let (near, far) = Connection::pair()?;
        let mut near = Some(near);
        // No parent-death signal: once the server is confined, Landlock scopes (Linux 6.12) keep the kernel from sending it.
        // The keeper ends when the last copy of the server's end is closed.
        let keeper = process::spawn(Signal::SIGKILL, || {
            near = None;
            leave_terminal_to_parent();
            let start = || {
                confine(plan.sources.dir.path());
                Fetcher::new(plan.clone())
            };
            keeper::FetcherKeeper::new(far, start).keep()
        })?;
        let process = Self {
            _keeper: keeper,
            meter: plan.meter,
            _user: user,
        };
        let near = near.ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected))?;
        Ok((process, near))
    }

    /// Returns the counters of the fetcher.
    pub fn meter(&self) -> &FetchMeter {
        &self.meter
    }
}

/// Confines this process, which parses data from the network and writes only below `dir`.
pub(super) fn confine(dir: &Path) {
    if let Err(error) = sandbox::confine_fetcher(dir) {
        tracing::warn!("the fetcher process is not confined: {error}");
    }
}

/// Blocks the signals that a terminal sends to its process group: only the server handles them.
fn leave_terminal_to_parent() {
    let mut signals: SigSet = ENDING.into_iter().collect();
    signals.remove(Signal::SIGTERM);
    // With a wrong mask the role still works.
    let _ = signals.thread_block();
}
