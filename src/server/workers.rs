//! One process per connection.
//!
//! A frontend can cut the file behind the memory it shares, and then a process that touches a ring dies of SIGBUS. So the
//! process that owns the sockets touches no guest's memory: it has one thread, and forks a worker for every connection.
//! What a guest breaks is its own worker. A worker costs little, because the disk is a pure function and the parent's
//! plans are shared copy-on-write; and its death loses nothing (see [`ring`](super::ring)).
//!
//! The worker, not the parent, accepts the connection: the parent stops watching the sockets until the worker says that it
//! has accepted, or has died.
//!
//! A FUSE mount has a worker, too, for as long as it lasts: the parent neither waits for disks nor has threads.

mod confine;
mod fuse;
mod process;
mod recording;
mod signals;
mod sockets;

use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, getpid};

use super::activation::InheritedSocket;
use super::descriptors;
use super::socket::SocketAccess;
use crate::device::TransportError;
use crate::device::fuse::FuseOptions;
use crate::device::vhost_blk::{DeviceOptions, Stats};
use crate::device::vhost_blk::{Served, serve_connection};
use crate::image::Image;
use crate::image::recording::Recording;
use crate::sandbox::Process;
use fuse::{FuseWorker, Started};
pub(crate) use process::{Forked, fork_tied};
use process::{WorkerEnd, fork_worker, require_one_thread};
use recording::{Prefetcher, RecordFile};
use signals::Signals;
use sockets::Sockets;

/// Exit code of a worker whose connection closed without a word.
const EXIT_NOBODY: u8 = 3;

/// Pause after a worker that could not be started or accept: the connection is still waiting, and would cause
/// the next attempt at once.
const RETRY: Duration = Duration::from_millis(100);

/// How long workers may take to end after SIGTERM.
const GRACE: Duration = Duration::from_secs(2);

/// How to serve a disk to any number of VMs: at sockets, as a file, or both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServeOptions {
    /// Where to listen; each at most 107 bytes.
    pub sockets: Vec<PathBuf>,
    /// Who may connect there.
    pub access: SocketAccess,
    /// Where to mount.
    pub fuse: Option<FuseOptions>,
    /// End when the first VM at a socket has gone; without a socket, when the file was open and is not any more.
    pub once: bool,
    /// Confine every process before it meets a guest.
    pub sandbox: bool,
    /// What each VM gets.
    pub device: DeviceOptions,
    /// Where to write down what the first VM reads.
    pub record: Option<PathBuf>,
    /// A directory for this alone, which the caller removes at the end.
    pub private_dir: Option<PathBuf>,
    /// What to read in advance.
    pub prefetch: Option<Recording>,
}

/// What happens while a disk is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServeEvent {
    /// The sockets listen, and the file is there.
    Ready,
    /// So many VMs are connected now.
    Vms(usize),
    /// The end begins.
    Stopping,
}

/// In which process [`serve`] returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServeOutcome {
    /// The one that called it: serving is over.
    Parent,
    /// A forked one, which should now do nothing but exit.
    Worker {
        /// With this code.
        exit_code: u8,
    },
}

/// Serves `image` until SIGTERM or SIGINT, with `once` until the first VM has gone, or until there is nothing to serve
/// any more because someone unmounted the file. `inherited` sockets are served like those of the options.
///
/// `on_event` is told what happens, in the process that called this. The process must have one thread. **This function
/// returns in the workers too**: see [`ServeOutcome`].
///
/// # Errors
/// When a socket cannot be made, the file cannot be mounted, the process has several threads, or, with `once`, the
/// worker ended badly.
pub fn serve(
    image: Arc<Image>,
    options: &ServeOptions,
    inherited: Vec<InheritedSocket>,
    mut on_event: impl FnMut(ServeEvent),
) -> Result<ServeOutcome, TransportError> {
    require_one_thread()?;
    // Before the sockets exist: a signal must not leave them behind.
    let signals = Signals::block()?;
    let record = options.record.as_deref().map(RecordFile::open);
    let record = record.transpose()?;
    let mut server = Server {
        image,
        options,
        sockets: Sockets::bind(&options.sockets, options.access, inherited)?,
        device: options.device.clone(),
        fuse: None,
        signals,
        workers: Vec::new(),
        pending: None,
        record,
        prefetcher: None,
        on_event: &mut on_event,
    };
    if !server.sockets.is_empty() {
        server.device = descriptors::afford(&options.device, server.image.max_open_files())?;
    }
    match server.start_fuse()? {
        Started::Nothing | Started::Mounted => server.confine_parent()?,
        Started::Worker(report) => return Ok(server.become_fuse_worker(report)),
        Started::ToEnd => return Ok(server.end()),
    }
    (server.on_event)(ServeEvent::Ready);
    if server.start_prefetch()? {
        return Ok(server.become_prefetcher());
    }
    server.run()
}

/// A worker that has not said yet that it accepted.
struct Pending {
    pid: Pid,
    report: PipeReader,
}

/// What the parent found when it woke up.
struct Ready {
    signal: bool,
    report: bool,
    /// At which socket.
    connection: Option<usize>,
}

struct Server<'o> {
    image: Arc<Image>,
    options: &'o ServeOptions,
    sockets: Sockets,
    /// That of the options, or what there are descriptors for.
    device: DeviceOptions,
    fuse: Option<FuseWorker>,
    signals: Signals,
    /// Those of connections.
    workers: Vec<Pid>,
    pending: Option<Pending>,
    record: Option<RecordFile>,
    prefetcher: Option<Prefetcher>,
    on_event: &'o mut dyn FnMut(ServeEvent),
}

impl Server<'_> {
    fn run(mut self) -> Result<ServeOutcome, TransportError> {
        let mut vms = 0;
        while !self.sockets.is_empty() || self.fuse.is_some() {
            if vms != self.workers.len() {
                vms = self.workers.len();
                (self.on_event)(ServeEvent::Vms(vms));
            }
            let ready = self.wait()?;
            if ready.report {
                self.read_report();
            }
            if ready.signal {
                if self.signals.asks_to_end() {
                    break;
                }
                // First, because waiting for a mount takes the signals that tell of other ends.
                match self.look_after_fuse()? {
                    Started::Nothing | Started::Mounted => {}
                    Started::Worker(report) => return Ok(self.become_fuse_worker(report)),
                    Started::ToEnd => break,
                }
                let ended = self.reap();
                if self.options.once
                    && let Some(end) = ended.into_iter().find(|end| *end != WorkerEnd::Nobody)
                {
                    self.end();
                    return end.into_outcome();
                }
            } else if let Some(socket) = ready.connection
                && let Some(report) = self.start_worker()?
            {
                return Ok(self.become_worker(socket, report));
            }
        }
        Ok(self.end())
    }

    /// Ends everything.
    fn end(&mut self) -> ServeOutcome {
        (self.on_event)(ServeEvent::Stopping);
        self.unmount();
        self.stop_workers();
        ServeOutcome::Parent
    }

    /// Waits for anything to do; the sockets count only when no worker is about to accept from one.
    fn wait(&mut self) -> Result<Ready, TransportError> {
        let signal = PollFd::new(self.signals.fd.as_fd(), PollFlags::POLLIN);
        let mut fds = vec![signal];
        match &self.pending {
            Some(pending) => fds.push(PollFd::new(pending.report.as_fd(), PollFlags::POLLIN)),
            None if self.is_taken() => {}
            None => fds.extend(self.sockets.poll_fds()),
        }
        let ready = poll_all(&mut fds)?;
        let (signal, others) = ready.split_first().unwrap_or((&false, &[]));
        Ok(match self.pending {
            Some(_) => Ready {
                signal: *signal,
                report: others.contains(&true),
                connection: None,
            },
            None => Ready {
                signal: *signal,
                report: false,
                connection: self.sockets.choose(others),
            },
        })
    }

    /// With `once` the first VM is the only one: another must not be cut off when the first one leaves.
    fn is_taken(&self) -> bool {
        self.options.once && !self.workers.is_empty()
    }

    /// The pipe is readable: the worker has accepted, or it is gone and only the pipe's end can be read.
    fn read_report(&mut self) {
        let Some(mut pending) = self.pending.take() else {
            return;
        };
        if !matches!(pending.report.read(&mut [0]), Ok(1)) {
            tracing::warn!("worker {} could not accept the connection", pending.pid);
            thread::sleep(RETRY);
        }
    }

    /// Collects the workers that have ended, so that none stays a zombie.
    fn reap(&mut self) -> Vec<WorkerEnd> {
        self.prefetcher.take_if(|prefetcher| prefetcher.has_ended());
        let mut ends = Vec::new();
        self.workers.retain(|pid| match WorkerEnd::of(*pid) {
            None => true,
            Some(end) => {
                end.log(*pid);
                if let Some(record) = &mut self.record {
                    record.ended(*pid, &end);
                }
                ends.push(end);
                false
            }
        });
        ends
    }

    /// Forks. Returns, in the worker only, where to report that the connection was accepted.
    fn start_worker(&mut self) -> Result<Option<PipeWriter>, TransportError> {
        require_one_thread()?;
        let (report, sender) = io::pipe().map_err(TransportError::host("create a pipe"))?;
        match fork_worker(getpid()) {
            Ok(Forked::Worker) => Ok(Some(sender)),
            Ok(Forked::Parent(pid)) => {
                self.workers.push(pid);
                if let Some(record) = &mut self.record {
                    record.started(pid);
                }
                self.pending = Some(Pending { pid, report });
                Ok(None)
            }
            Err(errno) => {
                tracing::error!("cannot start a worker: {errno}");
                thread::sleep(RETRY);
                Ok(None)
            }
        }
    }

    /// The worker's whole life.
    fn become_worker(self, socket: usize, mut report: PipeWriter) -> ServeOutcome {
        let Self {
            image,
            options,
            sockets,
            device,
            signals,
            record,
            ..
        } = self;
        signals.restore_for_worker();
        drop(signals);
        if let Some(record) = record {
            record.record_if_next(&image);
        }
        // The others, which lead to other VMs, are closed.
        let Some(socket) = sockets.into_one(socket) else {
            return ServeOutcome::Worker {
                exit_code: EXIT_NOBODY,
            };
        };
        if let Some(failed) = confine::confine_worker(Process::VhostWorker, &image, options) {
            return failed;
        }
        let begin = Instant::now();
        let accepted = move || {
            // The parent may be ending, and will end this process too.
            let _ = report.write_all(&[1]);
        };
        let exit_code = match serve_connection(image, &device, socket.into_listener(), accepted) {
            Ok(Served::Frontend(stats)) => {
                log_stats(stats, begin.elapsed());
                0
            }
            Ok(Served::Nobody) => EXIT_NOBODY,
            Err(error) => {
                tracing::error!("{error}");
                1
            }
        };
        ServeOutcome::Worker { exit_code }
    }

    /// Ends all workers. They have nothing to save, so SIGTERM simply kills them; what does not die of it is stuck in
    /// the kernel or ignores it by inheritance.
    fn stop_workers(&mut self) {
        self.signal_workers(Signal::SIGTERM);
        let deadline = Instant::now() + GRACE;
        while !self.workers.is_empty() && Instant::now() < deadline {
            self.workers.retain(|pid| WorkerEnd::of(*pid).is_none());
            thread::sleep(Duration::from_millis(5));
        }
        self.signal_workers(Signal::SIGKILL);
        for pid in self.workers.drain(..) {
            let _ = waitpid(pid, None);
        }
    }

    fn signal_workers(&self, signal: Signal) {
        for pid in &self.workers {
            // Not reaped yet, so the number cannot belong to anyone else.
            let _ = kill(*pid, signal);
        }
    }
}

/// Waits until at least one descriptor is readable or at its end; says which.
fn poll_all(fds: &mut [PollFd<'_>]) -> Result<Vec<bool>, TransportError> {
    match poll(fds, PollTimeout::NONE) {
        Ok(_) | Err(Errno::EINTR) => {}
        Err(errno) => return Err(TransportError::host("wait for something to do")(errno)),
    }
    let ready = |fd: &PollFd<'_>| fd.revents().is_some_and(|events| !events.is_empty());
    Ok(fds.iter().map(ready).collect())
}

fn log_stats(stats: Stats, time: Duration) {
    let Stats {
        requests,
        bytes,
        errors,
    } = stats;
    let seconds = time.as_secs_f64();
    tracing::info!("served {requests} requests, {bytes} bytes in {seconds:.1} s, {errors} errors");
}
