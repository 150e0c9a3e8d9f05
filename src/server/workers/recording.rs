//! Which worker records what its VM reads, and the process that reads a recording in advance.
//!
//! One VM is recorded, the first that uses the disk. When its worker dies, the next one goes on where it stopped; once the
//! VM has left, the recording is done.

use std::fs::File;
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, getpid};

use super::confine::confine_worker;
use super::process::{Forked, WorkerEnd, fork_worker, require_one_thread};
use super::{ServeOutcome, Server};
use crate::device::TransportError;
use crate::image::Image;
use crate::image::recording::Recording;
use crate::sandbox::Process;

/// A file that a worker fills.
pub(super) struct RecordFile {
    file: File,
    /// What is in the file is to be thrown away.
    replace: bool,
    state: State,
}

/// Who records.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// The next worker.
    Next,
    /// This one.
    Worker(Pid),
    /// Nobody any more.
    Done,
}

impl RecordFile {
    /// Makes the file if it is not there, and leaves what is in it until there is something to record.
    pub(super) fn open(path: &Path) -> Result<Self, TransportError> {
        let opened = File::options().append(true).create(true).open(path);
        let file = opened.map_err(|source| TransportError::Record {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            file,
            replace: true,
            state: State::Next,
        })
    }

    /// In a worker that was just forked: records what is read from `image` if it is this one's turn.
    pub(super) fn record_if_next(self, image: &Image) {
        if self.state == State::Next {
            image.record_to(self.file, self.replace);
        }
    }

    /// In the parent: a worker has been forked.
    pub(super) fn started(&mut self, pid: Pid) {
        if self.state == State::Next {
            self.state = State::Worker(pid);
        }
    }

    /// In the parent: a worker is no more.
    pub(super) fn ended(&mut self, pid: Pid, end: &WorkerEnd) {
        if self.state != State::Worker(pid) {
            return;
        }
        self.state = match end {
            WorkerEnd::Served => State::Done,
            WorkerEnd::Nobody => State::Next,
            WorkerEnd::Failed(_) | WorkerEnd::Killed(_) => {
                self.replace = false;
                State::Next
            }
        };
    }
}

/// The process that reads in advance.
pub(super) struct Prefetcher(Pid);

impl Prefetcher {
    /// Whether it has ended; collects it.
    pub(super) fn has_ended(&self) -> bool {
        let end = WorkerEnd::of(self.0);
        if let Some(WorkerEnd::Killed(signal)) = end {
            tracing::warn!("reading in advance was ended by {signal}");
        }
        end.is_some()
    }
}

impl Drop for Prefetcher {
    fn drop(&mut self) {
        // If it was collected there is no such child any more, and this process makes none in between.
        if WorkerEnd::of(self.0).is_none() {
            let _ = kill(self.0, Signal::SIGKILL);
            let _ = waitpid(self.0, None);
        }
    }
}

impl Server<'_> {
    /// Has another process read in advance, so that this one keeps its one thread and answers at once. Says whether this
    /// is that process.
    pub(super) fn start_prefetch(&mut self) -> Result<bool, TransportError> {
        if self.options.prefetch.is_none() {
            return Ok(false);
        }
        require_one_thread()?;
        match fork_worker(getpid()) {
            Ok(Forked::Worker) => return Ok(true),
            Ok(Forked::Parent(pid)) => self.prefetcher = Some(Prefetcher(pid)),
            Err(errno) => tracing::warn!("cannot read in advance: no process for it: {errno}"),
        }
        Ok(false)
    }

    /// That process's whole life.
    pub(super) fn become_prefetcher(self) -> ServeOutcome {
        let Self {
            image,
            options,
            sockets,
            signals,
            ..
        } = self;
        signals.restore_for_worker();
        drop((signals, sockets));
        if let Some(failed) = confine_worker(Process::Prefetcher, &image, options) {
            return failed;
        }
        if let Some(recording) = &options.prefetch {
            prefetch(&image, recording);
        }
        ServeOutcome::Worker { exit_code: 0 }
    }
}

fn prefetch(image: &Image, recording: &Recording) {
    let begin = std::time::Instant::now();
    let done = image.prefetch(recording);
    tracing::info!(
        "read in advance what was recorded of {} paths in {:.1} s; {} paths are not in this closure, {} ranges failed",
        done.known_paths,
        begin.elapsed().as_secs_f64(),
        done.paths - done.known_paths,
        done.failed
    );
}
