//! `lazystore bench`: benchmarks a vhost-user-blk server, this one or another.
//!
//! It keeps a fixed number of reads in flight in each of its queues and records a histogram of their latencies. Offsets
//! are drawn from given ranges, because a lazy disk is sparse: most of its addresses are holes that no guest reads.

mod client;
mod cpu;
mod queue;
mod ranges;
mod report;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};

use super::errors::{BenchError, CliError};
use client::{BenchTarget, Client, PreadLoop};
use cpu::Cpu;
use queue::Waiting;
use ranges::{Offsets, Range};
use report::BenchReport;

/// Order of the reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Order {
    /// Uniformly from all blocks of the ranges.
    Rand,
    /// Sequentially, starting over at the end.
    Seq,
}

/// Arguments of `lazystore bench`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  lazystore ranges --closure-info ./closure-info > hot
  lazystore bench --socket store.sock --ranges hot --qd 32
  lazystore bench --socket qsd.sock --bs 128k --qd 8 --rw seq --json")]
pub struct BenchArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// Bytes per read: a multiple of 512, with k or M
    #[arg(long, value_name = "BYTES", default_value = "4k", value_parser = ranges::parse_block)]
    bs: usize,
    /// Number of queues, each with its own thread
    #[arg(long, value_name = "N", default_value_t = 1, conflicts_with = "pread",
          value_parser = clap::value_parser!(u16).range(1..=64))]
    queues: u16,
    /// Number of reads in flight, in each queue
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=128))]
    qd: u16,
    /// Order of the reads
    #[arg(long, value_enum, default_value = "rand")]
    rw: Order,
    /// Read only from LEN bytes at START; may be given several times [default: the whole disk]
    #[arg(long = "range", value_name = "START:LEN")]
    range: Vec<Range>,
    /// Read only from the ranges in FILE, one `START LEN` per line, as printed by `lazystore ranges`; `-` is stdin
    #[arg(long, value_name = "FILE")]
    ranges: Option<PathBuf>,
    /// Seconds to measure
    #[arg(long, value_name = "SECONDS", default_value_t = 5.0, value_parser = ranges::parse_seconds)]
    time: f64,
    /// Seconds to read before that, unmeasured
    #[arg(long, value_name = "SECONDS", default_value_t = 0.5, value_parser = ranges::parse_seconds)]
    warmup: f64,
    /// Read each block of the ranges once before that, so that everything is planned, open and cached
    #[arg(long)]
    touch: bool,
    /// Wait for completions in a busy loop instead of sleeping until the server interrupts
    #[arg(long)]
    busy: bool,
    /// Delay each wake-up by N microseconds, like a guest with slow wake-ups (nested virtual machines)
    #[arg(long, value_name = "N", default_value_t = 0, conflicts_with_all = ["busy", "pread"],
          value_parser = clap::value_parser!(u32).range(..=10_000))]
    wake_delay_us: u32,
    /// Wait N microseconds before each read, like a guest with other work
    #[arg(long, value_name = "N", default_value_t = 0, conflicts_with = "pread",
          value_parser = clap::value_parser!(u32).range(..=1_000_000))]
    pause_us: u32,
    /// Do not measure, but act like a VM: read one block, then each block once; after each of these steps print its name
    /// and wait for a line on standard input
    #[arg(long, conflicts_with = "touch")]
    in_steps: bool,
    /// Also report the CPU time of the server with this process id, including its children
    #[arg(long, value_name = "PID")]
    cpu_of: Option<u32>,
    /// Seed of the random offsets: the same seed reads the same blocks
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Print one line of JSON instead of a table
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct TargetArgs {
    /// The server's vhost-user-blk socket
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// A file to read with `pread` in a loop instead, into --qd buffers in turn: an upper bound for any server
    #[arg(long, value_name = "PATH")]
    pread: Option<PathBuf>,
}

/// Measures and prints.
///
/// # Errors
/// The server cannot be reached, a read fails, or no range contains a block.
pub fn run(args: &BenchArgs) -> Result<ExitCode, CliError> {
    let mut target = args.open()?;
    let all = args.offsets(target.len_bytes()?)?;
    if args.in_steps {
        return in_steps(&mut *target, &all);
    }
    if args.touch {
        target.read_all(&mut all.each())?;
    }
    let mut offsets = all.split(args.queues);
    target.run(&mut offsets, Duration::from_secs_f64(args.warmup))?;
    let cpu = args.cpu_of.map(Cpu::of);
    let begin = Instant::now();
    let latencies = target.run(&mut offsets, Duration::from_secs_f64(args.time))?;
    let report = BenchReport {
        latencies,
        seconds: begin.elapsed().as_secs_f64(),
        block_bytes: args.bs,
        cpu_seconds: cpu.map(|before| before.seconds_since()),
    };
    if args.json {
        println!("{}", report.json());
    } else {
        print!("{}", report.table());
    }
    Ok(ExitCode::SUCCESS)
}

/// The connection stays open until the last line was read, so that the server's memory can be measured meanwhile.
fn in_steps(target: &mut dyn BenchTarget, blocks: &Offsets) -> Result<ExitCode, CliError> {
    let mut lines = std::io::stdin().lines();
    target.read_all(&mut blocks.each().take(1))?;
    println!("first");
    lines.next();
    target.read_all(&mut blocks.each())?;
    println!("all");
    lines.next();
    Ok(ExitCode::SUCCESS)
}

impl BenchArgs {
    fn open(&self) -> Result<Box<dyn BenchTarget>, BenchError> {
        Ok(match (&self.target.socket, &self.target.pread) {
            (Some(socket), _) => {
                let mut client =
                    Client::start(socket, self.bs, self.queues, self.qd, self.waiting())?;
                client.pause = Duration::from_micros(self.pause_us.into());
                Box::new(client)
            }
            (None, file) => {
                let file = file.clone().unwrap_or_default();
                Box::new(PreadLoop::open(&file, self.bs, self.qd.into())?)
            }
        })
    }

    fn waiting(&self) -> Waiting {
        match self.wake_delay_us {
            _ if self.busy => Waiting::Busy,
            0 => Waiting::Asleep,
            micros => Waiting::AsleepAndSlow(Duration::from_micros(micros.into())),
        }
    }

    fn offsets(&self, disk_len_bytes: u64) -> Result<Offsets, BenchError> {
        let mut all = self.range.clone();
        if let Some(file) = &self.ranges {
            all.extend(ranges::read(file)?);
        }
        if all.is_empty() {
            all.push(Range {
                start: 0,
                len_bytes: disk_len_bytes,
            });
        }
        let random = (self.rw == Order::Rand).then_some(self.seed);
        Offsets::new(&all, self.bs, random).ok_or(BenchError::NoRange)
    }
}
