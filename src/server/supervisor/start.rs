//! Starts processes that read a disk.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use nix::sys::signal::Signal;

use super::super::confine::confine;
use super::super::endpoint::{Endpoint, WorkerContext};
use super::super::error::ServeError;
use super::super::messages::{self, Message, MessageSender};
use super::super::mute::Muted;
use super::super::workers::{EndpointInfo, Worker};
use super::Server;
use super::jail::JailState;
use crate::device::meter::Meter;
use crate::process::{self, Child};
use crate::sandbox::jail::JailedStore;
use crate::sandbox::{Process, SandboxError};
use crate::source::RemoteTree;

impl Server<'_> {
    /// Starts a worker for a client that waits at a socket. If that fails, the client keeps waiting, and the next attempt
    /// follows later.
    pub(super) fn start_worker(&mut self, index: usize) {
        let (now, vm) = (Instant::now(), self.next_vm);
        let Some(socket) = self.endpoints[index].socket_mut() else {
            return;
        };
        let name = socket.name().clone();
        let meter = socket.meter();
        let unlogged = socket.starts(vm, now);
        if let Some(connections @ 1..) = unlogged {
            tracing::warn!(socket = %name, connections, "some short connections were not logged");
        }
        let is_muted = unlogged.is_none();
        let started = meter.map_err(ServeError::from).and_then(|meter| {
            let (receiver, sender) =
                messages::channel().map_err(ServeError::host("create a pipe"))?;
            let of_role = meter.clone();
            let role =
                |server: &mut Self| server.become_vm_worker(index, sender, of_role, is_muted);
            Ok((self.spawn_reader(role)?, receiver, meter))
        });
        match started {
            Ok((child, receiver, meter)) => {
                self.next_vm += 1;
                let endpoint_info = EndpointInfo {
                    endpoint: index,
                    socket: name,
                    disks: self.disks.clone(),
                };
                let worker = Worker::new(child, vm, endpoint_info, receiver, meter, now, is_muted);
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

    /// Starts a process that reads the disk and runs `role`.
    pub(super) fn spawn_reader(
        &mut self,
        role: impl FnOnce(&mut Self) -> u8,
    ) -> Result<Child, ServeError> {
        self.start_planner();
        let remote = self.disks.remote();
        let connection = remote.map(RemoteTree::connect).transpose();
        // Without a connection, reads of paths that are not on this host are I/O errors. Other paths are served.
        let connection = connection.unwrap_or_else(|error| {
            tracing::error!("a new process cannot request fetches: {error}");
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

    /// In a child process: takes its endpoint, if it has one, and closes everything else that belongs to the parent.
    pub(super) fn take_endpoint(&mut self, index: Option<usize>) -> Option<Endpoint> {
        self.signals.leave_to_parent();
        self.status.leave_to_parent();
        self.plan_dir = None;
        drop(std::mem::take(&mut self.workers));
        let mut own = None;
        for (other, endpoint) in std::mem::take(&mut self.endpoints).into_iter().enumerate() {
            match Some(other) == index {
                true => own = Some(endpoint),
                // A worker must not reach other VMs' endpoints.
                false => endpoint.leave_to_parent(),
            }
        }
        own
    }

    /// Runs a VM's worker.
    fn become_vm_worker(
        &mut self,
        index: usize,
        sender: MessageSender,
        meter: Meter,
        is_muted: bool,
    ) -> u8 {
        let muted = is_muted.then(|| Muted::new(&self.dev_null).ok()).flatten();
        let sender = Arc::new(sender);
        if let Some(record) = self.record.take() {
            record.start(Arc::clone(&sender));
        }
        if let Some(report) = self.report.take() {
            report.attach(Some(self.next_vm));
        }
        self.serve_endpoint(index, sender, meter, muted)
    }

    pub(super) fn serve_endpoint(
        &mut self,
        index: usize,
        sender: Arc<MessageSender>,
        meter: Meter,
        muted: Option<Muted>,
    ) -> u8 {
        let (is_alone, once) = (self.endpoints.len() == 1, self.options.once);
        let Some(endpoint) = self.take_endpoint(Some(index)) else {
            return 1;
        };
        let profile = endpoint.profile();
        let jail = std::mem::replace(&mut self.jail, JailState::Disabled);
        let context = WorkerContext {
            sender: Arc::clone(&sender),
            meter,
            confine: Box::new(move || self.confine_worker(profile, jail)),
        };
        let result = match endpoint {
            Endpoint::VhostUser(socket) | Endpoint::Nbd(socket) => socket.serve(context, muted),
            Endpoint::Fuse(mount) => mount.serve(context, once && is_alone),
        };
        result.unwrap_or_else(|reason| {
            sender.send(&Message::Failed(reason.to_string()));
            1
        })
    }

    pub(super) fn confine(
        &self,
        profile: Process,
        jail: Option<&JailedStore>,
    ) -> Result<(), SandboxError> {
        let status: Vec<&Path> = self.status.paths().collect();
        confine(
            profile,
            &self.disks,
            self.options,
            &status,
            self.logs_to_file,
            jail,
            self.plan_dir.as_ref(),
        )
    }
}
