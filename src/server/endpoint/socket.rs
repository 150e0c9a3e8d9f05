//! A socket for vhost-user-blk or NBD, and the workers of its connections.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::retry_on_intr;
use rustix::net::{SocketFlags, acceptfrom_with};

use super::super::activation::SocketName;
use super::super::listener::ListeningSocket;
use super::super::messages::{Message, MessageSender};
use super::super::mute::Muted;
use super::super::throttle::Throttle;
use super::{WorkerContext, WorkerResult};
use crate::device::meter::Meter;
use crate::device::nbd::{self, Export, Exports, NbdOptions};
use crate::device::vhost_blk::{BlkDevice, DeviceOptions, Served, serve_connection};
use crate::image::Image;
use crate::process::{EndRequest, ProcessError, WaitEnd, exit_now};

/// Exit code of a worker whose client disconnected without a message.
pub(in super::super) const EXIT_SILENT: u8 = 3;

/// Limit of new workers: burst, and interval.
const FORKS_AT_ONCE: u32 = 200;
const FORK_INTERVAL: Duration = Duration::from_millis(50);

/// Limit of logged connections: burst, and interval.
const LOGS_AT_ONCE: u32 = 100;
const LOG_INTERVAL: Duration = Duration::from_secs(2);

/// Pause after a worker could not be started or could not accept. The connection stays pending, so the socket stays
/// readable.
const RETRY: Duration = Duration::from_millis(100);

/// How long a worker's threads may take to return after the frontend has disconnected. Then the process exits anyway.
const EXIT_TIMEOUT_MS: u16 = 5_000;

/// The protocol of a socket, and the disks that it serves.
#[derive(Debug, Clone)]
pub(in super::super) enum SocketDevice {
    VhostUser {
        image: Arc<Image>,
        options: DeviceOptions,
    },
    Nbd {
        exports: Exports,
        options: NbdOptions,
    },
}

/// A socket with its limits.
pub(in super::super) struct SocketEndpoint {
    socket: ListeningSocket,
    name: SocketName,
    device: SocketDevice,
    /// Number of the worker that has not accepted its connection yet. Until then the socket stays readable.
    accepting: Option<u64>,
    retry_at: Option<Instant>,
    forks: Throttle,
    logs: Throttle,
}

impl SocketEndpoint {
    pub(in super::super) fn new(
        socket: ListeningSocket,
        name: SocketName,
        device: SocketDevice,
    ) -> Self {
        let now = Instant::now();
        Self {
            socket,
            name,
            device,
            accepting: None,
            retry_at: None,
            forks: Throttle::new(FORKS_AT_ONCE, FORK_INTERVAL, now),
            logs: Throttle::new(LOGS_AT_ONCE, LOG_INTERVAL, now),
        }
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    pub(in super::super) fn name(&self) -> &SocketName {
        &self.name
    }

    /// Creates counters for the next worker.
    pub(in super::super) fn meter(&self) -> Result<Meter, ProcessError> {
        match &self.device {
            SocketDevice::VhostUser { options, .. } => options.meter(),
            SocketDevice::Nbd { options, .. } => options.meter(),
        }
    }

    /// Whether a worker can be started for the next connection.
    pub(in super::super) fn may_accept(&mut self, now: Instant) -> bool {
        self.accepting.is_none() && self.waits_until(now).is_none()
    }

    /// Until when no worker is started, after a failure or because there were too many connections.
    pub(super) fn waits_until(&mut self, now: Instant) -> Option<Instant> {
        self.retry_at.take_if(|retry_at| *retry_at <= now);
        self.retry_at.or_else(|| self.forks.next(now))
    }

    /// Pauses, after a failure.
    pub(in super::super) fn back_off(&mut self, now: Instant) {
        self.accepting = None;
        self.retry_at = Some(now + RETRY);
    }

    /// A worker with this number is started for the next connection. Returns the number of connections before it that
    /// were not logged, or `None` if this one is not to be logged either.
    pub(in super::super) fn starts(&mut self, worker: u64, now: Instant) -> Option<u64> {
        self.accepting = Some(worker);
        let _ = self.forks.take(now);
        self.logs.take(now)
    }

    /// The worker has accepted its connection.
    pub(in super::super) fn accepted(&mut self, worker: u64) {
        self.accepting.take_if(|accepting| *accepting == worker);
    }

    /// The worker has ended. Returns whether it never accepted its connection.
    pub(in super::super) fn ended(&mut self, worker: u64, now: Instant) -> bool {
        let failed = self.accepting == Some(worker);
        if failed {
            self.back_off(now);
        }
        failed
    }

    /// Returns the descriptor and leaves the socket's file to the parent.
    pub(super) fn into_listener(self) -> OwnedFd {
        self.socket.into_listener()
    }

    /// Runs the worker: accepts one connection and serves it until the client disconnects.
    pub(in super::super) fn serve(
        self,
        context: WorkerContext<'_>,
        muted: Option<Muted>,
    ) -> WorkerResult {
        match self.device.clone() {
            SocketDevice::VhostUser { image, options } => {
                self.serve_vhost_user(image, &options, context, muted)
            }
            SocketDevice::Nbd { exports, options } => self.serve_nbd(&exports, &options, context),
        }
    }

    /// Serves an NBD client. Does not handle SIGTERM, which ends the process without a last message.
    fn serve_nbd(
        self,
        exports: &Exports,
        options: &NbdOptions,
        context: WorkerContext<'_>,
    ) -> WorkerResult {
        let listener = self.into_listener();
        let sender = &context.sender;
        (context.confine)()?;
        let client =
            accept(&listener).map_err(|error| format!("cannot accept a connection: {error}"))?;
        // This worker must not be able to accept other connections.
        drop(listener);
        sender.send(&Message::Accepted);
        let on_start = |chosen: &Export| {
            if let Some(index) = exports.index_of(&chosen.name) {
                sender.send(&Message::ExportChosen(index));
            }
            sender.send(&Message::Connected);
        };
        let served =
            nbd::serve_connection(client.socket, exports, options, context.meter, on_start);
        match served.map_err(|error| format!("{error}{}", client.from))? {
            nbd::Served::Client(stats) => {
                sender.send(&Message::Disconnected(stats));
                Ok(0)
            }
            nbd::Served::NoExport => Ok(EXIT_SILENT),
        }
    }

    fn serve_vhost_user(
        self,
        image: Arc<Image>,
        device: &DeviceOptions,
        context: WorkerContext<'_>,
        muted: Option<Muted>,
    ) -> WorkerResult {
        let WorkerContext {
            sender,
            meter,
            confine,
        } = context;
        let listener = UnixListener::from(self.into_listener());
        // Before the seccomp filter, which forbids signalfd(2), and before there are other threads.
        let end = EndRequest::block();
        confine()?;
        let watch_sender = Arc::clone(&sender);
        let on_accept = |device: &Arc<BlkDevice>, connection| {
            watch_sender.send(&Message::Accepted);
            let device = Arc::clone(device);
            match end {
                Ok(end) => Watch {
                    device,
                    sender: watch_sender,
                    end,
                    connection,
                    muted,
                }
                .start(),
                Err(error) => tracing::warn!("{error}"),
            }
        };
        match serve_connection(image, device, meter, listener, on_accept)? {
            Served::Frontend(stats) => {
                sender.send(&Message::Disconnected(stats));
                Ok(0)
            }
            Served::NoFrontend => Ok(EXIT_SILENT),
        }
    }
}

/// A connected client.
struct NbdClient {
    socket: OwnedFd,
    /// Its address, for messages. Empty for a Unix socket.
    from: String,
}

/// Accepts a connection at a socket of any family.
fn accept(listener: &OwnedFd) -> io::Result<NbdClient> {
    let (socket, from) = retry_on_intr(|| acceptfrom_with(listener, SocketFlags::CLOEXEC))?;
    let from = from.and_then(|from| SocketAddr::try_from(from).ok());
    let from = from.map_or(String::new(), |from| format!(" (from {from})"));
    Ok(NbdClient { socket, from })
}

/// A thread that sends messages to the parent: that the client is connected, and the statistics at the end. It also
/// ends the process at SIGTERM, or if other threads do not return.
struct Watch {
    device: Arc<BlkDevice>,
    sender: Arc<MessageSender>,
    end: EndRequest,
    /// `None` once the frontend has disconnected.
    connection: Option<OwnedFd>,
    muted: Option<Muted>,
}

impl Watch {
    fn start(self) {
        let thread = thread::Builder::new().name("watch".to_owned());
        if let Err(error) = thread.spawn(move || self.run()) {
            // Without this thread, the parent considers the client silent and kills this process.
            tracing::warn!("cannot start a thread: {error}");
        }
    }

    fn run(mut self) {
        self.device.wait_until_addressed();
        self.sender.send(&Message::Connected);
        let mut limit_ms = self.muted.as_ref().map(|_| Muted::TIME_MS);
        loop {
            let connection = self.connection.as_ref().map(AsFd::as_fd);
            match self.end.wait(connection, limit_ms) {
                WaitEnd::Asked => break,
                WaitEnd::HungUp => {
                    self.connection = None;
                    limit_ms = Some(EXIT_TIMEOUT_MS);
                }
                WaitEnd::Limit if limit_ms == Some(EXIT_TIMEOUT_MS) => {
                    tracing::warn!(
                        "the frontend has disconnected, but threads that serve it do not end"
                    );
                    break;
                }
                WaitEnd::Limit => {
                    // It does not belong to a flood of short connections.
                    if let Some(muted) = self.muted.take() {
                        muted.unmute();
                    }
                    limit_ms = None;
                }
            }
        }
        self.sender
            .send(&Message::Disconnected(self.device.stats()));
        exit_now(0);
    }
}
