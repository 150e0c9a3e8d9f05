//! `lazystore run`: serves the disk and runs a VM with it.

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
use crate::server::{
    ClientLimits, Disks, NbdAddress, ServeError, ServeEvent, ServeOptions, SocketAccess, serve,
};
pub use private_dir::PrivateDir;
use snapshot::{Snapshot, SnapshotArgs};
use supervise::{GRACE, ServerStart};
use vmm::{Attached, DiskPaths, Transport, attach, qemu::Version};

/// Exit code if `run` itself fails, like env(1) and timeout(1), to distinguish it from the VM's exit codes.
pub const EXIT_OWN_FAILURE: u8 = 125;
/// Exit codes of shells for a command that cannot be executed, and for one that does not exist.
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
    /// Print the command that would be started, quoted for a shell, and exit
    #[arg(long, help_heading = "The VM")]
    print: bool,
}

/// A VM and its disk.
#[derive(Debug, Clone, Args)]
pub struct VmArgs {
    #[command(flatten)]
    closure: ClosureArgs,
    #[command(flatten)]
    device: DeviceArgs,
    /// Attach the disk to QEMU over NBD: slower, but the VM needs no shared memory
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
    /// The same VM with another closure: a store path or the output of closureInfo.
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
Arguments for the disk and for shared memory are added to QEMU, cloud-hypervisor and crosvm, which are recognised by \
their names. For other programs, write {socket} where the vhost-user-blk socket goes, {nbd} for the NBD socket, or \
{image} for the disk as a file. --print shows the resulting command.

Signals are forwarded to the VM. The exit code is that of the VM, or 128 + N if it was killed by signal N; 125 if \
lazystore itself failed; 126 or 127 if the command cannot be started or does not exist. All files, mounts and \
processes are removed at the end, even if a process is killed.

In the guest: mount -t erofs -o ro LABEL=nix-store /nix/store. \"unknown filesystem type\" means that the guest's \
kernel lacks erofs (CONFIG_EROFS_FS, module erofs). If there is no disk, it lacks virtio_blk (or virtio_pci, \
virtio_mmio).";

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

/// Runs the VM and returns its exit code.
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
    let (events, writer) = io::pipe().map_err(run_error("create a pipe"))?;
    let server = process::spawn(Signal::SIGTERM, || {
        signals.hold_back();
        let served = run_server(args, dir.path(), &attached, writer, start);
        exit_code(served)
    })?;
    let vm = Vm {
        disk: DiskPaths::in_dir(dir.path()),
        attached,
        signals,
        server,
        dir,
    };
    vm.run(events, args)
}

/// Runs a VM and writes a report to `report`. Prints errors; returns the exit code.
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

/// Prints why a role failed, and returns its exit code.
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
    let disk = DiskPaths::in_dir(dir);
    Ok(attach(&args.vm.command, &disk, transport, version)?)
}

/// Runs the server in its process.
fn run_server(
    args: &RunArgs,
    dir: &Path,
    attached: &Attached,
    mut events: PipeWriter,
    start: Instant,
) -> Result<(), CliError> {
    // Both processes remove the directory, because either may be killed.
    let dir = PrivateDir::adopt(dir);
    // In its own session the server does not receive the terminal's signals, which are for the VM.
    setsid().map_err(run_error("leave the terminal"))?;
    let Loaded {
        closure,
        image,
        fetcher,
        ..
    } = args.vm.closure.load(usize::MAX, false)?;
    if let (true, Some(disk)) = (args.snapshot.is_wanted(), image.fingerprint()) {
        let written = fs::write(dir.fingerprint(), disk.to_string());
        written.map_err(run_error("write the disk's fingerprint"))?;
    }
    let records = args.recording.records(&closure)?;
    let mut options = serve_options(args, dir.path(), attached, &records);
    options.report = args.report.options(&closure, start);
    options.fetched = fetcher.as_ref().map(|fetcher| fetcher.meter().clone());
    let mut was_used = false;
    let disks = Disks::new(Some(image), []).map_err(ServeError::from)?;
    let served = serve(disks, &options, Vec::new(), |event| match event {
        // A write fails only if the parent has exited, and then this process ends soon, too.
        ServeEvent::Ready(_) => _ = events.write_all(&[supervise::READY]),
        ServeEvent::Vms(1..) if !was_used => {
            was_used = true;
            _ = events.write_all(&[supervise::CONNECTED]);
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
    let disk = DiskPaths::in_dir(dir);
    let device = args.vm.device.options();
    let fuse = attached.uses_image.then(|| FuseOptions {
        dir: disk.mount.clone(),
        image_name: DiskPaths::IMAGE_NAME.to_owned(),
        allow_other: false,
        threads: device.threads,
    });
    let sockets = attached.uses_socket.then(|| disk.socket.clone());
    let nbd = attached.uses_nbd.then(|| disk.nbd.clone());
    ServeOptions {
        sockets: sockets.into_iter().collect(),
        nbd: nbd.into_iter().map(NbdAddress::Unix).collect(),
        nbd_tls: None,
        access: SocketAccess::default(),
        fuse,
        once: false,
        sandbox: args.vm.device.sandbox(),
        device,
        limits: ClientLimits::default(),
        record: records.record.clone(),
        private_dir: Some(dir.to_owned()),
        report: None,
        status: None,
        metrics: None,
        plan_dir: args.vm.device.plan_dir.clone(),
        prefetch: records.prefetch.clone(),
        fetched: None,
    }
}

/// The state of the first process, which supervises VM and server.
struct Vm {
    attached: Attached,
    disk: DiskPaths,
    signals: Signals,
    server: Child,
    /// Last field, so that it is dropped last.
    dir: PrivateDir,
}

impl Vm {
    fn run(mut self, mut events: PipeReader, args: &RunArgs) -> Result<u8, CliError> {
        match supervise::await_ready(&self.signals, &mut self.server, &mut events)
            .map_err(run_error("wait for the server"))?
        {
            ServerStart::Ready => {}
            ServerStart::Failed => {
                self.clean_up();
                return Ok(EXIT_OWN_FAILURE);
            }
            ServerStart::Interrupted(end) => {
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
        // Wait until all output of the VM has been copied.
        let _ = watch.map(JoinHandle::join);
        self.server.stop(GRACE);
        self.clean_up();
        let end = end.map_err(run_error("wait for the VM"))?;
        self.explain(end, &mut events);
        Ok(end.shell_code())
    }

    /// The snapshot to restore or to make, if requested.
    fn snapshot(&self, args: &RunArgs) -> Option<Snapshot> {
        let disk = fs::read_to_string(self.dir.fingerprint()).unwrap_or_default();
        let control = self.dir.control();
        args.snapshot.find(&disk, &args.vm.command, &control)
    }

    /// Starts the VM as a child that gets SIGTERM if this process dies, and the thread that makes a snapshot, if
    /// requested.
    fn start_vm(
        &self,
        snapshot: Option<Snapshot>,
    ) -> Result<(Child, Option<JoinHandle<()>>), CliError> {
        for socket in self.attached.sockets(&self.disk) {
            switched_user::admit(&self.attached.command, self.dir.path(), socket)
                .map_err(run_error("give the VM's user access to the socket"))?;
        }
        let is_made = snapshot.as_ref().is_some_and(|one| !one.is_saved());
        let pipe = is_made.then(io::pipe).transpose();
        let (reader, writer) = pipe.map_err(run_error("create a pipe"))?.unzip();
        let vm = process::spawn(Signal::SIGTERM, || self.exec(snapshot.as_ref(), writer))?;
        let watch = snapshot.zip(reader).map(|(one, output)| one.watch(output));
        let watch = watch.transpose().map_err(run_error("start a thread"))?;
        Ok((vm, watch))
    }

    /// Executes the VMM; returns only if that fails.
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

    /// Detaches the mount that a killed server left.
    fn clean_up(&self) {
        if self.attached.uses_image
            && let Err(error) = clear_mount(&self.disk.mount)
        {
            tracing::error!("{error}");
        }
    }

    /// Warns if the VM never connected to the socket: often it runs as another user.
    fn explain(&mut self, end: End, events: &mut PipeReader) {
        let mut received = Vec::new();
        // Read only if the server has ended, because otherwise read_to_end() would block.
        let is_read = self.server.end().is_some() && events.read_to_end(&mut received).is_ok();
        if is_read
            && let Some(socket) = self.attached.sockets(&self.disk).next()
            && !matches!(end, End::Exited(EXIT_NOT_STARTED | EXIT_NOT_FOUND))
            && !received.contains(&supervise::CONNECTED)
        {
            tracing::warn!(
                "the VM ended without having connected to {}; only processes of the same user can connect",
                socket.display()
            );
        }
    }
}

/// For `map_err`: adds what was attempted.
fn run_error<E: Into<io::Error>>(action: &'static str) -> impl FnOnce(E) -> CliError {
    move |source| CliError::Run {
        action,
        source: source.into(),
    }
}
