//! `lazystore serve`.

use std::io::Write;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use sd_notify::NotifyState;

use super::closure_args::ClosureArgs;
use super::errors::CliError;
use crate::transport::{DeviceOptions, ServeOptions, ServeOutcome, qemu_options, serve};

/// Arguments of `lazystore serve`.
#[derive(Debug, Args)]
pub struct ServeArgs {
    #[command(flatten)]
    closure: ClosureArgs,
    /// Serve a vhost-user-blk device at SOCKET
    #[arg(long, value_name = "SOCKET")]
    vhost_user: PathBuf,
    /// Serial that the guest sees, 20 bytes at most
    #[arg(long, default_value = "nixstore")]
    serial: String,
    /// End when the first VM has gone
    #[arg(long)]
    once: bool,
    /// Threads that serve one VM's queues [default: one per core, 4 at most]
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
    /// Look for further requests for this many microseconds before sleeping, while that pays; 0 to sleep at once
    #[arg(long, value_name = "MICROSECONDS", default_value_t = 50, value_parser = clap::value_parser!(u64).range(..=1000))]
    poll_us: u64,
}

/// Serves until told to stop. Also returns in every worker process, which then has nothing left to do.
pub fn run(args: &ServeArgs, start: Instant) -> Result<ExitCode, CliError> {
    let image = Arc::new(args.closure.image()?);
    let options = ServeOptions {
        socket: args.vhost_user.clone(),
        once: args.once,
        device: DeviceOptions {
            serial: args.serial.clone(),
            threads: args.threads.unwrap_or_else(DeviceOptions::default_threads),
            poll: Duration::from_micros(args.poll_us),
        },
    };
    let outcome = serve(image, &options, || announce(&options.socket, start))?;
    Ok(match outcome {
        ServeOutcome::Parent => ExitCode::SUCCESS,
        ServeOutcome::Worker { exit_code } => ExitCode::from(exit_code),
    })
}

/// Says that the socket listens: to whoever reads stdout, to systemd, and to a person how to attach.
fn announce(socket: &Path, start: Instant) {
    let millis = start.elapsed().as_secs_f64() * 1e3;
    let mut stdout = std::io::stdout().lock();
    // Whoever started this may have closed stdout; the disk is served all the same.
    let _ = writeln!(stdout, "ready {} in {millis:.1} ms", socket.display());
    let _ = stdout.flush();
    if let Err(error) = sd_notify::notify(&[NotifyState::Ready]) {
        tracing::warn!("systemd was not told that the socket listens: {error}");
    }
    eprintln!("{}", qemu_options(socket));
}
