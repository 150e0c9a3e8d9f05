//! The mount's worker: started, watched, and started again when it ends before its time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::endpoint::{Endpoint, MountNews};
use super::super::error::ServeError;
use super::super::report::{self, Reporter};
use super::Server;
use crate::device::meter::Meter;

impl Server<'_> {
    pub(super) fn mount_index(&self) -> Option<usize> {
        let mut endpoints = self.endpoints.iter();
        endpoints.position(|endpoint| matches!(endpoint, Endpoint::Fuse(_)))
    }

    /// Whether a mount is awaited.
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
        let (reports, reporter) = report::pipe().map_err(ServeError::host("create a pipe"))?;
        let meter = Meter::new(1)?;
        let of_role = meter.clone();
        let role = |server: &mut Self| server.become_mount_worker(index, reporter, of_role);
        let child = self.spawn_reader(role)?;
        if let Some(mount) = self.endpoints[index].mount_mut() {
            mount.started(child, reports, mountpoint, meter.clone());
        }
        if let Some(report) = &mut self.report {
            report.mounted(meter);
        }
        Ok(())
    }

    /// The life of the mount's worker.
    fn become_mount_worker(&mut self, index: usize, reporter: Reporter, meter: Meter) -> u8 {
        let is_alone = self.endpoints.len() == 1;
        let reporter = Arc::new(reporter);
        if let Some(record) = self.record.take().filter(|_| is_alone) {
            record.record(Arc::clone(&reporter));
        }
        if let Some(report) = self.report.take() {
            report.note(None);
        }
        self.serve_endpoint(index, reporter, meter, None)
    }

    /// At the start a mount that fails is an error; later it is tried again.
    pub(super) fn judge_mount(&mut self, index: usize, news: MountNews) -> Result<(), ServeError> {
        match news {
            MountNews::None | MountNews::Mounted => {}
            MountNews::Failed(reason) if !self.is_ready => {
                return Err(ServeError::NotMounted { reason });
            }
            MountNews::Failed(reason) => self.retry_mount(index, &reason),
            MountNews::Ended { is_over: true } => {}
            MountNews::Ended { is_over: false } => {
                // Nobody else records then; a turn that it had not taken comes first.
                if let Some(record) = self.record.as_mut().filter(|_| self.endpoints.len() == 1) {
                    record.give_to_next();
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
                mount.hear_last(worker);
            }
            mount.back_off(Instant::now());
        }
    }

    pub(super) fn look_after_mount(&mut self) -> Result<(), ServeError> {
        let Some(index) = self.mount_index() else {
            return Ok(());
        };
        let Some(mount) = self.endpoints[index].mount_mut() else {
            return Ok(());
        };
        let (news, now) = (mount.reap(), Instant::now());
        let is_due = self.endpoints[index]
            .wakes_at(now)
            .is_some_and(|at| at <= now);
        self.judge_mount(index, news)?;
        if is_due && let Err(error) = self.start_mount(index) {
            self.retry_mount(index, &error.to_string());
        }
        Ok(())
    }
}
