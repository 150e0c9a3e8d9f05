//! The worker that serves the FUSE mount.
//!
//! It mounts, and the parent unmounts: first detach, then end the worker, so that nobody meets a dead mount. When the
//! worker dies, whoever has the file open gets errors for good, since the kernel gave its requests to a process that is
//! no more. The parent then mounts anew, for those who open the file again: VMs at the socket must not suffer.

use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread;

use nix::poll::{PollFd, PollFlags};
use nix::unistd::{Pid, getpid};

use super::confine::confine;
use super::process::{Forked, WorkerEnd, fork_worker, require_one_thread};
use super::{RETRY, ServeOutcome, Server, poll_all};
use crate::device::TransportError;
use crate::device::fuse::{End, MountPoint, serve_mount};
use crate::sandbox::Process;

/// What the worker reports when the file is there; anything else is why it is not.
const MOUNTED: &[u8] = b"+";

/// A mount and the process that serves it. Dropping it unmounts.
pub(super) struct FuseWorker {
    pid: Pid,
    mountpoint: MountPoint,
}

/// What came of starting a worker for the mount.
pub(super) enum Started {
    /// There was nothing to start.
    Nothing,
    /// The file is there.
    Mounted,
    /// This is the worker, and it reports here.
    Worker(PipeWriter),
    /// A signal came in between.
    ToEnd,
}

impl Server<'_> {
    /// Mounts, if that is asked for.
    pub(super) fn start_fuse(&mut self) -> Result<Started, TransportError> {
        let Some(options) = &self.options.fuse else {
            return Ok(Started::Nothing);
        };
        let mountpoint = MountPoint::prepare(&options.dir)?;
        require_one_thread()?;
        let (report, sender) = io::pipe().map_err(TransportError::host("create a pipe"))?;
        match fork_worker(getpid()).map_err(TransportError::host("start a worker"))? {
            Forked::Worker => Ok(Started::Worker(sender)),
            Forked::Parent(pid) => {
                drop(sender);
                self.fuse = Some(FuseWorker { pid, mountpoint });
                if let Some(record) = self.record.as_mut().filter(|_| self.sockets.is_empty()) {
                    record.started(pid);
                }
                self.await_mount(report)
            }
        }
    }

    fn await_mount(&mut self, mut report: PipeReader) -> Result<Started, TransportError> {
        loop {
            let signal = PollFd::new(self.signals.fd.as_fd(), PollFlags::POLLIN);
            let said = PollFd::new(report.as_fd(), PollFlags::POLLIN);
            let ready = poll_all(&mut [signal, said])?;
            if ready[1] {
                break;
            }
            if ready[0] && self.signals.asks_to_end() {
                return Ok(Started::ToEnd);
            }
        }
        let mut words = Vec::new();
        report
            .read_to_end(&mut words)
            .map_err(TransportError::host("hear from a worker"))?;
        if words != MOUNTED {
            return Err(self.not_mounted(&words));
        }
        if let Some(worker) = &mut self.fuse {
            worker.mountpoint.mounted()?;
        }
        Ok(Started::Mounted)
    }

    fn not_mounted(&mut self, words: &[u8]) -> TransportError {
        if let Some(worker) = self.fuse.take() {
            self.workers.push(worker.pid);
            self.stop_workers();
        }
        let reason = match words {
            [] => "the worker process died while it mounted".to_owned(),
            words => String::from_utf8_lossy(words).into_owned(),
        };
        TransportError::NotMounted { reason }
    }

    /// Notices when the mount's worker has ended.
    pub(super) fn look_after_fuse(&mut self) -> Result<Started, TransportError> {
        let mut started = Started::Nothing;
        while let Some((pid, end)) = self
            .fuse
            .as_ref()
            .and_then(|worker| Some((worker.pid, WorkerEnd::of(worker.pid)?)))
        {
            if let Some(record) = &mut self.record {
                record.ended(pid, &end);
            }
            // Detaches what is left.
            self.fuse = None;
            if end == WorkerEnd::Served {
                tracing::info!("the file is not served any more");
                return Ok(Started::Nothing);
            }
            tracing::error!("the worker of the FUSE mount ended ({end:?}): mounting anew");
            thread::sleep(RETRY);
            started = self.start_fuse()?;
        }
        Ok(started)
    }

    /// The worker's whole life.
    pub(super) fn become_fuse_worker(self, report: PipeWriter) -> ServeOutcome {
        let Self {
            image,
            options,
            sockets,
            signals,
            record,
            ..
        } = self;
        signals.restore_for_worker();
        let alone = sockets.is_empty();
        let once = options.once && alone;
        if let Some(record) = record.filter(|_| alone) {
            record.record_if_next(&image);
        }
        drop((signals, sockets));
        let Some(fuse) = &options.fuse else {
            return ServeOutcome::Worker { exit_code: 1 };
        };
        let mut report = Some(report);
        let confined = Arc::clone(&image);
        let confine = || confine(Process::FuseWorker, &confined, options);
        let served = serve_mount(image, fuse, once, confine, || tell(report.take(), MOUNTED));
        let exit_code = match served {
            Ok(End::Closed | End::Unmounted) => 0,
            Err(error) if report.is_some() => {
                tell(report, error.to_string().as_bytes());
                1
            }
            Err(error) => {
                tracing::error!("{error}");
                1
            }
        };
        ServeOutcome::Worker { exit_code }
    }

    /// Detaches the file; what is still open fails from now on.
    pub(super) fn unmount(&mut self) {
        if let Some(FuseWorker { pid, mountpoint }) = self.fuse.take() {
            drop(mountpoint);
            self.workers.push(pid);
        }
    }
}

/// Says one thing to the parent, which may be ending.
fn tell(report: Option<PipeWriter>, words: &[u8]) {
    if let Some(mut report) = report {
        let _ = report.write_all(words);
    }
}
