//! `lazystore serve`.

use std::io::Write;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::{ArgGroup, Args};

use super::closure_args::ClosureArgs;
use super::device_args::DeviceArgs;
use super::errors::CliError;
use super::export_args::{self, ExportArg, LoadedDisks};
use super::help;
use super::limit_args::LimitArgs;
use super::log;
use super::places::{self, NamedPath};
use super::qemu_text::{qemu_drive, qemu_nbd, qemu_options, qemu_pmem};
use super::record_args::{RecordArgs, Records};
use super::report_args::ReportFileArgs;
use super::socket_args::SocketArgs;
use super::systemd::Systemd;
use super::watch_args::WatchArgs;
use crate::device::fuse::FuseOptions;
use crate::server::{
    ClientKind, Disks, InheritedSocket, NbdAddress, NbdTls, ServeError, ServeEvent, ServeOptions,
    SocketName, serve,
};

/// Arguments of `lazystore serve`. A closure is required, the main one or one of --export.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES, after_long_help = help::long(EXAMPLES, HELP))]
#[command(mut_group("SourceArgs", |main| main.required(false)))]
#[command(group = ArgGroup::new("disks").args(DISKS).required(true).multiple(true))]
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

/// What names a closure: the arguments of the group `SourceArgs`, and --export.
const DISKS: [&str; 6] = [
    "roots",
    "all",
    "closure_info",
    "store_paths",
    "tree",
    "exports",
];

const EXAMPLES: &str = "\
Examples:
  lazystore serve ./result --vhost-user /run/vm/store.sock
  lazystore serve ./result --vhost-user a.sock --vhost-user b.sock \\
      --socket-group kvm
  lazystore serve --closure-info ./closure-info --fuse /run/vm/store
  lazystore serve ./result --nbd unix:/run/vm/store.nbd
  lazystore serve ./result --nbd 0.0.0.0:10809 --nbd-tls /etc/pki/lazystore
  lazystore serve --nbd unix:/run/vm/store.nbd --export web=./web --export db=./db
  systemd-socket-activate -l /run/vm/store.sock lazystore serve ./result";

const HELP: &str = "\
When ready, it prints one line per socket or file to stdout, and the options for QEMU to stderr. Sockets passed by \
systemd (LISTEN_FDS) are served without an option.";

/// At least one transport is required, unless systemd passes a socket.
#[derive(Debug, Args)]
#[command(next_help_heading = "Where to serve")]
#[command(group = ArgGroup::new("sockets").args(["vhost_user", "nbd"]).multiple(true))]
#[group(required = !InheritedSocket::exist(), multiple = true)]
struct TransportArgs {
    /// Serve a vhost-user-blk device at SOCKET; may be given several times
    // Management tools pass --socket-path (QEMU's docs/interop/vhost-user.rst).
    #[arg(
        long,
        value_name = "SOCKET",
        alias = "socket-path",
        requires = "SourceArgs"
    )]
    vhost_user: Vec<PathBuf>,
    /// Serve a vhost-user-blk device at the inherited listening socket with descriptor NUMBER
    #[arg(long, value_name = "NUMBER", requires = "SourceArgs", value_parser = clap::value_parser!(RawFd).range(3..))]
    fd: Option<RawFd>,
    /// Serve the disk over NBD at a Unix socket, unix:PATH, or a TCP port, HOST:PORT; may be given several times. For VMMs
    /// without shared memory. Without --nbd-tls, HOST must be a loopback address: localhost, 127.0.0.1 or [::1]. PORT 0
    /// selects a free port, which is printed to stdout
    #[arg(long, value_name = "PLACE")]
    nbd: Vec<NbdAddress>,
    /// Serve a further closure over NBD, as the export NAME; may be given several times. CLOSURE is a store path, a link to
    /// one, or the output of closureInfo. The closure without a name is the export nix-store, and the default
    #[arg(long = "export", value_name = "NAME=CLOSURE", requires = "nbd", conflicts_with_all = ["tree", "from"])]
    exports: Vec<ExportArg>,
    /// Require TLS at the TCP ports of --nbd, with server-cert.pem and server-key.pem in DIR
    #[arg(long, value_name = "DIR", requires = "nbd")]
    nbd_tls: Option<PathBuf>,
    /// With --nbd-tls: require client certificates, signed by a CA in DIR/ca-cert.pem and not revoked in DIR/ca-crl.pem
    #[arg(long, requires = "nbd_tls")]
    nbd_verify_peer: bool,
    /// Serve the disk as the file nix-store.img in a FUSE file system mounted at DIR
    #[arg(long, value_name = "DIR", requires = "SourceArgs")]
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
            all.push(InheritedSocket::take_descriptor(number)?);
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
    let loaded = args.load()?;
    let main = loaded.main.as_ref();
    let records = main.map(|main| args.recording.records(&main.closure));
    let records = records.transpose()?.unwrap_or_default();
    let mut options = args.options(&records)?;
    options.report = main.and_then(|main| args.report.options(&main.closure, start));
    let fetcher = main.and_then(|main| main.fetcher.as_ref());
    options.fetched = fetcher.map(|fetcher| fetcher.meter().clone());
    let systemd = Systemd::of(&loaded.closures());
    // The process that fetches must live as long as the disk is read.
    let (disks, _fetcher) = loaded.into_disks()?;
    let served = serve(disks.clone(), &options, inherited, |event| {
        if let ServeEvent::Ready(sockets) = event {
            announce(sockets, &disks, &options, start);
            if args.closure.is_dense() {
                announce_memory(&disks, &options);
            }
            log_ready(&disks);
        }
        systemd.tell(event);
    });
    records.remove_empty();
    served?;
    Ok(ExitCode::SUCCESS)
}

impl ServeArgs {
    fn load(&self) -> Result<LoadedDisks, CliError> {
        let exports = &self.transports.exports;
        export_args::check_names(&self.closure, exports)?;
        LoadedDisks::load(&self.closure, exports, log::is_read_live())
    }

    fn check_places(&self) -> Result<(), CliError> {
        let sockets = self.transports.vhost_user.iter();
        let sockets = sockets.map(|path| NamedPath::new("--vhost-user", path));
        let nbd = self.transports.nbd.iter().filter_map(NbdAddress::path);
        let sockets = sockets.chain(nbd.map(|path| NamedPath::new("--nbd", path)));
        let report = self.report.written();
        let report = report.map(|path| NamedPath::new("--report", path));
        let record = self.recording.written();
        let record = record.map(|(option, path)| NamedPath::new(option, path));
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
fn announce(
    sockets: &[(ClientKind, SocketName)],
    disks: &Disks,
    options: &ServeOptions,
    start: Instant,
) {
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
        nbd.map(|name| qemu_nbd(name, options.nbd_tls.is_some(), needed_name(disks))),
        file.as_deref().map(qemu_drive),
    ] {
        log::hint(&hint.unwrap_or_default());
    }
}

/// Announces the options for a dense disk as memory of a VM, if it is served as a file.
fn announce_memory(disks: &Disks, options: &ServeOptions) {
    let file = options.fuse.as_ref().map(FuseOptions::image_path);
    if let Some((file, disk)) = file.zip(disks.exports().default_export()) {
        log::hint(&qemu_pmem(&file, disk.image.len_bytes()));
    }
}

/// The name that a client has to ask for: of the first disk, if there is none that needs no name.
fn needed_name(disks: &Disks) -> Option<&str> {
    let exports = disks.exports();
    let first = exports.all().first().map(|export| export.name.as_str());
    first.filter(|_| exports.default_export().is_none())
}

fn log_ready(disks: &Disks) {
    let has_several = !disks.exports_if_several().is_empty();
    for export in disks.exports().all() {
        let disk = export.image.fingerprint().map(ToString::to_string);
        let export = has_several.then(|| export.name.as_str());
        tracing::info!(export, disk, "ready");
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
