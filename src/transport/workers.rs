//! One process per connection.
//!
//! A frontend can cut the file behind the memory it shares, and then a process that touches a ring dies of SIGBUS. So the
//! process that owns the socket touches no guest's memory: it has one thread, and forks a worker for every connection.
//! What a guest breaks is its own worker. A worker costs little, because the disk is a pure function and the parent's
//! plans are shared copy-on-write; and its death loses nothing (see [`ring`](super::ring)).
//!
//! The worker, not the parent, accepts the connection: the parent stops watching the socket until the worker says that it
//! has accepted, or has died.
//!
//! A FUSE mount has a worker, too, for as long as it lasts: the parent neither waits for disks nor has threads.

mod confine;
mod fuse;

use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, getpid, getppid};
use rustix::process::set_parent_process_death_signal;

use super::blk::{DeviceOptions, Stats};
use super::error::TransportError;
use super::fuse::FuseOptions;
use super::socket::ServedSocket;
use super::vhost::{Served, serve_connection};
use crate::image::Image;
use fuse::{FuseWorker, Started};

/// Exit code of a worker whose connection closed without a word.
const EXIT_NOBODY: u8 = 3;

/// Pause after a worker that could not be started or accept: the connection is still waiting, and would cause
/// the next attempt at once.
const RETRY: Duration = Duration::from_millis(100);

/// How long workers may take to end after SIGTERM.
const GRACE: Duration = Duration::from_secs(2);

/// How to serve a disk to any number of VMs: at a socket, as a file, or both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServeOptions {
    /// Where to listen; at most 107 bytes.
    pub socket: Option<PathBuf>,
    /// Where to mount.
    pub fuse: Option<FuseOptions>,
    /// End when the first VM at the socket has gone; without a socket, when the file was open and is not any more.
    pub once: bool,
    /// Confine every process before it meets a guest.
    pub sandbox: bool,
    /// What each VM gets.
    pub device: DeviceOptions,
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
/// any more because someone unmounted the file.
///
/// `on_ready` is called once the socket listens and the file is there. The process must have one thread. **This function
/// returns in the workers too**: see [`ServeOutcome`].
///
/// # Errors
/// When the socket cannot be made, the file cannot be mounted, the process has several threads, or, with `once`, the
/// worker ended badly.
pub fn serve(
    image: Arc<Image>,
    options: &ServeOptions,
    on_ready: impl FnOnce(),
) -> Result<ServeOutcome, TransportError> {
    require_one_thread()?;
    // Before the socket exists: a signal must not leave it behind.
    let signals = Signals::block()?;
    let socket = options.socket.as_deref().map(ServedSocket::bind);
    let mut server = Server {
        image,
        options,
        socket: socket.transpose()?,
        fuse: None,
        signals,
        workers: Vec::new(),
        pending: None,
    };
    match server.start_fuse()? {
        Started::Nothing | Started::Mounted => server.confine_parent()?,
        Started::Worker(report) => return Ok(server.become_fuse_worker(report)),
        Started::ToEnd => return Ok(server.end()),
    }
    on_ready();
    server.run()
}

/// The signals that the parent waits for, and what the mask was before.
struct Signals {
    fd: SignalFd,
    before: SigSet,
}

impl Signals {
    fn block() -> Result<Self, TransportError> {
        let wanted: SigSet = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGCHLD]
            .into_iter()
            .collect();
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let before = wanted
            .thread_swap_mask(SigmaskHow::SIG_BLOCK)
            .map_err(TransportError::host("block signals"))?;
        let fd = SignalFd::with_flags(&wanted, flags)
            .map_err(TransportError::host("wait for signals"))?;
        Ok(Self { fd, before })
    }

    /// Reads all that have come. Returns whether one of them asks the process to end.
    fn asks_to_end(&self) -> bool {
        let mut end = false;
        while let Ok(Some(signal)) = self.fd.read_signal() {
            let number = i32::try_from(signal.ssi_signo);
            end |= number.is_ok_and(|n| n == Signal::SIGTERM as i32 || n == Signal::SIGINT as i32);
        }
        end
    }

    /// Gives a worker the mask from before, but for SIGINT: a terminal sends that to the workers too, and it is the
    /// parent's to decide.
    fn restore_for_worker(&self) {
        let mut mask = self.before;
        mask.add(Signal::SIGINT);
        // With a wrong mask the worker still serves, and the parent's SIGKILL still ends it.
        let _ = mask.thread_set_mask();
    }
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
    connection: bool,
}

struct Server<'o> {
    image: Arc<Image>,
    options: &'o ServeOptions,
    socket: Option<ServedSocket>,
    fuse: Option<FuseWorker>,
    signals: Signals,
    /// Those of connections.
    workers: Vec<Pid>,
    pending: Option<Pending>,
}

impl Server<'_> {
    fn run(mut self) -> Result<ServeOutcome, TransportError> {
        while self.socket.is_some() || self.fuse.is_some() {
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
            } else if ready.connection
                && let Some(report) = self.start_worker()?
            {
                return Ok(self.become_worker(report));
            }
        }
        Ok(self.end())
    }

    /// Ends everything.
    fn end(&mut self) -> ServeOutcome {
        self.unmount();
        self.stop_workers();
        ServeOutcome::Parent
    }

    /// Waits for anything to do; the socket counts only when no worker is about to accept from it.
    fn wait(&self) -> Result<Ready, TransportError> {
        let signal = PollFd::new(self.signals.fd.as_fd(), PollFlags::POLLIN);
        let other = match (&self.pending, &self.socket) {
            (Some(pending), _) => PollFd::new(pending.report.as_fd(), PollFlags::POLLIN),
            (None, Some(socket)) => PollFd::new(socket.as_fd(), self.interest_in_connections()),
            (None, None) => PollFd::new(self.signals.fd.as_fd(), PollFlags::empty()),
        };
        let [signal, other] = poll_two([signal, other])?;
        Ok(Ready {
            signal,
            report: other && self.pending.is_some(),
            connection: other && self.pending.is_none() && self.socket.is_some(),
        })
    }

    /// With `once` the first VM is the only one: another must not be cut off when the first one leaves.
    fn interest_in_connections(&self) -> PollFlags {
        if self.options.once && !self.workers.is_empty() {
            PollFlags::empty()
        } else {
            PollFlags::POLLIN
        }
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
        let mut ends = Vec::new();
        self.workers.retain(|pid| match WorkerEnd::of(*pid) {
            None => true,
            Some(end) => {
                end.log(*pid);
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
    fn become_worker(self, mut report: PipeWriter) -> ServeOutcome {
        let Self {
            image,
            options,
            socket,
            signals,
            ..
        } = self;
        signals.restore_for_worker();
        drop(signals);
        let Some(socket) = socket else {
            return ServeOutcome::Worker {
                exit_code: EXIT_NOBODY,
            };
        };
        if let Some(failed) = confine::confine_worker(&image, options) {
            return failed;
        }
        let begin = Instant::now();
        let accepted = move || {
            // The parent may be ending, and will end this process too.
            let _ = report.write_all(&[1]);
        };
        let exit_code =
            match serve_connection(image, &options.device, socket.into_listener(), accepted) {
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

/// How a worker ended.
#[derive(Debug, Clone, PartialEq, Eq)]
enum WorkerEnd {
    /// The frontend left.
    Served,
    /// Nobody had spoken.
    Nobody,
    /// With an error, which it has logged.
    Failed(i32),
    /// By a signal.
    Killed(Signal),
}

impl WorkerEnd {
    /// None while the worker lives.
    fn of(pid: Pid) -> Option<Self> {
        match waitpid(pid, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(_, 0)) => Some(Self::Served),
            Ok(WaitStatus::Exited(_, code)) if code == i32::from(EXIT_NOBODY) => Some(Self::Nobody),
            Ok(WaitStatus::Exited(_, code)) => Some(Self::Failed(code)),
            Ok(WaitStatus::Signaled(_, signal, _)) => Some(Self::Killed(signal)),
            Ok(_) | Err(Errno::EINTR) => None,
            // No such child: nothing to wait for.
            Err(_) => Some(Self::Failed(-1)),
        }
    }

    fn log(&self, pid: Pid) {
        if let Self::Killed(signal) = self {
            tracing::error!("worker {pid} was killed by {signal}; its VM may reconnect");
        }
    }

    fn into_outcome(self) -> Result<ServeOutcome, TransportError> {
        let how = match self {
            Self::Served | Self::Nobody => return Ok(ServeOutcome::Parent),
            Self::Failed(code) => format!("exit code {code}"),
            Self::Killed(signal) => signal.to_string(),
        };
        Err(TransportError::Worker { how })
    }
}

enum Forked {
    Parent(Pid),
    Worker,
}

/// Forks; the child dies with its parent.
#[allow(unsafe_code)]
fn fork_worker(parent: Pid) -> Result<Forked, Errno> {
    // SAFETY: after a fork only the calling thread exists in the child, so a lock that another thread held would stay
    // locked for ever. The caller has made sure that there is no other thread.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => Ok(Forked::Parent(child)),
        ForkResult::Child => {
            let tied = set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
            if tied.is_err() || getppid() != parent {
                // The parent died before the child was tied to it.
                let _ = kill(getpid(), Signal::SIGKILL);
            }
            Ok(Forked::Worker)
        }
    }
}

/// A joined thread stays visible for an instant, so this looks several times.
fn require_one_thread() -> Result<(), TransportError> {
    let mut threads = 0;
    for _ in 0..50 {
        let tasks =
            std::fs::read_dir("/proc/self/task").map_err(TransportError::host("count threads"))?;
        threads = tasks.count();
        if threads == 1 {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(2));
    }
    Err(TransportError::Threads { threads })
}

/// Waits until one of two descriptors is readable or at its end; says which.
fn poll_two(mut fds: [PollFd<'_>; 2]) -> Result<[bool; 2], TransportError> {
    match poll(&mut fds, PollTimeout::NONE) {
        Ok(_) | Err(Errno::EINTR) => {}
        Err(errno) => return Err(TransportError::host("wait for something to do")(errno)),
    }
    Ok(fds.map(|fd| fd.revents().is_some_and(|events| !events.is_empty())))
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
