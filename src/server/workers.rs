//! The parent's view of the workers of VMs.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::activation::SocketName;
use super::disks::Disks;
use super::endpoint::EXIT_SILENT;
use super::messages::{Message, MessageReceiver};
use crate::device::Stats;
use crate::device::meter::Meter;
use crate::process::{Child, End};

/// A worker that lived this long is logged even if it was muted.
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
    /// Index of the disk that its client has chosen, according to the worker.
    export_index: Option<usize>,
    receiver: MessageReceiver,
    /// Counters of what it serves.
    pub(super) meter: Meter,
    /// When its client was found waiting at the socket.
    pub(super) started: Instant,
    /// It has accepted its connection.
    pub(super) has_accepted: bool,
    /// Its client has sent its first message, so it counts as a VM.
    pub(super) is_connected: bool,
    /// It records what its client reads.
    pub(super) records: bool,
    /// The server is ending, and SIGTERM is the expected end of this worker.
    is_ending: bool,
    /// The parent has killed it, because its client sent no first message in time.
    was_disconnected: bool,
    /// Its connection is not logged, because there are too many short ones.
    is_muted: bool,
    stats: Option<Stats>,
    failure: Option<String>,
}

/// An endpoint, and the disks that its clients can choose.
pub(super) struct EndpointInfo {
    /// Index of the endpoint.
    pub(super) endpoint: usize,
    /// Its name.
    pub(super) socket: SocketName,
    /// All disks.
    pub(super) disks: Disks,
}

/// What has changed according to a worker's messages.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct WorkerUpdate {
    /// It has accepted its connection.
    pub(super) accepted: bool,
    /// Its client has sent its first message.
    pub(super) connected: bool,
}

/// How a worker ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum WorkerEnd {
    /// Its client has disconnected.
    Served,
    /// Its client sent no message.
    Silent,
    /// It ended with an error, or was killed.
    Failed {
        /// Exit code or signal.
        how: String,
    },
}

impl Worker {
    pub(super) fn new(
        child: Child,
        vm: u64,
        endpoint_info: EndpointInfo,
        receiver: MessageReceiver,
        meter: Meter,
        started: Instant,
        is_muted: bool,
    ) -> Self {
        let EndpointInfo {
            endpoint,
            socket,
            disks,
        } = endpoint_info;
        Self {
            child,
            vm,
            endpoint,
            socket,
            disks,
            export_index: None,
            receiver,
            meter,
            started,
            has_accepted: false,
            is_connected: false,
            records: false,
            is_ending: false,
            was_disconnected: false,
            is_muted,
            stats: None,
            failure: None,
        }
    }

    pub(super) fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        self.receiver.as_fd()
    }

    /// The name of the disk that its client has chosen, if there are several disks.
    pub(super) fn export(&self) -> Option<&str> {
        let export = self.disks.exports_if_several().get(self.export_index?)?;
        Some(export.name.as_str())
    }

    /// Deadline for the client's first message. `None` once it was sent, or the worker was killed.
    pub(super) fn deadline(&self, first_message: Duration) -> Option<Instant> {
        (!self.is_connected && !self.was_disconnected).then(|| self.started + first_message)
    }

    /// Receives its messages.
    pub(super) fn receive_messages(&mut self) -> WorkerUpdate {
        let messages = self.receiver.receive();
        self.apply(messages)
    }

    fn apply(&mut self, messages: Vec<Message>) -> WorkerUpdate {
        let mut update = WorkerUpdate::default();
        for message in messages {
            match message {
                Message::Accepted => {
                    self.has_accepted = true;
                    update.accepted = true;
                }
                Message::ExportChosen(index) => self.export_index = Some(index),
                Message::Connected if !self.is_connected => {
                    self.is_connected = true;
                    update.connected = true;
                    if !self.is_muted {
                        self.log_connected();
                    }
                }
                Message::Recording => self.records = true,
                Message::Disconnected(stats) => self.stats = Some(stats),
                Message::Failed(reason) => self.failure = Some(reason),
                Message::Connected
                | Message::Mounted
                | Message::FileOpened
                | Message::FileClosed(_) => {}
            }
        }
        update
    }

    fn log_connected(&self) {
        let (socket, export) = (&self.socket, self.export());
        tracing::info!(%socket, export, vm = self.vm, "a VM has connected");
    }

    /// Kills it, because its client sends no message.
    pub(super) fn disconnect(&mut self) {
        self.was_disconnected = true;
        // Not SIGTERM, which workers handle to send their statistics. There are none.
        self.child.signal(Signal::SIGKILL);
    }

    /// The server is ending: from now on, an end by SIGTERM is not a failure.
    pub(super) fn expect_end(&mut self) {
        self.is_ending = true;
    }

    /// How it ended. `None` while it runs.
    pub(super) fn outcome(&mut self) -> Option<WorkerEnd> {
        let end = self.child.end()?;
        let messages = self.receiver.receive_all();
        self.apply(messages);
        Some(match end {
            _ if self.was_disconnected => WorkerEnd::Silent,
            End::Exited(0) => WorkerEnd::Served,
            End::Killed(Signal::SIGTERM) if self.is_ending => WorkerEnd::Served,
            End::Exited(EXIT_SILENT) => WorkerEnd::Silent,
            End::Exited(code) => WorkerEnd::Failed {
                how: format!("exit code {code}"),
            },
            End::Killed(signal) => WorkerEnd::Failed {
                how: signal.to_string(),
            },
            End::Unknown => WorkerEnd::Failed {
                how: "unknown".to_owned(),
            },
        })
    }

    /// Logs how it ended.
    pub(super) fn log(&mut self, outcome: &WorkerEnd) {
        let lived = self.started.elapsed();
        if self.is_muted && lived < LONG_LIFE {
            return;
        }
        let (pid, end) = (self.child.pid().as_raw(), self.child.end());
        let (socket, vm, seconds) = (&self.socket, self.vm, lived.as_secs_f64());
        let export = self.export();
        match (outcome, end, &self.failure) {
            (WorkerEnd::Served, ..) => self.log_stats(seconds),
            (WorkerEnd::Silent, ..) if self.was_disconnected => {
                tracing::warn!(%socket, seconds, "disconnected a client that sent no message");
            }
            (WorkerEnd::Silent, ..) => {
                tracing::debug!(%socket, "a client disconnected without a message");
            }
            (_, Some(End::Killed(signal)), _) => tracing::error!(
                %socket, export, vm, pid, seconds,
                "worker {pid} was killed by {signal}; its VM may reconnect"
            ),
            (_, _, Some(reason)) => tracing::error!(%socket, export, vm, seconds, "{reason}"),
            (WorkerEnd::Failed { how }, ..) => {
                tracing::error!(%socket, export, vm, seconds, how, "the worker of a VM failed");
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
