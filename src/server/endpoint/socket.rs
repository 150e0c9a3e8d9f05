//! A socket, for vhost-user-blk or NBD, and the workers of its connections.

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
use super::super::mute::Muted;
use super::super::report::{Reporter, Word};
use super::super::throttle::Throttle;
use super::WorkerContext;
use crate::device::meter::Meter;
use crate::device::nbd::{self, Export, Exports, NbdOptions};
use crate::device::vhost_blk::{BlkDevice, DeviceOptions, Served, serve_connection};
use crate::image::Image;
use crate::process::{EndRequest, ProcessError, Waited, exit_now};

/// Exit code of a worker whose client left without a word.
pub(in super::super) const EXIT_SILENT: u8 = 3;

/// Connections that are accepted at once, and the time after which one more is.
const FORKS_AT_ONCE: u32 = 200;
const FORK_INTERVAL: Duration = Duration::from_millis(50);

/// Connections whose log lines are written at once, and the time after which those of one more are.
const LOGS_AT_ONCE: u32 = 100;
const LOG_INTERVAL: Duration = Duration::from_secs(2);

/// Pause after a worker that could not be started or could not accept: the connection is still waiting, and would cause
/// the next attempt at once.
const RETRY: Duration = Duration::from_millis(100);

/// How long a worker's threads may take to come back once the frontend has left; then the process ends without them.
const COME_BACK_MS: u16 = 5_000;

/// What the clients of a socket speak, and what they read.
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
    /// The number of the worker that has not taken its connection yet; until then the socket stays readable.
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

    /// Counters for the next worker.
    pub(in super::super) fn meter(&self) -> Result<Meter, ProcessError> {
        match &self.device {
            SocketDevice::VhostUser { options, .. } => options.meter(),
            SocketDevice::Nbd { options, .. } => options.meter(),
        }
    }

    /// Whether the next connection can be given to a worker.
    pub(in super::super) fn may_accept(&mut self, now: Instant) -> bool {
        self.accepting.is_none() && self.waits_until(now).is_none()
    }

    /// Until when no connection is taken, for lack of something or because there were too many.
    pub(super) fn waits_until(&mut self, now: Instant) -> Option<Instant> {
        self.retry_at.take_if(|retry_at| *retry_at <= now);
        self.retry_at.or_else(|| self.forks.next(now))
    }

    /// Something is lacking: the connection waits.
    pub(in super::super) fn back_off(&mut self, now: Instant) {
        self.accepting = None;
        self.retry_at = Some(now + RETRY);
    }

    /// A worker with this number is to take the next connection. Says how many connections before this one were not
    /// logged, or that this one is not to be, either.
    pub(in super::super) fn starts(&mut self, worker: u64, now: Instant) -> Option<u64> {
        self.accepting = Some(worker);
        let _ = self.forks.take(now);
        self.logs.take(now)
    }

    /// The worker has taken its connection.
    pub(in super::super) fn accepted(&mut self, worker: u64) {
        self.accepting.take_if(|accepting| *accepting == worker);
    }

    /// The worker has ended; says whether it never took its connection.
    pub(in super::super) fn ended(&mut self, worker: u64, now: Instant) -> bool {
        let failed = self.accepting == Some(worker);
        if failed {
            self.back_off(now);
        }
        failed
    }

    /// Keeps the descriptor and leaves the socket's file to the parent.
    pub(super) fn into_listener(self) -> OwnedFd {
        self.socket.into_listener()
    }

    /// The worker's life: one connection, from accept to the client's leaving.
    pub(in super::super) fn serve(self, context: WorkerContext<'_>, muted: Option<Muted>) -> u8 {
        match self.device.clone() {
            SocketDevice::VhostUser { image, options } => {
                self.serve_vhost_user(image, &options, context, muted)
            }
            SocketDevice::Nbd { exports, options } => {
                let _muted = muted;
                self.serve_nbd(&exports, &options, context)
            }
        }
    }

    /// SIGTERM simply ends it.
    fn serve_nbd(self, exports: &Exports, options: &NbdOptions, context: WorkerContext<'_>) -> u8 {
        let listener = self.into_listener();
        let reporter = &context.reporter;
        if let Err(error) = (context.confine)() {
            reporter.tell(&Word::Failed(error.to_string()));
            return 1;
        }
        let client = match accept(&listener) {
            Ok(client) => client,
            Err(error) => {
                reporter.tell(&Word::Failed(format!(
                    "cannot accept a connection: {error}"
                )));
                return 1;
            }
        };
        // One connection, and no way to another one.
        drop(listener);
        reporter.tell(&Word::Accepted);
        let meter = context.meter.clone();
        let on_start = |chosen: &Export| {
            if let Some(index) = exports.index_of(&chosen.name) {
                reporter.tell(&Word::Chose(index));
            }
            reporter.tell(&Word::Spoke);
        };
        match nbd::serve_connection(client.socket, exports, options, meter, on_start) {
            Ok(nbd::Served::Client(stats)) => {
                reporter.tell(&Word::Left(stats));
                0
            }
            Ok(nbd::Served::NoExport) => EXIT_SILENT,
            Err(error) => {
                reporter.tell(&Word::Failed(format!("{error}{}", client.from)));
                1
            }
        }
    }

    fn serve_vhost_user(
        self,
        image: Arc<Image>,
        device: &DeviceOptions,
        context: WorkerContext<'_>,
        muted: Option<Muted>,
    ) -> u8 {
        let WorkerContext {
            reporter,
            meter,
            confine,
        } = context;
        let listener = UnixListener::from(self.into_listener());
        // Before the filter, which lets no further one be made; and before there are other threads.
        let end = EndRequest::block();
        if let Err(error) = confine() {
            reporter.tell(&Word::Failed(error.to_string()));
            return 1;
        }
        let watched = Arc::clone(&reporter);
        let on_accept = |device: &Arc<BlkDevice>, connection| {
            watched.tell(&Word::Accepted);
            let device = Arc::clone(device);
            match end {
                Ok(end) => Watch {
                    device,
                    reporter: watched,
                    end,
                    connection,
                    muted,
                }
                .start(),
                Err(error) => tracing::warn!("{error}"),
            }
        };
        match serve_connection(image, device, meter, listener, on_accept) {
            Ok(Served::Frontend(stats)) => {
                reporter.tell(&Word::Left(stats));
                0
            }
            Ok(Served::Nobody) => EXIT_SILENT,
            Err(error) => {
                reporter.tell(&Word::Failed(error.to_string()));
                1
            }
        }
    }
}

/// A connected client.
struct NbdClient {
    socket: OwnedFd,
    /// Where it comes from, for messages; empty on this host.
    from: String,
}

/// Of a socket of any family.
fn accept(listener: &OwnedFd) -> io::Result<NbdClient> {
    let (socket, from) = retry_on_intr(|| acceptfrom_with(listener, SocketFlags::CLOEXEC))?;
    let from = from.and_then(|from| SocketAddr::try_from(from).ok());
    let from = from.map_or(String::new(), |from| format!(" (from {from})"));
    Ok(NbdClient { socket, from })
}

/// A thread that tells the parent that the client has spoken, and at the end what was served, and sees to it that there is
/// an end.
struct Watch {
    device: Arc<BlkDevice>,
    reporter: Arc<Reporter>,
    end: EndRequest,
    /// None once the frontend has hung up.
    connection: Option<OwnedFd>,
    muted: Option<Muted>,
}

impl Watch {
    fn start(self) {
        let thread = thread::Builder::new().name("watch".to_owned());
        if let Err(error) = thread.spawn(move || self.run()) {
            // Then the parent takes the client for silent, and ends this process.
            tracing::warn!("cannot start a thread: {error}");
        }
    }

    fn run(mut self) {
        self.device.wait_until_addressed();
        self.reporter.tell(&Word::Spoke);
        let mut limit_ms = self.muted.as_ref().map(|_| Muted::TIME_MS);
        loop {
            let connection = self.connection.as_ref().map(AsFd::as_fd);
            match self.end.wait(connection, limit_ms) {
                Waited::Asked => break,
                Waited::HungUp => {
                    self.connection = None;
                    limit_ms = Some(COME_BACK_MS);
                }
                Waited::Limit if limit_ms == Some(COME_BACK_MS) => {
                    tracing::warn!(
                        "the frontend has left, and threads that serve it do not come back"
                    );
                    break;
                }
                Waited::Limit => {
                    // It has stayed: no longer one of many that come and go.
                    if let Some(muted) = self.muted.take() {
                        muted.speak();
                    }
                    limit_ms = None;
                }
            }
        }
        self.reporter.tell(&Word::Left(self.device.stats()));
        exit_now(0);
    }
}
