//! `lazystore status`.

mod find;
mod table;

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use serde_json::json;

use super::errors::{CliError, StatusError};
use super::help;
use crate::server::{ServerStatus, prometheus_text};

/// Timeout for a server's answer.
const ANSWER_TIME: Duration = Duration::from_secs(10);

/// Maximum length of an answer: more than that of a server with 100,000 VMs.
const ANSWER_BYTES_MAX: u64 = 1 << 30;

/// Arguments of `lazystore status`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES, after_long_help = help::long(EXAMPLES, HELP))]
pub struct StatusArgs {
    /// A socket or mount of the server [default: all servers of this user; for root: of all users]
    #[arg(value_name = "SOCKET")]
    socket: Option<PathBuf>,
    /// Show it repeatedly, until interrupted
    #[arg(short, long)]
    watch: bool,
    /// Interval for rates and percentiles, and between updates of --watch
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = parse_interval)]
    interval: Duration,
    /// Output format
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

const EXAMPLES: &str = "\
Examples:
  lazystore status
  lazystore status /run/vm/store.sock --watch
  lazystore status /run/vm/store.sock --format prometheus";

const HELP: &str = "\
Rates and percentiles cover the last second (--interval); all other numbers count from the time the VM connected. \
WAITING counts requests that wait for the host's disk or for planning. Latency is measured from when the server takes \
a request until it is answered. JSON has one object per server and interval. Prometheus' format has all counters and \
is printed at once.

A server also logs its status on SIGUSR1, and `serve --metrics-file` writes it to a file.";

/// Output format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A table.
    Text,
    /// One JSON object per line.
    Json,
    /// Prometheus' text format.
    Prometheus,
}

/// Shows the status of servers.
pub fn run(args: &StatusArgs) -> Result<ExitCode, CliError> {
    let points = match &args.socket {
        Some(socket) => vec![find::point_of(socket)],
        None => find::all()?,
    };
    if points.is_empty() {
        return Err(StatusError::NoServer.into());
    }
    if args.format == Format::Prometheus && !args.watch {
        let mut stdout = io::stdout().lock();
        for point in &points {
            stdout.write_all(prometheus_text(&ask(point)?).as_bytes())?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let mut before = samples(&points)?;
    loop {
        thread::sleep(args.interval);
        let now = samples(&points)?;
        let text: String = before
            .iter()
            .zip(&now)
            .map(|(before, now)| args.show(before, now))
            .collect();
        let mut stdout = io::stdout().lock();
        if args.watch && args.format == Format::Text && io::IsTerminal::is_terminal(&stdout) {
            // Move the cursor to the top left and clear the screen.
            stdout.write_all(b"\x1b[H\x1b[J")?;
        }
        stdout.write_all(text.as_bytes())?;
        stdout.flush()?;
        if !args.watch {
            return Ok(ExitCode::SUCCESS);
        }
        before = now;
    }
}

/// A status with the time when it was received.
struct Sample<'p> {
    point: &'p Path,
    at: Instant,
    status: ServerStatus,
}

fn samples(points: &[PathBuf]) -> Result<Vec<Sample<'_>>, StatusError> {
    points.iter().map(|point| Sample::take(point)).collect()
}

impl<'p> Sample<'p> {
    fn take(point: &'p Path) -> Result<Self, StatusError> {
        let status = ask(point)?;
        Ok(Self {
            point,
            at: Instant::now(),
            status,
        })
    }
}

impl StatusArgs {
    fn show(&self, before: &Sample<'_>, now: &Sample<'_>) -> String {
        let seconds = (now.at - before.at).as_secs_f64().max(1e-3);
        match self.format {
            Format::Text => table::text(now.point, &before.status, &now.status, seconds),
            Format::Json => format!(
                "{}\n",
                json(now.point, &before.status, &now.status, seconds)
            ),
            Format::Prometheus => prometheus_text(&now.status),
        }
    }
}

fn json(
    point: &Path,
    before: &ServerStatus,
    now: &ServerStatus,
    seconds: f64,
) -> serde_json::Value {
    let clients = now.clients.iter().map(|client| {
        let rates = table::Rates::of(before, client, seconds);
        json!({
            "vm": client.vm, "kind": client.kind, "place": client.place, "export": client.export,
            "since_sec": client.since_sec, "age_ms": client.age_ms, "requests": client.requests, "bytes": client.bytes, "errors": client.errors,
            "waiting": client.in_flight, "plans": client.plans, "requests_per_s": rates.requests,
            "bytes_per_s": rates.bytes, "p50_us": rates.p50_us, "p99_us": rates.p99_us,
        })
    });
    json!({
        "status_socket": point.display().to_string(), "pid": now.pid, "version": now.version,
        "disk": now.disk, "exports": now.exports, "since_sec": now.since_sec, "age_ms": now.age_ms, "paths": now.paths,
        "published_plans": now.published_plans, "kept_plans": now.kept_plans,
        "vms": clients.collect::<Vec<_>>(),
        "left": {"vms": now.left, "requests": now.left_requests, "bytes": now.left_bytes, "errors": now.left_errors},
        "fetched": now.fetched,
    })
}

/// Reads the status of the server at `point`.
fn ask(point: &Path) -> Result<ServerStatus, StatusError> {
    let fault = |source| StatusError::Ask {
        socket: point.to_owned(),
        source,
    };
    let stream = UnixStream::connect(point).map_err(fault)?;
    stream.set_read_timeout(Some(ANSWER_TIME)).map_err(fault)?;
    let mut answer = Vec::new();
    let read = stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer);
    read.map_err(fault)?;
    serde_json::from_slice(&answer).map_err(|source| StatusError::Answer {
        socket: point.to_owned(),
        source,
    })
}

fn parse_interval(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().ok();
    let seconds = seconds.filter(|seconds| (0.05..=3600.0).contains(seconds));
    let seconds = seconds.ok_or("expected seconds, from 0.05 to 3600")?;
    Ok(Duration::from_secs_f64(seconds))
}
