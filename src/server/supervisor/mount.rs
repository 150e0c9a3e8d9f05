//! Starts the mount's worker, and restarts it if it fails.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::endpoint::{Endpoint, MountEvent};
use super::super::error::ServeError;
use super::super::messages::{self, MessageSender};
use super::Server;
use crate::device::meter::Meter;

impl Server<'_> {
    pub(super) fn mount_index(&self) -> Option<usize> {
        let mut endpoints = self.endpoints.iter();
        endpoints.position(|endpoint| matches!(endpoint, Endpoint::Fuse(_)))
    }

    /// Whether the mount is still in progress.
    pub(super) fn is_mounting(&self) -> bool {
        self.endpoints.iter().any(|endpoint| match endpoint {
            Endpoint::Fuse(mount) => !mount.is_mounted() && !mount.is_over(),
            Endpoint::VhostUser(_) | Endpoint::Nbd(_) => false,
        })
    }

    /// Starts the worker that mounts.
    pub(super) fn start_mount(&mut self, index: usize) -> Result<(), ServeError> {
        let Endpoint::Fuse(mount) = &self.endpoints[index] else {
            return Ok(());
        };
        let mountpoint = mount.prepare()?;
        let (receiver, sender) = messages::channel().map_err(ServeError::host("create a pipe"))?;
        let meter = Meter::new(1)?;
        let of_role = meter.clone();
        let role = |server: &mut Self| server.become_mount_worker(index, sender, of_role);
        let child = self.spawn_reader(role)?;
        if let Some(mount) = self.endpoints[index].mount_mut() {
            mount.started(child, receiver, mountpoint, meter.clone());
        }
        if let Some(report) = &mut self.report {
            report.add_mount(meter);
        }
        Ok(())
    }

    /// Runs the mount's worker.
    fn become_mount_worker(&mut self, index: usize, sender: MessageSender, meter: Meter) -> u8 {
        let is_alone = self.endpoints.len() == 1;
        let sender = Arc::new(sender);
        if let Some(record) = self.record.take().filter(|_| is_alone) {
            record.start(Arc::clone(&sender));
        }
        if let Some(report) = self.report.take() {
            report.attach(None);
        }
        self.serve_endpoint(index, sender, meter, None)
    }

    /// Handles an event of the mount. A failure is an error at the start, and is retried later.
    pub(super) fn handle_mount_event(
        &mut self,
        index: usize,
        event: MountEvent,
    ) -> Result<(), ServeError> {
        match event {
            MountEvent::None | MountEvent::Mounted => {}
            MountEvent::Failed(reason) if !self.is_ready => {
                return Err(ServeError::NotMounted { reason });
            }
            MountEvent::Failed(reason) => self.retry_mount(index, &reason),
            MountEvent::Ended { is_over: true } => {}
            MountEvent::Ended { is_over: false } => {
                // Without sockets, the mount's worker records, so its successor needs a token. If the worker had not
                // taken the first token, the successor takes that one.
                if let Some(record) = self.record.as_mut().filter(|_| self.endpoints.len() == 1) {
                    record.release();
                }
                if let Some(mount) = self.endpoints[index].mount_mut() {
                    mount.back_off(Instant::now());
                }
            }
        }
        Ok(())
    }

    fn retry_mount(&mut self, index: usize, reason: &str) {
        tracing::error!(reason, "cannot mount the file again, will retry");
        if let Some(mount) = self.endpoints[index].mount_mut() {
            if let Some(mut worker) = mount.detach() {
                worker.child.stop(Duration::ZERO);
                mount.finish_detached(worker);
            }
            mount.back_off(Instant::now());
        }
    }

    pub(super) fn check_mount(&mut self) -> Result<(), ServeError> {
        let Some(index) = self.mount_index() else {
            return Ok(());
        };
        let Some(mount) = self.endpoints[index].mount_mut() else {
            return Ok(());
        };
        let (event, now) = (mount.reap(), Instant::now());
        let is_due = self.endpoints[index]
            .wakes_at(now)
            .is_some_and(|at| at <= now);
        self.handle_mount_event(index, event)?;
        if is_due && let Err(error) = self.start_mount(index) {
            self.retry_mount(index, &error.to_string());
        }
        Ok(())
    }
}
