//! A file in a FUSE mount, and the worker that serves it.
//!
//! The worker mounts and the parent unmounts. It detaches the mount before it ends the worker, so that no process
//! accesses a dead mount. If the worker dies, processes that have the file open get errors from then on, because their
//! FUSE connection has ended. The parent mounts again for processes that open the file later. If mounting fails, it
//! retries later, so that VMs at sockets are not affected.

use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::super::messages::{Message, MessageReceiver, MessageSender};
use super::super::throttle::Throttle;
use super::{WorkerContext, WorkerResult};
use crate::device::Stats;
use crate::device::fuse::{
    FuseError, FuseOptions, MountPoint, Mounted, ReaderChange, Readers, check_device,
};
use crate::device::meter::Meter;
use crate::image::Image;
use crate::process::{Child, End, EndRequest, exit_now};

/// Pause before the first attempt to mount again, and the longest pause. The pause doubles with each attempt.
const RETRY: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(30);

/// Limit of log lines about readers that open and close the file: burst, and interval.
const LOGS_AT_ONCE: u32 = 100;
const LOG_INTERVAL: Duration = Duration::from_secs(2);

/// The mount, and the process that serves it.
pub(in super::super) struct MountEndpoint {
    image: Arc<Image>,
    options: FuseOptions,
    state: MountState,
    /// The next pause.
    pause: Duration,
    logs: Throttle,
    opened: Option<Instant>,
}

enum MountState {
    /// There is no worker yet.
    Idle,
    Worker(MountWorker),
    /// The last attempt failed.
    Waiting {
        until: Instant,
    },
    /// Someone unmounted the file; or with `once`, its last reader closed it.
    Over,
}

/// The process that serves the mount. Dropping it unmounts.
struct MountWorker {
    child: Child,
    receiver: MessageReceiver,
    meter: Meter,
    since: Instant,
    mountpoint: MountPoint,
    is_mounted: bool,
    /// Its error message, if it failed.
    failure: Option<String>,
}

/// An event for the server.
#[derive(Debug, PartialEq, Eq)]
pub(in super::super) enum MountEvent {
    /// Nothing relevant.
    None,
    /// The file is mounted.
    Mounted,
    /// The worker failed to mount, with this error message.
    Failed(String),
    /// The worker has ended.
    Ended {
        /// It must not be restarted: the file was unmounted, or closed with `once`.
        is_over: bool,
    },
}

impl MountEndpoint {
    pub(in super::super) fn new(options: FuseOptions, image: Arc<Image>) -> Self {
        Self {
            image,
            options,
            state: MountState::Idle,
            pause: RETRY,
            logs: Throttle::new(LOGS_AT_ONCE, LOG_INTERVAL, Instant::now()),
            opened: None,
        }
    }

    pub(super) fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        match &self.state {
            MountState::Worker(worker) => worker.receiver.as_fd(),
            _ => None,
        }
    }

    pub(super) fn retries_at(&self) -> Option<Instant> {
        match self.state {
            MountState::Waiting { until } => Some(until),
            _ => None,
        }
    }

    /// When it was mounted, and the counters of what was read. `None` if it is not mounted.
    pub(in super::super) fn served(&self) -> Option<(Instant, &Meter)> {
        match &self.state {
            MountState::Worker(worker) if worker.is_mounted => Some((worker.since, &worker.meter)),
            _ => None,
        }
    }

    /// Path of the file.
    pub(in super::super) fn file(&self) -> PathBuf {
        self.options.image_path()
    }

    /// Whether the file is mounted.
    pub(in super::super) fn is_mounted(&self) -> bool {
        matches!(&self.state, MountState::Worker(worker) if worker.is_mounted)
    }

    /// Whether the file will not be mounted again.
    pub(in super::super) fn is_over(&self) -> bool {
        matches!(self.state, MountState::Over)
    }

    /// Checks that the directory can be mounted on. Detaches a dead mount of an earlier server.
    pub(in super::super) fn prepare(&self) -> Result<MountPoint, FuseError> {
        check_device()?;
        MountPoint::prepare(&self.options.dir)
    }

    /// Stores the worker that was started to mount on `mountpoint`.
    pub(in super::super) fn started(
        &mut self,
        child: Child,
        receiver: MessageReceiver,
        mountpoint: MountPoint,
        meter: Meter,
    ) {
        self.state = MountState::Worker(MountWorker {
            child,
            receiver,
            meter,
            since: Instant::now(),
            mountpoint,
            is_mounted: false,
            failure: None,
        });
    }

    /// Schedules the next attempt, after a failed one.
    pub(in super::super) fn back_off(&mut self, now: Instant) {
        self.state = MountState::Waiting {
            until: now + self.pause,
        };
        self.pause = (2 * self.pause).min(RETRY_MAX);
    }

    /// Receives the worker's messages.
    pub(in super::super) fn receive_messages(&mut self) -> MountEvent {
        let MountState::Worker(worker) = &mut self.state else {
            return MountEvent::None;
        };
        let messages = worker.receiver.receive();
        self.apply(messages)
    }

    fn apply(&mut self, messages: Vec<Message>) -> MountEvent {
        let mut event = MountEvent::None;
        for message in messages {
            match message {
                Message::Mounted => event = self.mounted(),
                Message::FileOpened => self.log_opened(),
                Message::FileClosed(stats) => self.log_closed(stats),
                Message::Failed(reason) => {
                    if let MountState::Worker(worker) = &mut self.state {
                        worker.failure = Some(reason);
                    }
                }
                Message::Accepted
                | Message::ExportChosen(_)
                | Message::Connected
                | Message::Recording
                | Message::Disconnected(_) => {}
            }
        }
        event
    }

    fn mounted(&mut self) -> MountEvent {
        let MountState::Worker(worker) = &mut self.state else {
            return MountEvent::None;
        };
        if let Err(error) = worker.mountpoint.mounted() {
            return MountEvent::Failed(error.to_string());
        }
        worker.is_mounted = true;
        self.pause = RETRY;
        MountEvent::Mounted
    }

    /// Checks whether the worker has ended.
    pub(in super::super) fn reap(&mut self) -> MountEvent {
        let MountState::Worker(worker) = &mut self.state else {
            return MountEvent::None;
        };
        let Some(end) = worker.child.end() else {
            return MountEvent::None;
        };
        let messages = worker.receiver.receive_all();
        self.apply(messages);
        // Dropping the worker's mountpoint unmounts the file if it is still mounted.
        let MountState::Worker(mut worker) = std::mem::replace(&mut self.state, MountState::Over)
        else {
            return MountEvent::None;
        };
        worker.mountpoint.left_by_worker();
        if end == End::Exited(0) {
            tracing::info!(dir = %self.options.dir.display(), "the file is no longer served");
            return MountEvent::Ended { is_over: true };
        }
        match (worker.is_mounted, worker.failure) {
            (false, failure) => MountEvent::Failed(
                failure.unwrap_or_else(|| "the worker process died while it mounted".to_owned()),
            ),
            (true, failure) => {
                let dir = self.options.dir.display();
                let reason = failure.unwrap_or_else(|| format!("{end:?}"));
                tracing::error!(%dir, reason, "the worker of the FUSE mount ended, mounting again");
                MountEvent::Ended { is_over: false }
            }
        }
    }

    fn log_opened(&mut self) {
        let now = Instant::now();
        self.opened = Some(now);
        if self.logs.take(now).is_some() {
            tracing::info!(file = %self.options.image_path().display(), "the first reader has opened the file");
        }
    }

    fn log_closed(&mut self, stats: Stats) {
        let now = Instant::now();
        let opened = self.opened.take().unwrap_or(now);
        if self.logs.take(now).is_none() {
            return;
        }
        tracing::info!(
            file = %self.options.image_path().display(),
            requests = stats.requests,
            bytes = stats.bytes,
            errors = stats.errors,
            seconds = now.duration_since(opened).as_secs_f64(),
            "the last reader has closed the file"
        );
    }

    /// Detaches the mount, and returns the worker, which the caller must end. Reads of open files fail from then on.
    pub(in super::super) fn detach(&mut self) -> Option<DetachedWorker> {
        match std::mem::replace(&mut self.state, MountState::Over) {
            MountState::Worker(MountWorker {
                child,
                receiver,
                mountpoint,
                is_mounted,
                ..
            }) => Some(DetachedWorker {
                child,
                receiver,
                // If it is mounted, it is dropped here, which unmounts it.
                unmounted: (!is_mounted).then_some(mountpoint),
            }),
            _ => None,
        }
    }

    /// Handles the last messages of a detached worker, and unmounts what it has mounted.
    pub(in super::super) fn finish_detached(&mut self, mut worker: DetachedWorker) {
        let has_ended = worker.child.end().is_some();
        if has_ended {
            let messages = worker.receiver.receive_all();
            self.apply(messages);
        }
        match worker.unmounted {
            Some(mut mountpoint) if has_ended => mountpoint.left_by_worker(),
            other => std::mem::forget(other),
        }
    }

    /// In a worker of another endpoint: closes the pipe, and leaves the mount to the parent.
    pub(super) fn leave_to_parent(self) {
        if let MountState::Worker(worker) = self.state {
            std::mem::forget(worker.mountpoint);
        }
    }

    /// Runs the worker until someone unmounts the file; with `once`, until the last reader closes it.
    pub(in super::super) fn serve(self, context: WorkerContext<'_>, once: bool) -> WorkerResult {
        let WorkerContext {
            sender,
            meter,
            confine,
        } = context;
        let events = Arc::clone(&sender);
        let readers = Arc::new(Readers::new(meter, move |change| {
            events.send(&match change {
                ReaderChange::Opened => Message::FileOpened,
                ReaderChange::Closed(stats) => Message::FileClosed(stats),
            });
        }));
        let mounted = Mounted::mount(self.image, &self.options, Arc::clone(&readers))?;
        let end = EndRequest::block();
        confine()?;
        let serving = mounted.serve()?;
        match end {
            Ok(end) => watch(readers, Arc::clone(&sender), end),
            Err(error) => tracing::warn!("{error}"),
        }
        sender.send(&Message::Mounted);
        serving.wait(once)?;
        Ok(0)
    }
}

/// The worker of a detached mount.
pub(in super::super) struct DetachedWorker {
    pub(in super::super) child: Child,
    receiver: MessageReceiver,
    /// Its mountpoint, if it has not reported yet that it has mounted.
    unmounted: Option<MountPoint>,
}

/// Starts a thread that waits for SIGTERM. It then sends the statistics of readers that still have the file open.
fn watch(readers: Arc<Readers>, sender: Arc<MessageSender>, end: EndRequest) {
    let watch = move || {
        end.wait(None, None);
        if readers.are_there() {
            sender.send(&Message::FileClosed(readers.stats()));
        }
        exit_now(128 + u8::try_from(Signal::SIGTERM as i32).unwrap_or(0));
    };
    let thread = thread::Builder::new().name("watch".to_owned());
    if let Err(error) = thread.spawn(watch) {
        tracing::warn!("cannot start a thread: {error}");
    }
}
