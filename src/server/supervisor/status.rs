//! The status of the server and its VMs.

use std::path::PathBuf;
use std::process;
use std::time::{Duration, Instant, SystemTime};

use super::super::activation::{InheritedSocket, SocketName};
use super::super::endpoint::Endpoint;
use super::super::status::{ClientKind, ClientStatus, ExportStatus, ServerStatus, status_path};
use super::super::workers::Worker;
use super::{ServeOptions, Server};
use crate::cache::FetchMeter;
use crate::device::Stats;
use crate::device::meter::{Meter, merged};
use crate::device::nbd::Export;
use crate::image::Image;

/// Paths of the status sockets: next to each socket that has a path, and to the mount.
pub(super) fn status_paths(options: &ServeOptions, inherited: &[InheritedSocket]) -> Vec<PathBuf> {
    if let Some(path) = &options.status {
        return vec![path.clone()];
    }
    let names: Vec<SocketName> = inherited.iter().map(InheritedSocket::name).collect();
    let inherited = names.iter().filter_map(SocketName::path);
    let dirs = options.fuse.iter().map(|fuse| fuse.dir.as_path());
    let places = inherited.chain(options.socket_files()).chain(dirs);
    places.map(status_path).collect()
}

/// Totals of clients that have disconnected.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct DepartedClients {
    count: u64,
    stats: Stats,
}

impl DepartedClients {
    pub(super) fn add(&mut self, meter: &Meter) {
        let stats = meter.stats();
        self.count += 1;
        self.stats.requests = self.stats.requests.saturating_add(stats.requests);
        self.stats.bytes = self.stats.bytes.saturating_add(stats.bytes);
        self.stats.errors = self.stats.errors.saturating_add(stats.errors);
    }
}

impl Server<'_> {
    /// Adds an event to the boot report, if there is one and the event is new.
    pub(super) fn record_event(&mut self, name: &str) {
        if let Some(report) = &mut self.report {
            report.record_event(name);
        }
    }

    /// Serves status clients, and writes the metrics if they are due.
    pub(super) fn update_status(&mut self) {
        let now = Instant::now();
        let mut status_server = std::mem::take(&mut self.status);
        status_server.process(now, &|| self.status());
        self.status = status_server;
        if let Some(mut metrics) = self.metrics.take() {
            metrics.write_if_due(now, &|| self.status());
            self.metrics = Some(metrics);
        }
    }

    /// When [`update_status`](Self::update_status) must be called even without an event.
    pub(super) fn next_status_update(&self) -> Option<Instant> {
        let metrics = self.metrics.iter().map(|metrics| metrics.wakes_at());
        let metrics = metrics.filter(|_| self.is_confined);
        metrics.chain(self.status.wakes_at()).min()
    }

    /// Logs the status, at SIGUSR1.
    pub(super) fn log_status(&self) {
        let status = self.status();
        for vm in &status.clients {
            tracing::info!(
                vm = vm.vm,
                place = vm.place,
                export = vm.export,
                requests = vm.requests,
                bytes = vm.bytes,
                errors = vm.errors,
                in_flight = vm.in_flight,
                plans = vm.plans,
                seconds = vm.age_ms / 1000,
                "status of a VM"
            );
        }
        if let Some(fetched) = &status.fetched {
            tracing::info!(
                nars = fetched.nars,
                listings = fetched.listings,
                received_bytes = fetched.received_bytes,
                failures = fetched.failures,
                fetching = fetched.fetching,
                "fetched from binary caches"
            );
        }
        tracing::info!(
            vms = status.clients.len(),
            left = status.left,
            paths = status.paths,
            seconds = status.age_ms / 1000,
            "status of the server"
        );
    }

    fn status(&self) -> ServerStatus {
        let spoken = self.workers.iter().filter(|worker| worker.is_connected);
        let mut clients: Vec<_> = spoken.filter_map(|worker| self.client(worker)).collect();
        clients.extend(self.file_status());
        let plans: Vec<_> = self.disks.images().map(Image::published_plans).collect();
        ServerStatus {
            pid: process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            disk: self.disks.main_fingerprint().map(ToString::to_string),
            exports: self
                .disks
                .exports_if_several()
                .iter()
                .map(export_status)
                .collect(),
            since_sec: unix_sec(self.started),
            age_ms: age_ms(self.started),
            paths: self.disks.path_count() as u64,
            published_plans: plans.iter().map(|plans| plans.all).sum(),
            kept_plans: plans.iter().map(|plans| plans.kept).sum(),
            clients,
            left: self.departed.count,
            left_requests: self.departed.stats.requests,
            left_bytes: self.departed.stats.bytes,
            left_errors: self.departed.stats.errors,
            fetched: self.options.fetched.as_ref().map(FetchMeter::figures),
        }
    }

    fn client(&self, worker: &Worker) -> Option<ClientStatus> {
        let kind = self.endpoints.get(worker.endpoint)?.kind();
        let place = worker.socket.to_string();
        let status = status_of(worker.vm, kind, place, worker.started, &worker.meter);
        Some(ClientStatus {
            export: worker.export().map(str::to_owned),
            ..status
        })
    }

    fn file_status(&self) -> Option<ClientStatus> {
        let mount = self.mount_index().map(|index| &self.endpoints[index]);
        let Some(Endpoint::Fuse(mount)) = mount else {
            return None;
        };
        let (since, meter) = mount.served()?;
        let place = mount.file().display().to_string();
        Some(status_of(0, ClientKind::Fuse, place, since, meter))
    }
}

fn status_of(
    vm: u64,
    kind: ClientKind,
    place: String,
    since: Instant,
    meter: &Meter,
) -> ClientStatus {
    let figures = meter.figures();
    ClientStatus {
        vm,
        kind,
        place,
        export: None,
        since_sec: unix_sec(since),
        age_ms: age_ms(since),
        requests: figures.stats.requests,
        bytes: figures.stats.bytes,
        errors: figures.stats.errors,
        in_flight: figures.in_flight,
        plans: figures.plans,
        times: merged(std::slice::from_ref(&figures)),
    }
}

fn export_status(export: &Export) -> ExportStatus {
    ExportStatus {
        name: export.name.to_string(),
        disk: export.image.fingerprint().map(ToString::to_string),
        paths: export.image.space().regions().len() as u64,
    }
}

fn unix_sec(at: Instant) -> u64 {
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let at = since_epoch
        .unwrap_or(Duration::ZERO)
        .saturating_sub(at.elapsed());
    at.as_secs()
}

fn age_ms(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}
