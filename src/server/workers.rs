//! The workers of VMs, as their parent knows them.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::activation::SocketName;
use super::disks::Disks;
use super::endpoint::EXIT_SILENT;
use super::report::{Reports, Word};
use crate::device::Stats;
use crate::device::meter::Meter;
use crate::process::{Child, End};

/// A worker that lived so long is logged, however many came and went before it.
const LONG_LIFE: Duration = Duration::from_secs(60);

/// A process that serves one connection.
pub(super) struct Worker {
    pub(super) child: Child,
    /// Number of the VM, counted from 1 since the server started.
    pub(super) vm: u64,
    /// Index of its endpoint.
    pub(super) endpoint: usize,
    /// Where it is connected, for log lines.
    pub(super) socket: SocketName,
    disks: Disks,
    /// Index of the disk that its client has chosen, as far as the worker is to be believed.
    chosen: Option<usize>,
    reports: Reports,
    /// What it serves.
    pub(super) meter: Meter,
    /// When its client was found waiting.
    pub(super) started: Instant,
    /// It has taken its connection.
    pub(super) has_accepted: bool,
    /// Its client has sent a first message.
    pub(super) has_spoken: bool,
    /// It records what its client reads.
    pub(super) records: bool,
    /// The server ends, and this worker with it.
    is_ending: bool,
    /// This process ended it, for want of a first message.
    was_turned_away: bool,
    /// Its connection is not to be logged: too many come and go.
    is_muted: bool,
    stats: Option<Stats>,
    failure: Option<String>,
}

/// Where a client connects, and what it can choose from there.
pub(super) struct Place {
    /// Index of the endpoint.
    pub(super) endpoint: usize,
    /// Its name.
    pub(super) socket: SocketName,
    /// All disks.
    pub(super) disks: Disks,
}

/// What a worker has told.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct News {
    /// It has taken its connection.
    pub(super) accepted: bool,
    /// Its client has sent a first message.
    pub(super) spoke: bool,
}

/// How a worker ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Its client has left.
    Served,
    /// Its client said nothing.
    Silent,
    /// It gave up, or was killed.
    Failed {
        /// Exit code or signal.
        how: String,
    },
}

impl Worker {
    pub(super) fn new(
        child: Child,
        vm: u64,
        place: Place,
        reports: Reports,
        meter: Meter,
        started: Instant,
        is_muted: bool,
    ) -> Self {
        let Place {
            endpoint,
            socket,
            disks,
        } = place;
        Self {
            child,
            vm,
            endpoint,
            socket,
            disks,
            chosen: None,
            reports,
            meter,
            started,
            has_accepted: false,
            has_spoken: false,
            records: false,
            is_ending: false,
            was_turned_away: false,
            is_muted,
            stats: None,
            failure: None,
        }
    }

    pub(super) fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        self.reports.as_fd()
    }

    /// What the disk is called that its client has chosen, if there are several.
    pub(super) fn export(&self) -> Option<&str> {
        let export = self.disks.told_apart().get(self.chosen?)?;
        Some(export.name.as_str())
    }

    /// When its client must have spoken; none once it has, or was turned away.
    pub(super) fn deadline(&self, first_message: Duration) -> Option<Instant> {
        (!self.has_spoken && !self.was_turned_away).then(|| self.started + first_message)
    }

    /// Reads what it tells.
    pub(super) fn read_reports(&mut self) -> News {
        let words = self.reports.read();
        self.hear(words)
    }

    fn hear(&mut self, words: Vec<Word>) -> News {
        let mut news = News::default();
        for word in words {
            match word {
                Word::Accepted => {
                    self.has_accepted = true;
                    news.accepted = true;
                }
                Word::Chose(index) => self.chosen = Some(index),
                Word::Spoke if !self.has_spoken => {
                    self.has_spoken = true;
                    news.spoke = true;
                    if !self.is_muted {
                        self.log_connected();
                    }
                }
                Word::Records => self.records = true,
                Word::Left(stats) => self.stats = Some(stats),
                Word::Failed(reason) => self.failure = Some(reason),
                Word::Spoke | Word::Mounted | Word::Opened | Word::Closed(_) => {}
            }
        }
        news
    }

    fn log_connected(&self) {
        let (socket, export) = (&self.socket, self.export());
        tracing::info!(%socket, export, vm = self.vm, "a VM has connected");
    }

    /// Ends it, because its client says nothing.
    pub(super) fn turn_away(&mut self) {
        self.was_turned_away = true;
        // It holds SIGTERM back, to say what was served; there is nothing.
        self.child.signal(Signal::SIGKILL);
    }

    /// The server ends: from now on SIGTERM is no fault.
    pub(super) fn ask_to_end(&mut self) {
        self.is_ending = true;
    }

    /// How it ended; none while it lives.
    pub(super) fn outcome(&mut self) -> Option<Outcome> {
        let end = self.child.end()?;
        let words = self.reports.read_to_end();
        self.hear(words);
        Some(match end {
            _ if self.was_turned_away => Outcome::Silent,
            End::Exited(0) => Outcome::Served,
            End::Killed(Signal::SIGTERM) if self.is_ending => Outcome::Served,
            End::Exited(EXIT_SILENT) => Outcome::Silent,
            End::Exited(code) => Outcome::Failed {
                how: format!("exit code {code}"),
            },
            End::Killed(signal) => Outcome::Failed {
                how: signal.to_string(),
            },
            End::Unknown => Outcome::Failed {
                how: "unknown".to_owned(),
            },
        })
    }

    /// Logs how it ended.
    pub(super) fn log(&mut self, outcome: &Outcome) {
        let lived = self.started.elapsed();
        if self.is_muted && lived < LONG_LIFE {
            return;
        }
        let (pid, end) = (self.child.pid().as_raw(), self.child.end());
        let (socket, vm, seconds) = (&self.socket, self.vm, lived.as_secs_f64());
        let export = self.export();
        match (outcome, end, &self.failure) {
            (Outcome::Served, ..) => self.log_stats(seconds),
            (Outcome::Silent, ..) if self.was_turned_away => {
                tracing::warn!(%socket, seconds, "a client said nothing and was disconnected");
            }
            (Outcome::Silent, ..) => tracing::debug!(%socket, "a client left without a word"),
            (_, Some(End::Killed(signal)), _) => tracing::error!(
                %socket, export, vm, pid, seconds,
                "worker {pid} was killed by {signal}; its VM may reconnect"
            ),
            (_, _, Some(reason)) => tracing::error!(%socket, export, vm, seconds, "{reason}"),
            (Outcome::Failed { how }, ..) => {
                tracing::error!(%socket, export, vm, seconds, how, "the worker of a VM ended badly");
            }
        }
    }

    fn log_stats(&self, seconds: f64) {
        let stats = self.stats.unwrap_or_default();
        tracing::info!(
            socket = %self.socket,
            export = self.export(),
            vm = self.vm,
            requests = stats.requests,
            bytes = stats.bytes,
            errors = stats.errors,
            seconds,
            "a VM has disconnected"
        );
    }
}
