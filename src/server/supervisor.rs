//! The parent: waits for events, starts workers, ends everything.
//!
//! It has one thread and waits in one place only. Nothing that concerns one connection or one mount ends it: what fails
//! is logged and tried again later.

mod jail;
mod mount;
mod planner;
mod prefetch;
mod start;
mod status;
mod wait;

use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::activation::InheritedSocket;
use super::boot_report::ReportFile;
use super::confine::{log_is_file, warn_of_missing_protections};
use super::disks::Disks;
use super::endpoint::{self, Endpoint, MountEndpoint};
use super::error::ServeError;
use super::mute::Muted;
use super::recording::RecordFile;
use super::status::{MetricsFile, StatusPoint};
use super::workers::{Outcome, Worker};
use super::{ServeEvent, ServeOptions};
use crate::image::PlanDir;
use crate::process::{Child, ENDING, End, Signals, stop_all};
use crate::sandbox::Process;
use jail::JailState;
use planner::Planner;
use status::Left;
use wait::Source;

/// How long workers may take to end after SIGTERM.
const GRACE: Duration = Duration::from_secs(2);

/// Clients of one socket at a time that have not said anything yet; further ones wait, and those of other sockets do not.
const SILENT_MAX: usize = 64;

/// Serves `disks` until a signal asks for the end, with `once` until the first VM has gone, or until there is nothing to
/// serve any more because someone unmounted the file. `inherited` sockets are served like those of the options.
///
/// `on_event` is told what happens. The process must have one thread.
///
/// # Errors
/// When a main disk is needed and there is none, a socket cannot be made, the file cannot be mounted at the start, the
/// process has several threads, or, with `once`, the worker ended badly.
pub fn serve(
    disks: Disks,
    options: &ServeOptions,
    inherited: Vec<InheritedSocket>,
    mut on_event: impl FnMut(ServeEvent<'_>),
) -> Result<(), ServeError> {
    // Before the sockets exist: a signal must not leave them behind.
    let signals = Signals::block(&[Signal::SIGUSR1, Signal::SIGUSR2])?;
    let started = Instant::now();
    let main = || disks.main().map(Arc::clone);
    let record = options.record.as_deref();
    let record = record.map(|path| RecordFile::open(path, main()?));
    let report = options.report.clone();
    let report = report.map(|report| ReportFile::new(report, main()?));
    // A tree may change at any time: nothing is kept of it.
    let plan_dir = options.plan_dir.as_deref().filter(|_| !disks.is_tree());
    let places = status::places(options, &inherited);
    let mut server = Server {
        endpoints: endpoint::all(&disks, options, inherited)?,
        status: StatusPoint::bind(places),
        metrics: options
            .metrics
            .clone()
            .map(|path| MetricsFile::new(path, started)),
        started,
        left: Left::default(),
        nowhere: Muted::nowhere().map_err(ServeError::host("open /dev/null"))?,
        record: record.transpose()?,
        report: report.transpose()?,
        plan_dir: plan_dir.map(PlanDir::open).transpose()?,
        disks,
        options,
        logs_to_file: log_is_file(),
        signals,
        workers: Vec::new(),
        jail: JailState::None,
        planner: Planner::default(),
        prefetcher: None,
        next_vm: 1,
        next_endpoint: 0,
        vms_told: 0,
        is_ready: false,
        on_event: &mut on_event,
    };
    let done = server.start().and_then(|step| match step {
        Step::GoOn => server.run(),
        Step::End => Ok(()),
    });
    server.end();
    done
}

/// Whether to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    GoOn,
    End,
}

struct Server<'o> {
    disks: Disks,
    options: &'o ServeOptions,
    /// Log lines go to a regular file, which workers then make longer.
    logs_to_file: bool,
    endpoints: Vec<Endpoint>,
    signals: Signals,
    /// Those of VMs.
    workers: Vec<Worker>,
    record: Option<RecordFile>,
    report: Option<ReportFile>,
    jail: JailState,
    planner: Planner,
    /// Where the planner keeps plans. No other process that reads the disk has it.
    plan_dir: Option<PlanDir>,
    prefetcher: Option<Child>,
    status: StatusPoint,
    metrics: Option<MetricsFile>,
    started: Instant,
    left: Left,
    /// Where muted workers write; opened before this process is confined.
    nowhere: File,
    next_vm: u64,
    /// The endpoint that is served first when several have clients: a busy one must not keep the others waiting.
    next_endpoint: usize,
    /// What `on_event` was told last.
    vms_told: usize,
    /// Connections are taken.
    is_ready: bool,
    on_event: &'o mut dyn FnMut(ServeEvent<'_>),
}

impl Server<'_> {
    /// Mounts, confines this process, and says that all is there.
    fn start(&mut self) -> Result<Step, ServeError> {
        warn_of_missing_protections(&self.disks, self.options);
        self.start_jail();
        if let Some(index) = self.mount_index() {
            if self.turn_while(Self::is_furnishing)? == Step::End {
                return Ok(Step::End);
            }
            self.start_mount(index)?;
            // It may be over already: a reader was faster, or someone unmounted it.
            if self.turn_while(|server| server.is_mounting())? == Step::End {
                return Ok(Step::End);
            }
        }
        let profile = match self.options.fuse {
            Some(_) => Process::Mounter,
            None => Process::Listener,
        };
        self.confine(profile, None)?;
        self.is_ready = true;
        let sockets: Vec<_> = self
            .endpoints
            .iter()
            .filter_map(Endpoint::listens_at)
            .collect();
        (self.on_event)(ServeEvent::Ready(&sockets));
        self.happened("ready");
        if !self.is_furnishing() {
            self.start_readers();
        }
        Ok(Step::GoOn)
    }

    fn turn_while(&mut self, condition: impl Fn(&Self) -> bool) -> Result<Step, ServeError> {
        while condition(self) {
            if self.turn()? == Step::End {
                return Ok(Step::End);
            }
        }
        Ok(Step::GoOn)
    }

    fn run(&mut self) -> Result<(), ServeError> {
        while self.is_anything_served() {
            self.tell_vms();
            if self.turn()? == Step::End {
                break;
            }
        }
        Ok(())
    }

    /// Waits for something to do, and does it.
    fn turn(&mut self) -> Result<Step, ServeError> {
        let ready = self.wait();
        for source in &ready {
            match source {
                Source::Signals if self.is_asked_to_end() => return Ok(Step::End),
                Source::Signals | Source::Status => {}
                Source::Worker(index) => self.hear_worker(*index),
                Source::Endpoint(index) => {
                    if let Some(mount) = self.endpoints[*index].mount_mut() {
                        let news = mount.read_reports();
                        self.judge_mount(*index, news)?;
                    }
                }
            }
        }
        self.look_after_jail();
        self.look_after_mount()?;
        if self.reap()? == Step::End {
            return Ok(Step::End);
        }
        self.turn_away_silent();
        if self.is_ready {
            self.tell_status();
        }
        if let Some(index) = self.choose_endpoint(&ready) {
            self.start_worker(index);
        }
        Ok(Step::GoOn)
    }

    /// Takes the signals that have come.
    fn is_asked_to_end(&mut self) -> bool {
        let received = self.signals.take();
        if received.iter().any(|one| one.signal == Signal::SIGUSR1) {
            self.log_status();
        }
        if received.iter().any(|one| one.signal == Signal::SIGUSR2) {
            self.happened("booted");
        }
        received.iter().any(|one| ENDING.contains(&one.signal))
    }

    fn may_take_clients(&self) -> bool {
        // With `once` the first VM is the only one: another must not be cut off when the first one leaves.
        let is_taken = self.options.once && self.workers.iter().any(|worker| worker.has_spoken);
        !is_taken && self.workers.len() < self.options.limits.max_vms
    }

    /// The socket that is served next, of those where a client waits.
    fn choose_endpoint(&mut self, ready: &[Source]) -> Option<usize> {
        let count = self.endpoints.len();
        let chosen = (self.next_endpoint..self.next_endpoint + count)
            .map(|index| index % count)
            .find(|index| {
                self.endpoints[*index].socket().is_some()
                    && ready.contains(&Source::Endpoint(*index))
            })?;
        self.next_endpoint = chosen + 1;
        Some(chosen)
    }

    fn hear_worker(&mut self, index: usize) {
        let Some(worker) = self.workers.get_mut(index) else {
            return;
        };
        let news = worker.read_reports();
        let (vm, endpoint) = (worker.vm, worker.endpoint);
        if news.accepted
            && let Some(socket) = self.endpoints[endpoint].socket_mut()
        {
            socket.accepted(vm);
        }
        if news.spoke && self.options.once {
            let others = self.workers.iter_mut().filter(|worker| worker.vm != vm);
            others.for_each(Worker::turn_away);
        }
    }

    /// Collects the workers that have ended, so that none stays a zombie.
    fn reap(&mut self) -> Result<Step, ServeError> {
        if let Some(end) = self.prefetcher.as_mut().and_then(Child::end) {
            self.prefetcher = None;
            if end != End::Exited(0) {
                tracing::warn!(?end, "reading in advance ended early");
            }
        }
        self.planner.reap();
        let ended = self.take_ended();
        let used = ended
            .into_iter()
            .find(|outcome| *outcome != Outcome::Silent);
        match used {
            Some(Outcome::Failed { how }) if self.options.once => Err(ServeError::Worker { how }),
            Some(_) if self.options.once => Ok(Step::End),
            _ => Ok(Step::GoOn),
        }
    }

    fn take_ended(&mut self) -> Vec<Outcome> {
        let now = Instant::now();
        let mut outcomes = Vec::new();
        let (endpoints, record) = (&mut self.endpoints, &mut self.record);
        let (report, left) = (&mut self.report, &mut self.left);
        self.workers.retain_mut(|worker| {
            let Some(outcome) = worker.outcome() else {
                return true;
            };
            let socket = endpoints[worker.endpoint].socket_mut();
            let never_accepted = socket.is_some_and(|socket| {
                if worker.has_accepted {
                    socket.accepted(worker.vm);
                }
                socket.ended(worker.vm, now)
            });
            if never_accepted {
                tracing::warn!(socket = %worker.socket, "a worker could not accept a connection");
            }
            worker.log(&outcome);
            if worker.has_spoken {
                left.add(&worker.meter);
            }
            match record {
                Some(_) if worker.records && outcome == Outcome::Served => *record = None,
                Some(record) if worker.records => record.give_to_next(),
                _ => {}
            }
            if let Some(report) = report {
                report.ended(worker, &outcome);
            }
            // The word of one that was served may be lost; a client that broke the protocol at once had no disk.
            if worker.has_spoken || outcome == Outcome::Served {
                outcomes.push(outcome);
            }
            false
        });
        outcomes
    }

    fn turn_away_silent(&mut self) {
        let (now, first_message) = (Instant::now(), self.options.limits.first_message);
        let late = |worker: &&mut Worker| {
            worker
                .deadline(first_message)
                .is_some_and(|deadline| deadline <= now)
        };
        self.workers
            .iter_mut()
            .filter(late)
            .for_each(Worker::turn_away);
    }

    /// Ends everything.
    fn end(&mut self) {
        (self.on_event)(ServeEvent::Stopping);
        let mounts = self.endpoints.iter_mut().filter_map(Endpoint::mount_mut);
        let mut detached: Vec<_> = mounts.filter_map(MountEndpoint::detach).collect();
        // A VM may have spoken since the last look, and must not be taken for a silent client.
        self.workers
            .iter_mut()
            .for_each(|worker| _ = worker.read_reports());
        // They hold SIGTERM back, to say what was served; these have nothing to say.
        let silent = self.workers.iter_mut().filter(|worker| !worker.has_spoken);
        silent.for_each(Worker::turn_away);
        let spoken = self.workers.iter_mut().filter(|worker| worker.has_spoken);
        spoken.for_each(Worker::ask_to_end);
        let workers = self.workers.iter_mut().map(|worker| &mut worker.child);
        let mounts = detached.iter_mut().map(|worker| &mut worker.child);
        let mut children: Vec<&mut Child> = workers
            .chain(mounts)
            .chain(&mut self.prefetcher)
            .chain(self.planner.child_mut())
            .chain(self.jail.furnisher())
            .collect();
        stop_all(&mut children, GRACE);
        self.take_ended();
        if let Some(metrics) = &self.metrics {
            metrics.remove();
        }
        if let Some(report) = self.report.as_mut().filter(|_| self.is_ready) {
            report.write();
        }
        for worker in detached {
            if let Some(mount) = self.endpoints.iter_mut().find_map(Endpoint::mount_mut) {
                mount.hear_last(worker);
            }
        }
    }

    fn tell_vms(&mut self) {
        let vms = self
            .workers
            .iter()
            .filter(|worker| worker.has_spoken)
            .count();
        if vms != self.vms_told {
            self.vms_told = vms;
            (self.on_event)(ServeEvent::Vms(vms));
        }
    }

    fn is_anything_served(&self) -> bool {
        self.endpoints.iter().any(|endpoint| match endpoint {
            Endpoint::VhostUser(_) | Endpoint::Nbd(_) => true,
            Endpoint::Fuse(mount) => !mount.is_over(),
        })
    }
}
