//! The parent: waits for events, starts workers, ends everything.
//!
//! It has one thread, and waits only in `wait`. A failure of one connection or mount does not end it: it is logged, and
//! the operation is retried later.

mod jail;
mod mount;
mod planner;
mod prefetch;
mod start;
mod status;
mod wait;

use std::fs::File;
use std::ops::ControlFlow;
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
use super::status::{MetricsFile, StatusServer};
use super::workers::{Worker, WorkerEnd};
use super::{ServeEvent, ServeOptions};
use crate::image::PlanDir;
use crate::process::{Child, ENDING, End, Signals, stop_all};
use crate::sandbox::Process;
use jail::JailState;
use planner::PlannerProcess;
use status::DepartedClients;
use wait::EventSource;

/// How long workers may take to end after SIGTERM.
const GRACE: Duration = Duration::from_secs(2);

/// Maximum number of clients of one socket that have not sent a first message. Further clients of that socket wait.
const SILENT_MAX: usize = 64;

/// Serves `disks` until SIGTERM or SIGINT; with `once`, until the first VM has disconnected; without sockets, until the
/// file is unmounted. `inherited` sockets are served like those in `options`.
///
/// Calls `on_event` when something happens. The process must have one thread.
///
/// # Errors
/// A main disk is needed and there is none, a socket cannot be created, the file cannot be mounted at the start, or the
/// process has several threads. With `once`: the worker failed.
pub fn serve(
    disks: Disks,
    options: &ServeOptions,
    inherited: Vec<InheritedSocket>,
    mut on_event: impl FnMut(ServeEvent<'_>),
) -> Result<(), ServeError> {
    // Block signals before the sockets exist: a signal must not end the process without removing them.
    let signals = Signals::block(&[Signal::SIGUSR1, Signal::SIGUSR2])?;
    let started = Instant::now();
    let main = || disks.main().map(Arc::clone);
    let record = options.record.as_deref();
    let record = record.map(|path| RecordFile::open(path, main()?));
    let report = options.report.clone();
    let report = report.map(|report| ReportFile::new(report, main()?));
    // A tree may change at any time, so its plans are not kept.
    let plan_dir = options.plan_dir.as_deref().filter(|_| !disks.is_tree());
    let status_paths = status::status_paths(options, &inherited);
    let mut server = Server {
        endpoints: endpoint::all(&disks, options, inherited)?,
        status: StatusServer::bind(status_paths),
        metrics: options
            .metrics
            .clone()
            .map(|path| MetricsFile::new(path, started)),
        started,
        departed: DepartedClients::default(),
        dev_null: Muted::dev_null().map_err(ServeError::host("open /dev/null"))?,
        record: record.transpose()?,
        report: report.transpose()?,
        plan_dir: plan_dir.map(PlanDir::open).transpose()?,
        disks,
        options,
        logs_to_file: log_is_file(),
        signals,
        workers: Vec::new(),
        jail: JailState::Disabled,
        planner: PlannerProcess::default(),
        prefetcher: None,
        next_vm: 1,
        next_endpoint: 0,
        reported_vms: 0,
        is_ready: false,
        is_confined: false,
        on_event: &mut on_event,
    };
    let done = server.start().and_then(|step| match step {
        ControlFlow::Continue(()) => server.run(),
        ControlFlow::Break(()) => Ok(()),
    });
    server.end();
    done
}

struct Server<'o> {
    disks: Disks,
    options: &'o ServeOptions,
    /// Log lines go to a regular file, which workers must be able to extend.
    logs_to_file: bool,
    endpoints: Vec<Endpoint>,
    signals: Signals,
    /// Workers of VMs.
    workers: Vec<Worker>,
    record: Option<RecordFile>,
    report: Option<ReportFile>,
    jail: JailState,
    planner: PlannerProcess,
    /// Directory of the planner for plans. No other process that reads the disk has it.
    plan_dir: Option<PlanDir>,
    prefetcher: Option<Child>,
    status: StatusServer,
    metrics: Option<MetricsFile>,
    started: Instant,
    departed: DepartedClients,
    /// /dev/null, for muted workers. Opened before this process is confined.
    dev_null: File,
    next_vm: u64,
    /// The endpoint to serve first if several have clients. Rotates, so that a busy one does not delay others.
    next_endpoint: usize,
    /// The last number of VMs passed to `on_event`.
    reported_vms: usize,
    /// Clients may connect.
    is_ready: bool,
    /// This process is confined, so it accepts connections and starts workers.
    is_confined: bool,
    on_event: &'o mut dyn FnMut(ServeEvent<'_>),
}

impl Server<'_> {
    /// Mounts the file, reports that this process is ready, and confines it.
    fn start(&mut self) -> Result<ControlFlow<()>, ServeError> {
        warn_of_missing_protections(&self.disks, self.options);
        let mount = self.mount_index();
        // Clients can connect, and a VMM can start, while the jail is built. They are accepted after this process is confined.
        if mount.is_none() {
            self.announce();
        }
        self.start_jail();
        if self.run_while(Self::is_building_jail)?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
        if let Some(index) = mount {
            self.start_mount(index)?;
            // The mount may already have ended: with `once`, a reader may have closed it, or someone unmounted it.
            if self.run_while(|server| server.is_mounting())?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        let profile = match mount {
            Some(_) => Process::Mounter,
            None => Process::Listener,
        };
        self.confine_parent(profile)?;
        self.is_confined = true;
        if mount.is_some() {
            self.announce();
        }
        self.start_readers();
        Ok(ControlFlow::Continue(()))
    }

    fn announce(&mut self) {
        self.is_ready = true;
        let endpoints = self.endpoints.iter();
        let sockets: Vec<_> = endpoints.filter_map(Endpoint::listens_at).collect();
        (self.on_event)(ServeEvent::Ready(&sockets));
        self.record_event("ready");
    }

    fn run_while(
        &mut self,
        condition: impl Fn(&Self) -> bool,
    ) -> Result<ControlFlow<()>, ServeError> {
        while condition(self) {
            if self.run_once()?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    fn run(&mut self) -> Result<(), ServeError> {
        while self.is_anything_served() {
            self.report_vm_count();
            if self.run_once()?.is_break() {
                break;
            }
        }
        Ok(())
    }

    /// Waits for events, and handles them.
    fn run_once(&mut self) -> Result<ControlFlow<()>, ServeError> {
        let ready = self.wait();
        for source in &ready {
            match source {
                EventSource::Signals if self.is_asked_to_end() => {
                    return Ok(ControlFlow::Break(()));
                }
                EventSource::Signals | EventSource::Status => {}
                EventSource::Worker(index) => self.receive_from_worker(*index),
                EventSource::Endpoint(index) => {
                    if let Some(mount) = self.endpoints[*index].mount_mut() {
                        let event = mount.receive_messages();
                        self.handle_mount_event(*index, event)?;
                    }
                }
            }
        }
        self.check_jail();
        self.check_mount()?;
        if self.reap()?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
        self.disconnect_silent();
        if self.is_confined {
            self.update_status();
        }
        if let Some(index) = self.choose_endpoint(&ready) {
            self.start_worker(index);
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Handles pending signals. Returns whether one of them ends the server.
    fn is_asked_to_end(&mut self) -> bool {
        let received = self.signals.take();
        if received.iter().any(|one| one.signal == Signal::SIGUSR1) {
            self.log_status();
        }
        if received.iter().any(|one| one.signal == Signal::SIGUSR2) {
            self.record_event("booted");
        }
        received.iter().any(|one| ENDING.contains(&one.signal))
    }

    fn may_take_clients(&self) -> bool {
        // With `once` only the first VM is served: a second one would be cut off when the first one disconnects.
        let is_taken = self.options.once && self.workers.iter().any(|worker| worker.is_connected);
        !is_taken && self.workers.len() < self.options.limits.max_vms
    }

    /// The next socket to serve, among those with a waiting client.
    fn choose_endpoint(&mut self, ready: &[EventSource]) -> Option<usize> {
        let count = self.endpoints.len();
        let chosen = (self.next_endpoint..self.next_endpoint + count)
            .map(|index| index % count)
            .find(|index| {
                self.endpoints[*index].socket().is_some()
                    && ready.contains(&EventSource::Endpoint(*index))
            })?;
        self.next_endpoint = chosen + 1;
        Some(chosen)
    }

    fn receive_from_worker(&mut self, index: usize) {
        let Some(worker) = self.workers.get_mut(index) else {
            return;
        };
        let update = worker.receive_messages();
        let (vm, endpoint) = (worker.vm, worker.endpoint);
        if update.accepted
            && let Some(socket) = self.endpoints[endpoint].socket_mut()
        {
            socket.accepted(vm);
        }
        if update.connected && self.options.once {
            let others = self.workers.iter_mut().filter(|worker| worker.vm != vm);
            others.for_each(Worker::disconnect);
        }
    }

    /// Handles processes that have ended.
    fn reap(&mut self) -> Result<ControlFlow<()>, ServeError> {
        if let Some(end) = self.prefetcher.as_mut().and_then(Child::end) {
            self.prefetcher = None;
            if end != End::Exited(0) {
                tracing::warn!(?end, "the process that prefetches has failed");
            }
        }
        self.planner.reap();
        let ended = self.collect_ended();
        let used = ended
            .into_iter()
            .find(|outcome| *outcome != WorkerEnd::Silent);
        match used {
            Some(WorkerEnd::Failed { how }) if self.options.once => Err(ServeError::Worker { how }),
            Some(_) if self.options.once => Ok(ControlFlow::Break(())),
            _ => Ok(ControlFlow::Continue(())),
        }
    }

    fn collect_ended(&mut self) -> Vec<WorkerEnd> {
        let now = Instant::now();
        let mut outcomes = Vec::new();
        let (endpoints, record) = (&mut self.endpoints, &mut self.record);
        let (report, departed) = (&mut self.report, &mut self.departed);
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
            if worker.is_connected {
                departed.add(&worker.meter);
            }
            match record {
                Some(_) if worker.records && outcome == WorkerEnd::Served => *record = None,
                Some(record) if worker.records => record.release(),
                _ => {}
            }
            if let Some(report) = report {
                report.ended(worker, &outcome);
            }
            // A served client counts even if its worker's message was lost. One that violated the protocol before its
            // first message does not count.
            if worker.is_connected || outcome == WorkerEnd::Served {
                outcomes.push(outcome);
            }
            false
        });
        outcomes
    }

    fn disconnect_silent(&mut self) {
        let (now, first_message) = (Instant::now(), self.options.limits.first_message);
        let late = |worker: &&mut Worker| {
            worker
                .deadline(first_message)
                .is_some_and(|deadline| deadline <= now)
        };
        self.workers
            .iter_mut()
            .filter(late)
            .for_each(Worker::disconnect);
    }

    /// Ends all processes, and removes sockets, mount and metrics.
    fn end(&mut self) {
        (self.on_event)(ServeEvent::Stopping);
        let mounts = self.endpoints.iter_mut().filter_map(Endpoint::mount_mut);
        let mut detached: Vec<_> = mounts.filter_map(MountEndpoint::detach).collect();
        // Receive pending messages first: a VM that has just connected must not be treated as a silent client.
        self.workers
            .iter_mut()
            .for_each(|worker| _ = worker.receive_messages());
        // Workers handle SIGTERM to send their statistics. Silent ones have none, so they are killed.
        let silent = self
            .workers
            .iter_mut()
            .filter(|worker| !worker.is_connected);
        silent.for_each(Worker::disconnect);
        let connected = self.workers.iter_mut().filter(|worker| worker.is_connected);
        connected.for_each(Worker::expect_end);
        let workers = self.workers.iter_mut().map(|worker| &mut worker.child);
        let mounts = detached.iter_mut().map(|worker| &mut worker.child);
        let mut children: Vec<&mut Child> = workers
            .chain(mounts)
            .chain(&mut self.prefetcher)
            .chain(self.planner.child_mut())
            .chain(self.jail.builder())
            .collect();
        stop_all(&mut children, GRACE);
        self.collect_ended();
        if let Some(metrics) = &self.metrics {
            metrics.remove();
        }
        if let Some(report) = self.report.as_mut().filter(|_| self.is_ready) {
            report.write();
        }
        for worker in detached {
            if let Some(mount) = self.endpoints.iter_mut().find_map(Endpoint::mount_mut) {
                mount.finish_detached(worker);
            }
        }
    }

    fn report_vm_count(&mut self) {
        let vms = self
            .workers
            .iter()
            .filter(|worker| worker.is_connected)
            .count();
        if vms != self.reported_vms {
            self.reported_vms = vms;
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
