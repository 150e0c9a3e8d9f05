//! `lazystore run`: a VM with the disk, by one command.

mod private_dir;
mod quote;
mod snapshot;
mod supervise;
mod switched_user;
mod vmm;

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use clap::Args;
use nix::sys::signal::Signal;
use nix::unistd::setsid;

use super::closure_args::{ClosureArgs, Loaded};
use super::device_args::DeviceArgs;
use super::errors::{CliError, VmmError};
use super::help;
use super::log;
use super::record_args::{RecordArgs, Records};
use super::report_args::ReportFileArgs;
use crate::device::fuse::{FuseOptions, clear_mount};
use crate::process::{self, Child, End, Signals};
use crate::server::{Limits, NbdPlace, ServeEvent, ServeOptions, SocketAccess, serve};
pub use private_dir::PrivateDir;
use snapshot::{Snapshot, SnapshotArgs};
use supervise::{GRACE, Start};
use vmm::{Attached, Disk, Transport, attach, qemu::Version};

/// Exit code when `run` itself fails, as of env(1) and timeout(1): the VM's own codes mean something else.
pub const EXIT_OWN_FAILURE: u8 = 125;
/// Exit codes of shells for what cannot be started, and for what is not there.
const EXIT_NOT_STARTED: u8 = 126;
const EXIT_NOT_FOUND: u8 = 127;

/// Arguments of `lazystore run`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES, after_long_help = help::long(EXAMPLES, HELP))]
pub struct RunArgs {
    #[command(flatten)]
    vm: VmArgs,
    #[command(flatten)]
    recording: RecordArgs,
    #[command(flatten)]
    report: ReportFileArgs,
    #[command(flatten)]
    snapshot: SnapshotArgs,
    /// Show the command that would be started, quoted for a shell, and do nothing
    #[arg(long, help_heading = "The VM")]
    print: bool,
}

/// A VM with a disk.
#[derive(Debug, Clone, Args)]
pub struct VmArgs {
    #[command(flatten)]
    closure: ClosureArgs,
    #[command(flatten)]
    device: DeviceArgs,
    /// Give QEMU the disk over NBD: slower, and the VM's memory need not be shared
    #[arg(long, help_heading = "The VM")]
    nbd: bool,
    /// The VMM and its arguments
    #[arg(
        last = true,
        required = true,
        value_name = "COMMAND",
        help_heading = "The VM"
    )]
    pub command: Vec<OsString>,
}

impl VmArgs {
    /// The same VM with another closure, a store path or closureInfo's directory.
    pub fn with_closure(&self, closure: &Path) -> Self {
        Self {
            closure: self.closure.with_closure(closure),
            ..self.clone()
        }
    }
}

const EXAMPLES: &str = "\
Examples:
  lazystore run ./result -- qemu-system-x86_64 -M q35 -m 1G \\
      -kernel ./vmlinuz -initrd ./initrd
  lazystore run ./result -- cloud-hypervisor --memory size=1G --kernel ./vmlinux
  lazystore run --closure-info ./closure-info -- ./my-vmm --blk {socket}
  lazystore run --tree ./rootfs -- ./other-vmm --drive {image},readonly";

const HELP: &str = "\
QEMU, cloud-hypervisor and crosvm, known by their names, get the disk and memory that is shared; to any other program \
say where the disk goes: {socket} is replaced by its vhost-user-blk socket, {nbd} by its NBD socket, {image} by its file. \
--print shows what \
becomes of the command.

Signals are passed on to the VM. Its exit code is returned, 128 + N if signal N ended it; 125 means that lazystore \
itself failed, 126 and 127 that the command cannot be started or does not exist. Nothing is left when it ends, however \
it ends.

In the guest: mount -t erofs -o ro LABEL=nix-store /nix/store. \"unknown filesystem type\" there means that its kernel \
lacks erofs (CONFIG_EROFS_FS, module erofs), and no disk at all that it lacks virtio_blk (or virtio_pci, virtio_mmio).";

/// Runs the VM.
pub fn run(args: &RunArgs, start: Instant) -> Result<ExitCode, CliError> {
    if args.print {
        let attached = attached(args, &PrivateDir::example())?;
        let mut stdout = io::stdout().lock();
        stdout.write_all(&quote::for_shell(&attached.command))?;
        stdout.write_all(b"\n")?;
        return Ok(ExitCode::SUCCESS);
    }
    Ok(run_vm(args, start)?.into())
}

/// Runs the VM; its exit code.
fn run_vm(args: &RunArgs, start: Instant) -> Result<u8, CliError> {
    let mut signals = Signals::block(&[Signal::SIGUSR1, Signal::SIGUSR2])?;
    let dir = PrivateDir::create().map_err(|source| CliError::PrivateDir {
        dir: PrivateDir::base(),
        source,
    })?;
    let attached = attached(args, dir.path())?;
    if args.snapshot.is_wanted() && !vmm::is_qemu(&args.vm.command) {
        return Err(VmmError::SnapshotOfOther.into());
    }
    let (words, sender) = io::pipe().map_err(run_error("create a pipe"))?;
    let server = process::spawn(Signal::SIGTERM, || {
        signals.hold_back();
        let served = become_server(args, dir.path(), &attached, sender, start);
        exit_code(served)
    })?;
    let vm = Vm {
        disk: Disk::in_dir(dir.path()),
        attached,
        signals,
        server,
        dir,
    };
    vm.run(words, args)
}

/// Runs a VM and writes a report to `report`; the exit code, also that of a failure, which is said.
pub fn run_reported(vm: &VmArgs, start: Instant, report: &Path) -> u8 {
    let args = RunArgs {
        vm: vm.clone(),
        recording: RecordArgs::default(),
        report: ReportFileArgs::to(report),
        snapshot: SnapshotArgs::default(),
        print: false,
    };
    run_vm(&args, start).unwrap_or_else(|error| exit_code(Err(error)))
}

/// Says why a role failed; its exit code.
fn exit_code(done: Result<(), CliError>) -> u8 {
    match done {
        Ok(()) => 0,
        Err(error) => {
            log::fatal(&error);
            EXIT_OWN_FAILURE
        }
    }
}

fn attached(args: &RunArgs, dir: &Path) -> Result<Attached, CliError> {
    let version = |program: &OsStr| {
        let output = Command::new(program).arg("--version").output().ok()?;
        Version::parse(&String::from_utf8_lossy(&output.stdout))
    };
    let transport = match args.vm.nbd {
        true => Transport::Nbd,
        false => Transport::VhostUser,
    };
    let disk = Disk::in_dir(dir);
    Ok(attach(&args.vm.command, &disk, transport, version)?)
}

/// The server's whole life.
fn become_server(
    args: &RunArgs,
    dir: &Path,
    attached: &Attached,
    mut words: PipeWriter,
    start: Instant,
) -> Result<(), CliError> {
    // This process removes it too, because the other one may be killed.
    let dir = PrivateDir::adopt(dir);
    // A terminal's signals are for the VM.
    setsid().map_err(run_error("leave the terminal"))?;
    let Loaded {
        closure,
        image,
        fetcher,
        ..
    } = args.vm.closure.load(usize::MAX, false)?;
    if let (true, Some(disk)) = (args.snapshot.is_wanted(), image.fingerprint()) {
        let told = fs::write(dir.fingerprint(), disk.to_string());
        told.map_err(run_error("tell the disk's fingerprint"))?;
    }
    let records = args.recording.records(&closure)?;
    let mut options = serve_options(args, dir.path(), attached, &records);
    options.report = args.report.options(&closure, start);
    options.fetched = fetcher.as_ref().map(|fetcher| fetcher.meter().clone());
    let mut was_used = false;
    let served = serve(Arc::new(image), &options, Vec::new(), |event| match event {
        // The other end may be gone, and then so is this process in a moment.
        ServeEvent::Ready(_) => _ = words.write_all(&[supervise::READY]),
        ServeEvent::Vms(1..) if !was_used => {
            was_used = true;
            _ = words.write_all(&[supervise::CONNECTED]);
        }
        ServeEvent::Vms(_) | ServeEvent::Stopping => {}
    });
    records.remove_empty();
    Ok(served?)
}

fn serve_options(
    args: &RunArgs,
    dir: &Path,
    attached: &Attached,
    records: &Records,
) -> ServeOptions {
    let disk = Disk::in_dir(dir);
    let device = args.vm.device.options();
    let fuse = attached.uses_image.then(|| FuseOptions {
        dir: disk.mount.clone(),
        image_name: Disk::IMAGE_NAME.to_owned(),
        allow_other: false,
        threads: device.threads,
    });
    let sockets = attached.uses_socket.then(|| disk.socket.clone());
    let nbd = attached.uses_nbd.then(|| disk.nbd.clone());
    ServeOptions {
        sockets: sockets.into_iter().collect(),
        nbd: nbd.into_iter().map(NbdPlace::Unix).collect(),
        nbd_tls: None,
        access: SocketAccess::default(),
        fuse,
        once: false,
        sandbox: args.vm.device.sandbox(),
        device,
        limits: Limits::default(),
        record: records.record.clone(),
        private_dir: Some(dir.to_owned()),
        report: None,
        status: None,
        metrics: None,
        prefetch: records.prefetch.clone(),
        fetched: None,
    }
}

/// What the first process looks after.
struct Vm {
    attached: Attached,
    disk: Disk,
    signals: Signals,
    server: Child,
    /// Dropped last.
    dir: PrivateDir,
}

impl Vm {
    fn run(mut self, mut words: PipeReader, args: &RunArgs) -> Result<u8, CliError> {
        match supervise::await_ready(&self.signals, &mut self.server, &mut words)
            .map_err(run_error("wait for the server"))?
        {
            Start::Ready => {}
            Start::Failed => {
                self.clean_up();
                return Ok(EXIT_OWN_FAILURE);
            }
            Start::Interrupted(end) => {
                self.clean_up();
                return Ok(end.shell_code());
            }
        }
        let snapshot = self.snapshot(args);
        let started = self.start_vm(snapshot);
        let (mut vm, watch) = started.inspect_err(|_| {
            self.server.stop(GRACE);
            self.clean_up();
        })?;
        let end = supervise::await_end(&self.signals, &mut self.server, &mut vm);
        // All that it has said is written.
        let _ = watch.map(JoinHandle::join);
        self.server.stop(GRACE);
        self.clean_up();
        let end = end.map_err(run_error("wait for the VM"))?;
        self.explain(end, &mut words);
        Ok(end.shell_code())
    }

    /// A snapshot to restore or to make, if one is asked for.
    fn snapshot(&self, args: &RunArgs) -> Option<Snapshot> {
        let disk = fs::read_to_string(self.dir.fingerprint()).unwrap_or_default();
        let control = self.dir.control();
        args.snapshot.find(&disk, &args.vm.command, &control)
    }

    /// Starts the VM as a child that ends with this process, and a thread if it is to be saved.
    fn start_vm(
        &self,
        snapshot: Option<Snapshot>,
    ) -> Result<(Child, Option<JoinHandle<()>>), CliError> {
        for socket in self.attached.sockets(&self.disk) {
            switched_user::admit(&self.attached.command, self.dir.path(), socket)
                .map_err(run_error("let the VM's user connect again"))?;
        }
        let is_made = snapshot.as_ref().is_some_and(|one| !one.is_saved());
        let pipe = is_made.then(io::pipe).transpose();
        let (reader, writer) = pipe.map_err(run_error("create a pipe"))?.unzip();
        let vm = process::spawn(Signal::SIGTERM, || self.exec(snapshot.as_ref(), writer))?;
        let watch = snapshot.zip(reader).map(|(one, output)| one.watch(output));
        let watch = watch.transpose().map_err(run_error("start a thread"))?;
        Ok((vm, watch))
    }

    /// Becomes the VM; returns only when that is impossible.
    fn exec(&self, snapshot: Option<&Snapshot>, stdout: Option<PipeWriter>) -> u8 {
        if let Err(errno) = self.signals.restore() {
            log::fatal(&run_error("restore the signals")(errno));
            return EXIT_OWN_FAILURE;
        }
        let Some((program, args)) = self.attached.command.split_first() else {
            log::fatal(&CliError::from(VmmError::NoCommand));
            return EXIT_OWN_FAILURE;
        };
        let mut command = Command::new(program);
        command.args(args);
        command.args(snapshot.iter().flat_map(|one| one.arguments()));
        if let Some(Err(error)) = snapshot.map(Snapshot::pass_on) {
            log::fatal(&run_error("pass the snapshot on")(error));
            return EXIT_OWN_FAILURE;
        }
        stdout.into_iter().for_each(|pipe| _ = command.stdout(pipe));
        let source = command.exec();
        let code = match source.kind() {
            io::ErrorKind::NotFound => EXIT_NOT_FOUND,
            _ => EXIT_NOT_STARTED,
        };
        let program = PathBuf::from(program);
        log::fatal(&CliError::Start { program, source });
        code
    }

    /// Detaches what a server that was killed left mounted.
    fn clean_up(&self) {
        if self.attached.uses_image
            && let Err(error) = clear_mount(&self.disk.mount)
        {
            tracing::error!("{error}");
        }
    }

    /// A VM that never came to the socket has often been started as another user.
    fn explain(&mut self, end: End, words: &mut PipeReader) {
        let mut said = Vec::new();
        // It would wait for a server that could not be ended.
        let heard = self.server.end().is_some() && words.read_to_end(&mut said).is_ok();
        if heard
            && let Some(socket) = self.attached.sockets(&self.disk).next()
            && !matches!(end, End::Exited(EXIT_NOT_STARTED | EXIT_NOT_FOUND))
            && !said.contains(&supervise::CONNECTED)
        {
            tracing::warn!(
                "the VM ended without having connected to {}, which only a process of the same user can",
                socket.display()
            );
        }
    }
}

/// For `map_err`: names what was tried.
fn run_error<E: Into<io::Error>>(action: &'static str) -> impl FnOnce(E) -> CliError {
    move |source| CliError::Run {
        action,
        source: source.into(),
    }
}
