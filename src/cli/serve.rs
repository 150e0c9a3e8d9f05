//! `lazystore serve`.

use std::io::Write;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use clap::{ArgGroup, Args};

use super::closure_args::{ClosureArgs, Loaded};
use super::device_args::DeviceArgs;
use super::errors::CliError;
use super::help;
use super::limit_args::LimitArgs;
use super::log;
use super::places::{self, Place};
use super::qemu_text::{qemu_drive, qemu_nbd, qemu_options};
use super::record_args::{RecordArgs, Records};
use super::report_args::ReportFileArgs;
use super::socket_args::SocketArgs;
use super::systemd::Systemd;
use super::watch_args::WatchArgs;
use crate::device::fuse::FuseOptions;
use crate::server::{
    ClientKind, InheritedSocket, NbdPlace, NbdTls, ServeError, ServeEvent, ServeOptions,
    SocketName, serve,
};

/// Arguments of `lazystore serve`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES, after_long_help = help::long(EXAMPLES, HELP))]
pub struct ServeArgs {
    #[command(flatten)]
    closure: ClosureArgs,
    #[command(flatten)]
    transports: TransportArgs,
    #[command(flatten)]
    access: SocketArgs,
    #[command(flatten)]
    file: FuseArgs,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    limits: LimitArgs,
    #[command(flatten)]
    recording: RecordArgs,
    #[command(flatten)]
    report: ReportFileArgs,
    #[command(flatten)]
    watch: WatchArgs,
    /// Exit when the first VM disconnects. With --fuse alone: when the last process that has opened the file closes it
    #[arg(long, help_heading = "Where to serve")]
    once: bool,
}

const EXAMPLES: &str = "\
Examples:
  lazystore serve ./result --vhost-user /run/vm/store.sock
  lazystore serve ./result --vhost-user a.sock --vhost-user b.sock \\
      --socket-group kvm
  lazystore serve --closure-info ./closure-info --fuse /run/vm/store
  lazystore serve ./result --nbd unix:/run/vm/store.nbd
  lazystore serve ./result --nbd 0.0.0.0:10809 --nbd-tls /etc/pki/lazystore
  systemd-socket-activate -l /run/vm/store.sock lazystore serve ./result";

const HELP: &str = "\
When ready, it prints one line per socket or file to stdout, and the options for QEMU to stderr. Sockets passed by \
systemd (LISTEN_FDS) are served without an option.";

/// At least one transport is required, unless systemd passes a socket.
#[derive(Debug, Args)]
#[command(next_help_heading = "Where to serve")]
#[command(group = ArgGroup::new("sockets").args(["vhost_user", "nbd"]).multiple(true))]
#[group(required = !InheritedSocket::are_there(), multiple = true)]
struct TransportArgs {
    /// Serve a vhost-user-blk device at SOCKET; may be given several times
    // Management tools pass --socket-path (QEMU's docs/interop/vhost-user.rst).
    #[arg(long, value_name = "SOCKET", alias = "socket-path")]
    vhost_user: Vec<PathBuf>,
    /// Serve a vhost-user-blk device at the inherited listening socket with descriptor NUMBER
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(RawFd).range(3..))]
    fd: Option<RawFd>,
    /// Serve the disk over NBD at a Unix socket, unix:PATH, or a TCP port, HOST:PORT; may be given several times. For VMMs
    /// without shared memory. Without --nbd-tls, HOST must be a loopback address: localhost, 127.0.0.1 or [::1]. PORT 0
    /// selects a free port, which is printed to stdout
    #[arg(long, value_name = "PLACE")]
    nbd: Vec<NbdPlace>,
    /// Require TLS at the TCP ports of --nbd, with server-cert.pem and server-key.pem in DIR
    #[arg(long, value_name = "DIR", requires = "nbd")]
    nbd_tls: Option<PathBuf>,
    /// With --nbd-tls: require client certificates, signed by a CA in DIR/ca-cert.pem and not revoked in DIR/ca-crl.pem
    #[arg(long, requires = "nbd_tls")]
    nbd_verify_peer: bool,
    /// Serve the disk as the file nix-store.img in a FUSE file system mounted at DIR
    #[arg(long, value_name = "DIR")]
    fuse: Option<PathBuf>,
}

impl TransportArgs {
    /// The options for TLS.
    ///
    /// # Errors
    /// There is no TCP port to encrypt.
    fn tls(&self) -> Result<Option<NbdTls>, CliError> {
        let Some(dir) = &self.nbd_tls else {
            return Ok(None);
        };
        if self.nbd.iter().all(|place| place.path().is_some()) {
            return Err(CliError::NothingToEncrypt);
        }
        Ok(Some(NbdTls {
            dir: dir.clone(),
            verify_peer: self.nbd_verify_peer,
        }))
    }

    /// Listening sockets created by other processes.
    fn inherited(&self) -> Result<Vec<InheritedSocket>, ServeError> {
        let mut all = InheritedSocket::take_all()?;
        if let Some(number) = self.fd {
            all.push(InheritedSocket::take_number(number)?);
        }
        Ok(all)
    }
}

#[derive(Debug, Args)]
#[command(next_help_heading = "File options")]
struct FuseArgs {
    /// Name of the file in --fuse DIR
    #[arg(long, value_name = "NAME", default_value = "nix-store.img", requires = "fuse", value_parser = parse_image_name)]
    image_name: String,
    /// Let other users, such as that of a VMM, read the file; requires root or user_allow_other in /etc/fuse.conf
    #[arg(long, requires = "fuse")]
    allow_other: bool,
}

/// Serves until a signal requests termination, or with `--once` until the first VM disconnects.
pub fn run(args: &ServeArgs, start: Instant) -> Result<ExitCode, CliError> {
    let inherited = args.transports.inherited()?;
    args.check_places()?;
    let Loaded {
        closure,
        image,
        fetcher,
        ..
    } = args.closure.load(usize::MAX, log::is_read_live())?;
    let records = args.recording.records(&closure)?;
    let mut options = args.options(&records)?;
    options.report = args.report.options(&closure, start);
    options.fetched = fetcher.as_ref().map(|fetcher| fetcher.meter().clone());
    let systemd = Systemd::of(&closure);
    let disk = image.fingerprint().map(ToString::to_string);
    let served = serve(Arc::new(image), &options, inherited, |event| {
        if let ServeEvent::Ready(sockets) = event {
            announce(sockets, &options, start);
            tracing::info!(disk, "ready");
        }
        systemd.tell(event);
    });
    records.remove_empty();
    served?;
    Ok(ExitCode::SUCCESS)
}

impl ServeArgs {
    fn check_places(&self) -> Result<(), CliError> {
        let sockets = self.transports.vhost_user.iter();
        let sockets = sockets.map(|path| Place::new("--vhost-user", path));
        let nbd = self.transports.nbd.iter().filter_map(NbdPlace::path);
        let sockets = sockets.chain(nbd.map(|path| Place::new("--nbd", path)));
        let report = self.report.written();
        let report = report.map(|path| Place::new("--report", path));
        let record = self.recording.written();
        let record = record.map(|(option, path)| Place::new(option, path));
        let files: Vec<_> = sockets
            .chain(record)
            .chain(self.watch.places())
            .chain(report)
            .collect();
        places::check(&files, self.transports.fuse.as_deref())
    }

    fn options(&self, records: &Records) -> Result<ServeOptions, CliError> {
        let device = self.device.options();
        let fuse = self.transports.fuse.as_ref().map(|dir| FuseOptions {
            dir: dir.clone(),
            image_name: self.file.image_name.clone(),
            allow_other: self.file.allow_other,
            threads: device.threads,
        });
        Ok(ServeOptions {
            sockets: self.transports.vhost_user.clone(),
            nbd: self.transports.nbd.clone(),
            nbd_tls: self.transports.tls()?,
            access: self.access.access()?,
            fuse,
            once: self.once,
            sandbox: self.device.sandbox(),
            device,
            limits: self.limits.limits(),
            record: records.record.clone(),
            private_dir: None,
            report: None,
            status: self.watch.status.clone(),
            metrics: self.watch.metrics_file.clone(),
            plan_dir: self.device.plan_dir.clone(),
            prefetch: records.prefetch.clone(),
            fetched: None,
        })
    }
}

/// Announces readiness: one line per endpoint on stdout for programs, and QEMU options on stderr for people.
fn announce(sockets: &[(ClientKind, SocketName)], options: &ServeOptions, start: Instant) {
    let millis = start.elapsed().as_secs_f64() * 1e3;
    let file = options.fuse.as_ref().map(FuseOptions::image_path);
    let places = sockets.iter().map(|(_, name)| name.to_string());
    let places = places.chain(file.iter().map(|path| path.display().to_string()));
    let mut stdout = std::io::stdout().lock();
    for place in places {
        // An error is ignored: the disk is served even if stdout is closed.
        let _ = writeln!(stdout, "ready {place} in {millis:.1} ms");
    }
    let _ = stdout.flush();
    let first = |kind| sockets.iter().find(|(other, _)| *other == kind);
    let socket = first(ClientKind::VhostUser).and_then(|(_, name)| name.path());
    let nbd = first(ClientKind::Nbd).map(|(_, name)| name);
    for hint in [
        socket.map(qemu_options),
        nbd.map(|name| qemu_nbd(name, options.nbd_tls.is_some())),
        file.as_deref().map(qemu_drive),
    ] {
        log::hint(&hint.unwrap_or_default());
    }
}

fn parse_image_name(name: &str) -> Result<String, String> {
    /// Longest name on Linux (`NAME_MAX`).
    const LEN_MAX: usize = 255;
    if matches!(name, "" | "." | "..") || name.contains(['/', '\0']) || name.len() > LEN_MAX {
        return Err("it must be a file name without a directory".to_owned());
    }
    Ok(name.to_owned())
}
