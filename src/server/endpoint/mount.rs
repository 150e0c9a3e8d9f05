//! A file in a FUSE mount, and the worker that serves it.
//!
//! The worker mounts and the parent unmounts: first detach, then end the worker, so that nobody meets a dead mount. When
//! the worker dies, those who have the file open get errors for good, since the kernel gave their requests to a process
//! that is gone. The parent then mounts again, for those who open the file again. If that fails it tries again later:
//! VMs at sockets must not suffer.

use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::super::report::{Reporter, Reports, Word};
use super::super::throttle::Throttle;
use super::WorkerContext;
use crate::device::Stats;
use crate::device::fuse::{
    Change, End as MountEnd, FuseError, FuseOptions, MountPoint, Mounted, Readers, check_device,
};
use crate::device::meter::Meter;
use crate::image::Image;
use crate::process::{Child, End, EndRequest, exit_now};

/// Pause before the first attempt to mount again, and the longest one: each is twice the one before.
const RETRY: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(30);

/// Log lines about readers that come and go: at once, and the time after which there may be one more.
const LOGS_AT_ONCE: u32 = 100;
const LOG_INTERVAL: Duration = Duration::from_secs(2);

/// Where the file is mounted, and by which process.
pub(in super::super) struct MountEndpoint {
    image: Arc<Image>,
    options: FuseOptions,
    state: State,
    /// The next pause.
    pause: Duration,
    logs: Throttle,
    opened: Option<Instant>,
}

enum State {
    /// There is no worker yet.
    Idle,
    Worker(MountWorker),
    /// The last attempt failed.
    Waiting {
        until: Instant,
    },
    /// Someone unmounted the file, or with `once` its last reader closed it.
    Over,
}

/// The process that serves the mount. Dropping it unmounts.
struct MountWorker {
    child: Child,
    reports: Reports,
    meter: Meter,
    since: Instant,
    mountpoint: MountPoint,
    is_mounted: bool,
    /// What it said before it gave up.
    failure: Option<String>,
}

/// What the server should know.
#[derive(Debug, PartialEq, Eq)]
pub(in super::super) enum MountNews {
    /// Nothing of importance.
    None,
    /// The file is there.
    Mounted,
    /// The worker gave up before the file was there; these are its words.
    Failed(String),
    /// The worker has ended; whether it had finished.
    Ended {
        /// The file is not wanted any more.
        is_over: bool,
    },
}

impl MountEndpoint {
    pub(in super::super) fn new(options: FuseOptions, image: Arc<Image>) -> Self {
        Self {
            image,
            options,
            state: State::Idle,
            pause: RETRY,
            logs: Throttle::new(LOGS_AT_ONCE, LOG_INTERVAL, Instant::now()),
            opened: None,
        }
    }

    pub(super) fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        match &self.state {
            State::Worker(worker) => worker.reports.as_fd(),
            _ => None,
        }
    }

    pub(super) fn retries_at(&self) -> Option<Instant> {
        match self.state {
            State::Waiting { until } => Some(until),
            _ => None,
        }
    }

    /// Since when the file is there, and what was read of it.
    pub(in super::super) fn served(&self) -> Option<(Instant, &Meter)> {
        match &self.state {
            State::Worker(worker) if worker.is_mounted => Some((worker.since, &worker.meter)),
            _ => None,
        }
    }

    /// Where the file is.
    pub(in super::super) fn file(&self) -> PathBuf {
        self.options.image_path()
    }

    /// Whether the file is there.
    pub(in super::super) fn is_mounted(&self) -> bool {
        matches!(&self.state, State::Worker(worker) if worker.is_mounted)
    }

    /// Whether the file will not come back.
    pub(in super::super) fn is_over(&self) -> bool {
        matches!(self.state, State::Over)
    }

    /// Looks whether the directory can be mounted on; detaches what a dead server left there.
    pub(in super::super) fn prepare(&self) -> Result<MountPoint, FuseError> {
        check_device()?;
        MountPoint::prepare(&self.options.dir)
    }

    /// A worker that is to mount on `mountpoint` has been started.
    pub(in super::super) fn started(
        &mut self,
        child: Child,
        reports: Reports,
        on: MountPoint,
        meter: Meter,
    ) {
        self.state = State::Worker(MountWorker {
            child,
            reports,
            meter,
            since: Instant::now(),
            mountpoint: on,
            is_mounted: false,
            failure: None,
        });
    }

    /// The last attempt failed: the next one comes later.
    pub(in super::super) fn back_off(&mut self, now: Instant) {
        self.state = State::Waiting {
            until: now + self.pause,
        };
        self.pause = (2 * self.pause).min(RETRY_MAX);
    }

    /// Reads what the worker tells.
    pub(in super::super) fn read_reports(&mut self) -> MountNews {
        let State::Worker(worker) = &mut self.state else {
            return MountNews::None;
        };
        let words = worker.reports.read();
        self.hear(words)
    }

    fn hear(&mut self, words: Vec<Word>) -> MountNews {
        let mut news = MountNews::None;
        for word in words {
            match word {
                Word::Mounted => news = self.mounted(),
                Word::Opened => self.log_opened(),
                Word::Closed(stats) => self.log_closed(stats),
                Word::Failed(reason) => {
                    if let State::Worker(worker) = &mut self.state {
                        worker.failure = Some(reason);
                    }
                }
                Word::Accepted | Word::Chose(_) | Word::Spoke | Word::Records | Word::Left(_) => {}
            }
        }
        news
    }

    fn mounted(&mut self) -> MountNews {
        let State::Worker(worker) = &mut self.state else {
            return MountNews::None;
        };
        if let Err(error) = worker.mountpoint.mounted() {
            return MountNews::Failed(error.to_string());
        }
        worker.is_mounted = true;
        self.pause = RETRY;
        MountNews::Mounted
    }

    /// Looks whether the worker has ended.
    pub(in super::super) fn reap(&mut self) -> MountNews {
        let State::Worker(worker) = &mut self.state else {
            return MountNews::None;
        };
        let Some(end) = worker.child.end() else {
            return MountNews::None;
        };
        let words = worker.reports.read_to_end();
        self.hear(words);
        // Unmounts what is left.
        let State::Worker(mut worker) = std::mem::replace(&mut self.state, State::Over) else {
            return MountNews::None;
        };
        worker.mountpoint.left_by_worker();
        if end == End::Exited(0) {
            tracing::info!(dir = %self.options.dir.display(), "the file is not served any more");
            return MountNews::Ended { is_over: true };
        }
        match (worker.is_mounted, worker.failure) {
            (false, failure) => MountNews::Failed(
                failure.unwrap_or_else(|| "the worker process died while it mounted".to_owned()),
            ),
            (true, failure) => {
                let dir = self.options.dir.display();
                let reason = failure.unwrap_or_else(|| format!("{end:?}"));
                tracing::error!(%dir, reason, "the worker of the FUSE mount ended: mounting again");
                MountNews::Ended { is_over: false }
            }
        }
    }

    fn log_opened(&mut self) {
        let now = Instant::now();
        self.opened = Some(now);
        if self.logs.take(now).is_some() {
            tracing::info!(file = %self.options.image_path().display(), "a first reader has opened the file");
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

    /// Detaches the file: what is still open fails from now on. Returns the worker, which is to be ended.
    pub(in super::super) fn detach(&mut self) -> Option<DetachedWorker> {
        match std::mem::replace(&mut self.state, State::Over) {
            State::Worker(MountWorker {
                child,
                reports,
                mountpoint,
                is_mounted,
                ..
            }) => Some(DetachedWorker {
                child,
                reports,
                // Unmounts now, if the file is there.
                unheard: (!is_mounted).then_some(mountpoint),
            }),
            _ => None,
        }
    }

    /// What a worker said at its end, and what it left mounted.
    pub(in super::super) fn hear_last(&mut self, mut worker: DetachedWorker) {
        let has_ended = worker.child.end().is_some();
        if has_ended {
            let words = worker.reports.read_to_end();
            self.hear(words);
        }
        match worker.unheard {
            Some(mut mountpoint) if has_ended => mountpoint.left_by_worker(),
            other => std::mem::forget(other),
        }
    }

    /// In another process than the parent: closes the pipe, and leaves the mount alone.
    pub(super) fn leave_to_parent(self) {
        if let State::Worker(worker) = self.state {
            std::mem::forget(worker.mountpoint);
        }
    }

    /// The worker's life. With `once` until the last reader has closed the file, else until someone unmounts it.
    pub(in super::super) fn serve(self, context: WorkerContext<'_>, once: bool) -> u8 {
        let WorkerContext {
            reporter,
            meter,
            confine,
        } = context;
        let told = Arc::clone(&reporter);
        let readers = Arc::new(Readers::new(meter, move |change| {
            told.tell(&match change {
                Change::Opened => Word::Opened,
                Change::Closed(stats) => Word::Closed(stats),
            });
        }));
        let fail = |reason: String| {
            reporter.tell(&Word::Failed(reason));
            1
        };
        let mounted = match Mounted::mount(self.image, &self.options, Arc::clone(&readers)) {
            Ok(mounted) => mounted,
            Err(error) => return fail(error.to_string()),
        };
        let end = EndRequest::block();
        if let Err(error) = confine() {
            return fail(error.to_string());
        }
        let serving = match mounted.serve() {
            Ok(serving) => serving,
            Err(error) => return fail(error.to_string()),
        };
        match end {
            Ok(end) => watch(readers, Arc::clone(&reporter), end),
            Err(error) => tracing::warn!("{error}"),
        }
        reporter.tell(&Word::Mounted);
        match serving.wait(once) {
            Ok(MountEnd::Closed | MountEnd::Unmounted) => 0,
            Err(error) => fail(error.to_string()),
        }
    }
}

/// The worker of a file that was detached.
pub(in super::super) struct DetachedWorker {
    pub(in super::super) child: Child,
    reports: Reports,
    /// Where it was to mount, if it has not said that it has.
    unheard: Option<MountPoint>,
}

/// Tells the parent at SIGTERM, from a thread of its own, what was read by those who still have the file open.
fn watch(readers: Arc<Readers>, reporter: Arc<Reporter>, end: EndRequest) {
    let watch = move || {
        end.wait(None, None);
        if readers.are_there() {
            reporter.tell(&Word::Closed(readers.stats()));
        }
        exit_now(128 + u8::try_from(Signal::SIGTERM as i32).unwrap_or(0));
    };
    let thread = thread::Builder::new().name("watch".to_owned());
    if let Err(error) = thread.spawn(watch) {
        tracing::warn!("cannot start a thread: {error}");
    }
}
