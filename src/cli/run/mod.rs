//! `lazystore run`: a VM with the disk, by one command.

mod private_dir;
mod quote;
mod supervise;
mod vmm;

use std::ffi::{OsStr, OsString};
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;

use clap::Args;
use nix::sys::signal::Signal;
use nix::unistd::setsid;

use super::closure_args::ClosureArgs;
use super::device_args::DeviceArgs;
use super::errors::CliError;
use super::log;
use super::record_args::RecordArgs;
use crate::device::fuse::{FuseOptions, clear_mount};
use crate::process::{self, Child, End, Signals};
use crate::server::{Limits, ServeEvent, ServeOptions, SocketAccess, serve};
use private_dir::PrivateDir;
use supervise::{GRACE, Start};
pub use vmm::VmmError;
use vmm::{Attached, Disk, attach, qemu::Version};

/// Exit code of shells for what cannot be started.
const EXIT_NOT_STARTED: u8 = 127;

/// Arguments of `lazystore run`.
#[derive(Debug, Args)]
#[command(before_long_help = EXAMPLES, after_long_help = HELP)]
pub struct RunArgs {
    #[command(flatten)]
    closure: ClosureArgs,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    recording: RecordArgs,
    /// Show the command that would be started, quoted for a shell, and do nothing
    #[arg(long)]
    print: bool,
    /// The VMM and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

const EXAMPLES: &str = "\
Examples:
  lazystore run --closure-info ./closure-info -- qemu-system-x86_64 -M q35 -m 1G -kernel ./vmlinuz -initrd ./initrd
  lazystore run --closure-info ./closure-info -- cloud-hypervisor --memory size=1G --kernel ./vmlinux
  lazystore run --closure-info ./closure-info -- ./my-vmm --blk {socket}
  lazystore run --closure-info ./closure-info -- ./other-vmm --drive {image},readonly";

const HELP: &str = "\
QEMU, cloud-hypervisor and crosvm, known by their names, get the disk and memory that is shared; to any other program
say where the disk goes: {socket} is replaced by its vhost-user-blk socket, {image} by its file. --print shows what
becomes of the command. Signals are passed on to the VM; its exit code is returned, 128 + N if signal N ended it.
Nothing is left behind when it ends, however it ends.

In the guest: mount -t erofs -o ro LABEL=nix-store /nix/store. \"unknown filesystem type\" there means that its kernel
lacks erofs (CONFIG_EROFS_FS, module erofs), and no disk at all that it lacks virtio_blk (or virtio_pci, virtio_mmio).";

/// Runs the VM.
pub fn run(args: &RunArgs) -> Result<ExitCode, CliError> {
    if args.print {
        let attached = attached(args, &PrivateDir::example())?;
        let mut stdout = io::stdout().lock();
        stdout.write_all(&quote::for_shell(&attached.command))?;
        stdout.write_all(b"\n")?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut signals = Signals::block()?;
    let dir = PrivateDir::create().map_err(run_error("create a directory for the socket"))?;
    let attached = attached(args, dir.path())?;
    let (words, sender) = io::pipe().map_err(run_error("create a pipe"))?;
    let server = process::spawn(Signal::SIGTERM, || {
        signals.hold_back();
        let served = become_server(args, dir.path(), &attached, sender);
        exit_code(served)
    })?;
    let vm = Vm {
        disk: Disk::in_dir(dir.path()),
        attached,
        signals,
        server,
        _dir: dir,
    };
    vm.run(words)
}

/// Says why a role failed; its exit code.
fn exit_code(done: Result<(), CliError>) -> u8 {
    match done {
        Ok(()) => 0,
        Err(error) => {
            log::fatal(&error);
            1
        }
    }
}

fn attached(args: &RunArgs, dir: &Path) -> Result<Attached, CliError> {
    let version = |program: &OsStr| {
        let output = Command::new(program).arg("--version").output().ok()?;
        Version::parse(&String::from_utf8_lossy(&output.stdout))
    };
    Ok(attach(&args.command, &Disk::in_dir(dir), version)?)
}

/// The server's whole life.
fn become_server(
    args: &RunArgs,
    dir: &Path,
    attached: &Attached,
    mut words: PipeWriter,
) -> Result<(), CliError> {
    // This process removes it too, because the other one may be killed.
    let dir = PrivateDir::adopt(dir);
    // A terminal's signals are for the VM.
    setsid().map_err(run_error("leave the terminal"))?;
    let image = Arc::new(args.closure.image()?);
    let options = serve_options(args, dir.path(), attached)?;
    let mut was_used = false;
    serve(image, &options, Vec::new(), |event| match event {
        // The other end may be gone, and then so is this process in a moment.
        ServeEvent::Ready => _ = words.write_all(&[supervise::READY]),
        ServeEvent::Vms(1..) if !was_used => {
            was_used = true;
            _ = words.write_all(&[supervise::CONNECTED]);
        }
        ServeEvent::Vms(_) | ServeEvent::Stopping => {}
    })?;
    Ok(())
}

fn serve_options(
    args: &RunArgs,
    dir: &Path,
    attached: &Attached,
) -> Result<ServeOptions, CliError> {
    let disk = Disk::in_dir(dir);
    let device = args.device.options();
    let fuse = attached.uses_image.then(|| FuseOptions {
        dir: disk.mount.clone(),
        image_name: Disk::IMAGE_NAME.to_owned(),
        allow_other: false,
        threads: device.threads,
    });
    let sockets = attached.uses_socket.then(|| disk.socket.clone());
    Ok(ServeOptions {
        sockets: sockets.into_iter().collect(),
        nbd: Vec::new(),
        access: SocketAccess::default(),
        fuse,
        once: false,
        sandbox: args.device.sandbox(),
        device,
        limits: Limits::default(),
        record: args.recording.record.clone(),
        private_dir: Some(dir.to_owned()),
        prefetch: args.recording.recording()?,
    })
}

/// What the first process looks after.
struct Vm {
    attached: Attached,
    disk: Disk,
    signals: Signals,
    server: Child,
    /// Dropped last.
    _dir: PrivateDir,
}

impl Vm {
    fn run(mut self, mut words: PipeReader) -> Result<ExitCode, CliError> {
        match supervise::await_ready(&self.signals, &mut self.server, &mut words)
            .map_err(run_error("wait for the server"))?
        {
            Start::Ready => {}
            Start::Failed(end) | Start::Interrupted(end) => {
                self.clean_up();
                return Ok(end.shell_code().into());
            }
        }
        let vm = process::spawn(Signal::SIGTERM, || self.exec());
        let mut vm = vm.inspect_err(|_| {
            self.server.stop(GRACE);
            self.clean_up();
        })?;
        let end = supervise::await_end(&self.signals, &mut self.server, &mut vm);
        self.server.stop(GRACE);
        self.clean_up();
        let end = end.map_err(run_error("wait for the VM"))?;
        self.explain(end, &mut words);
        Ok(end.shell_code().into())
    }

    /// Becomes the VM; returns only when that is impossible.
    fn exec(&self) -> u8 {
        let restored = self.signals.restore();
        let error = match (restored, self.attached.command.split_first()) {
            (Err(errno), _) => run_error("restore the signals")(errno),
            (_, None) => VmmError::NoCommand.into(),
            (_, Some((program, args))) => CliError::Start {
                program: PathBuf::from(program),
                source: Command::new(program).args(args).exec(),
            },
        };
        log::fatal(&error);
        EXIT_NOT_STARTED
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
            && self.attached.uses_socket
            && end != End::Exited(EXIT_NOT_STARTED)
            && !said.contains(&supervise::CONNECTED)
        {
            tracing::warn!(
                "the VM ended without having connected to {}, which only a process of the same user can",
                self.disk.socket.display()
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
