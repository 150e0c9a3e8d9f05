//! `lazystore serve`.

use std::io::Write;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use sd_notify::NotifyState;

use super::closure_args::ClosureArgs;
use super::errors::CliError;
use crate::transport::{
    DeviceOptions, FuseOptions, ServeOptions, ServeOutcome, qemu_drive, qemu_options, serve,
};

/// Arguments of `lazystore serve`.
#[derive(Debug, Args)]
pub struct ServeArgs {
    #[command(flatten)]
    closure: ClosureArgs,
    #[command(flatten)]
    transports: TransportArgs,
    #[command(flatten)]
    file: FuseArgs,
    /// Serial that the guest sees, 20 bytes at most
    #[arg(long, default_value = "nixstore")]
    serial: String,
    /// End when the first VM has gone. With --fuse alone: when the file was opened and the last one who had it open has closed
    /// it, be it a VM or `cmp`
    #[arg(long)]
    once: bool,
    /// Threads that serve one VM's queues, or the file [default: one per core, 4 at most]
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
    /// Look for further requests for this many microseconds before sleeping, while that pays; 0 to sleep at once
    #[arg(long, value_name = "MICROSECONDS", default_value_t = 50, value_parser = clap::value_parser!(u64).range(..=1000))]
    poll_us: u64,
    /// Do not confine the processes that serve: to find out whether the confinement is what fails, or to debug them
    #[arg(long)]
    no_sandbox: bool,
}

/// At least one transport.
#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
struct TransportArgs {
    /// Serve a vhost-user-blk device at SOCKET
    #[arg(long, value_name = "SOCKET")]
    vhost_user: Option<PathBuf>,
    /// Serve the disk as a file: mount the directory DIR with nix-store.img in it
    #[arg(long, value_name = "DIR")]
    fuse: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct FuseArgs {
    /// Name of the file in --fuse DIR
    #[arg(long, value_name = "NAME", default_value = "nix-store.img", requires = "fuse", value_parser = parse_image_name)]
    image_name: String,
    /// Let users other than you read the file, such as a VMM's; who is not root needs user_allow_other in /etc/fuse.conf
    #[arg(long, requires = "fuse")]
    allow_other: bool,
}

/// Serves until told to stop. Also returns in every worker process, which then has nothing left to do.
pub fn run(args: &ServeArgs, start: Instant) -> Result<ExitCode, CliError> {
    let image = Arc::new(args.closure.image()?);
    let options = args.options();
    let outcome = serve(image, &options, || announce(&options, start))?;
    Ok(match outcome {
        ServeOutcome::Parent => ExitCode::SUCCESS,
        ServeOutcome::Worker { exit_code } => ExitCode::from(exit_code),
    })
}

impl ServeArgs {
    fn options(&self) -> ServeOptions {
        let threads = self.threads.unwrap_or_else(DeviceOptions::default_threads);
        let fuse = self.transports.fuse.as_ref().map(|dir| FuseOptions {
            dir: dir.clone(),
            image_name: self.file.image_name.clone(),
            allow_other: self.file.allow_other,
            threads,
        });
        ServeOptions {
            socket: self.transports.vhost_user.clone(),
            fuse,
            once: self.once,
            sandbox: !self.no_sandbox,
            device: DeviceOptions {
                serial: self.serial.clone(),
                threads,
                poll: Duration::from_micros(self.poll_us),
            },
        }
    }
}

/// Says that all is there: to whoever reads stdout, to systemd, and to a person how to attach.
fn announce(options: &ServeOptions, start: Instant) {
    let millis = start.elapsed().as_secs_f64() * 1e3;
    let file = options.fuse.as_ref().map(FuseOptions::image_path);
    let mut stdout = std::io::stdout().lock();
    for path in options.socket.iter().chain(&file) {
        // Whoever started this may have closed stdout; the disk is served all the same.
        let _ = writeln!(stdout, "ready {} in {millis:.1} ms", path.display());
    }
    let _ = stdout.flush();
    if let Err(error) = sd_notify::notify(&[NotifyState::Ready]) {
        tracing::warn!("systemd was not told that the disk is served: {error}");
    }
    for hint in [
        options.socket.as_deref().map(qemu_options),
        file.as_deref().map(qemu_drive),
    ] {
        eprint!("{}", hint.unwrap_or_default());
    }
}

fn parse_image_name(name: &str) -> Result<String, String> {
    /// Longest name on Linux (`NAME_MAX`).
    const LEN_MAX: usize = 255;
    if matches!(name, "" | "." | "..") || name.contains(['/', '\0']) || name.len() > LEN_MAX {
        return Err("it must be the name of a file, without a directory".to_owned());
    }
    Ok(name.to_owned())
}
