//! Processes that read a disk: how the parent starts them, and how they begin.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use nix::sys::signal::Signal;

use super::super::confine::confine;
use super::super::endpoint::{Endpoint, WorkerContext};
use super::super::error::ServeError;
use super::super::mute::Muted;
use super::super::report::{self, Reporter};
use super::super::workers::{Place, Worker};
use super::Server;
use super::jail::JailState;
use crate::device::meter::Meter;
use crate::process::{self, Child};
use crate::sandbox::jail::Cell;
use crate::sandbox::{Process, SandboxError};
use crate::source::RemoteTree;

impl Server<'_> {
    /// Starts a worker for a client that waits at a socket. What fails is tried again later: the client waits on.
    pub(super) fn start_worker(&mut self, index: usize) {
        let (now, vm) = (Instant::now(), self.next_vm);
        let Some(socket) = self.endpoints[index].socket_mut() else {
            return;
        };
        let name = socket.name().clone();
        let meter = socket.meter();
        let unlogged = socket.starts(vm, now);
        if let Some(connections @ 1..) = unlogged {
            tracing::warn!(socket = %name, connections, "connections that came and went were not logged");
        }
        let is_muted = unlogged.is_none();
        let started = meter.map_err(ServeError::from).and_then(|meter| {
            let (reports, reporter) = report::pipe().map_err(ServeError::host("create a pipe"))?;
            let of_role = meter.clone();
            let role =
                |server: &mut Self| server.become_vm_worker(index, reporter, of_role, is_muted);
            Ok((self.spawn_reader(role)?, reports, meter))
        });
        match started {
            Ok((child, reports, meter)) => {
                self.next_vm += 1;
                let place = Place {
                    endpoint: index,
                    socket: name,
                    disks: self.disks.clone(),
                };
                let worker = Worker::new(child, vm, place, reports, meter, now, is_muted);
                self.workers.push(worker);
            }
            Err(error) => {
                if !is_muted {
                    tracing::error!(socket = %name, "cannot start a worker, so a client waits: {error}");
                }
                if let Some(socket) = self.endpoints[index].socket_mut() {
                    socket.back_off(now);
                }
            }
        }
    }

    /// Starts a process that reads the disk.
    pub(super) fn spawn_reader(
        &mut self,
        role: impl FnOnce(&mut Self) -> u8,
    ) -> Result<Child, ServeError> {
        self.start_planner();
        let remote = self.disks.remote();
        let connection = remote.map(RemoteTree::connect).transpose();
        // Without one, what is not on this host is an I/O error, and the rest is served.
        let connection = connection.unwrap_or_else(|error| {
            tracing::error!("a new process cannot ask for paths to be fetched: {error}");
            None
        });
        let child = process::spawn(Signal::SIGKILL, || {
            if let Some(remote) = self.disks.remote() {
                connection.into_iter().for_each(|end| remote.attach(end));
                remote.forget_control();
            }
            role(self)
        })?;
        Ok(child)
    }

    /// In a worker: takes its endpoint, and lets go of all else that is the parent's.
    pub(super) fn take_endpoint(&mut self, index: usize) -> Option<Endpoint> {
        self.signals.leave_to_parent();
        self.status.leave_to_parent();
        self.plan_dir = None;
        drop(std::mem::take(&mut self.workers));
        let mut own = None;
        for (other, endpoint) in std::mem::take(&mut self.endpoints).into_iter().enumerate() {
            match other == index {
                true => own = Some(endpoint),
                // It leads to other VMs.
                false => endpoint.leave_to_parent(),
            }
        }
        own
    }

    /// The life of a VM's worker.
    fn become_vm_worker(
        &mut self,
        index: usize,
        reporter: Reporter,
        meter: Meter,
        is_muted: bool,
    ) -> u8 {
        let muted = is_muted.then(|| Muted::new(&self.nowhere).ok()).flatten();
        let reporter = Arc::new(reporter);
        if let Some(record) = self.record.take() {
            record.record(Arc::clone(&reporter));
        }
        if let Some(report) = self.report.take() {
            report.note(Some(self.next_vm));
        }
        self.serve_endpoint(index, reporter, meter, muted)
    }

    pub(super) fn serve_endpoint(
        &mut self,
        index: usize,
        reporter: Arc<Reporter>,
        meter: Meter,
        muted: Option<Muted>,
    ) -> u8 {
        let (is_alone, once) = (self.endpoints.len() == 1, self.options.once);
        let Some(endpoint) = self.take_endpoint(index) else {
            return 1;
        };
        let profile = endpoint.profile();
        let jail = std::mem::replace(&mut self.jail, JailState::None);
        let context = WorkerContext {
            reporter,
            meter,
            confine: Box::new(move || self.confine_worker(profile, jail)),
        };
        match endpoint {
            Endpoint::VhostUser(socket) | Endpoint::Nbd(socket) => socket.serve(context, muted),
            Endpoint::Fuse(mount) => mount.serve(context, once && is_alone),
        }
    }

    pub(super) fn confine(
        &self,
        profile: Process,
        cell: Option<&Cell>,
    ) -> Result<(), SandboxError> {
        let status: Vec<&Path> = self.status.paths().collect();
        confine(
            profile,
            &self.disks,
            self.options,
            &status,
            self.logs_to_file,
            cell,
            self.plan_dir.as_ref(),
        )
    }
}
