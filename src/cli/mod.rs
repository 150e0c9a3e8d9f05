//! The command line: parses and checks arguments, runs subcommands, prints results.

#[cfg(feature = "bench")]
mod bench;
mod boot;
mod cache;
mod cache_args;
mod closure_args;
mod device_args;
mod doctor;
mod errors;
mod export_args;
mod fingerprint;
mod help;
mod hints;
mod inspect;
mod limit_args;
mod limits;
mod log;
mod manual;
mod nix_conf;
mod numbers;
mod pins;
mod places;
mod qemu_text;
mod ranges;
mod record_args;
mod report;
mod report_args;
mod run;
mod serve;
mod socket_args;
mod status;
mod systemd;
mod text;
mod verify;
mod watch_args;

use std::process::ExitCode;
use std::time::Instant;

use clap::{CommandFactory, Parser, Subcommand};

#[cfg(not(feature = "bench"))]
use errors::CliError;

/// All arguments of lazystore.
#[derive(Debug, Parser)]
#[command(
    name = "lazystore",
    version,
    long_version = concat!(env!("CARGO_PKG_VERSION"), " (", env!("LAZYSTORE_BUILD"), ")"),
    about = "A VM's /nix/store as a read-only EROFS disk that is never built",
    after_help = EXAMPLES,
    after_long_help = help::long(EXAMPLES, HELP)
)]
pub struct Cli {
    /// Log more; give it twice for even more. RUST_LOG overrides it
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    verbose: u8,
    /// Format of log lines on stderr
    #[arg(long, value_name = "FORMAT", default_value = "text", global = true)]
    log_format: log::LogFormat,
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  lazystore run ./result -- qemu-system-x86_64 -M q35 -m 1G -kernel ...
  lazystore serve ./result --vhost-user /run/vm/store.sock
  lazystore serve --tree ./rootfs --fuse /run/vm/store
  lazystore serve --closure-info ./closure-info --vhost-user store.sock --once
  lazystore verify ./result --sample 20
  lazystore doctor";

const HELP: &str = "\
In the guest: mount -t erofs -o ro LABEL=nix-store /nix/store

An error is one sentence on stderr. Exit code: 0; 1 for an error; 2 for wrong usage; `run` returns the VM's, \
and 125 for an error of its own.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a VM with a closure as its disk.
    Run(run::RunArgs),
    /// Boot a VM repeatedly and measure how long it takes.
    Boot(boot::BootArgs),
    /// Serve a closure as a disk, through sockets or as a file.
    Serve(serve::ServeArgs),
    /// Show rates, latencies and errors of running servers and their VMs.
    Status(status::StatusArgs),
    /// Show the report of a boot, compare two reports, or check one against limits.
    Report(report::ReportArgs),
    /// Print the ranges with file data of a closure's disk, for `lazystore bench --ranges`.
    #[command(hide = true)]
    Ranges(ranges::RangesArgs),
    /// Benchmark a vhost-user-blk server, this one or another.
    #[cfg(feature = "bench")]
    Bench(bench::BenchArgs),
    /// Benchmark a vhost-user-blk server: only in builds with the feature `bench`.
    #[cfg(not(feature = "bench"))]
    #[command(hide = true, disable_help_flag = true)]
    Bench(Absent),
    /// Print the fingerprint of a closure's disk: the same on every host that has the same closure.
    Fingerprint(fingerprint::FingerprintArgs),
    /// Show the disk's layout: a map of all paths, or what a byte, block or inode belongs to.
    Inspect(inspect::InspectArgs),
    /// Compare the disk with the host's store byte by byte, through an independent EROFS reader.
    Verify(verify::VerifyArgs),
    /// Manage the directory with NARs fetched from binary caches.
    Cache(cache::CacheCommandArgs),
    /// Check whether this host can run VMs with such a disk.
    Doctor(doctor::DoctorArgs),
    /// Print a completion script for a shell.
    Completions(manual::CompletionsArgs),
    /// Print a manual page, or write all of them.
    Man(manual::ManArgs),
}

/// Accepts any arguments, for a subcommand that this build does not have.
#[cfg(not(feature = "bench"))]
#[derive(Debug, clap::Args)]
struct Absent {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    _args: Vec<std::ffi::OsString>,
}

/// Runs the program, which started at `start`. Wrong usage exits directly with 2, or with 125 for `run`.
pub fn run(start: Instant) -> ExitCode {
    let cli = Cli::try_parse().unwrap_or_else(|error| exit_of_usage(&error));
    log::init(cli.verbose, cli.log_format);
    let is_run = matches!(cli.command, Command::Run(_));
    let done = match cli.command {
        Command::Run(args) => run::run(&args, start),
        Command::Boot(args) => boot::run(&args),
        Command::Serve(args) => serve::run(&args, start),
        Command::Status(args) => status::run(&args),
        Command::Report(args) => report::run(&args),
        Command::Ranges(args) => ranges::run(&args),
        #[cfg(feature = "bench")]
        Command::Bench(args) => bench::run(&args),
        #[cfg(not(feature = "bench"))]
        Command::Bench(_) => Err(CliError::NoBench),
        Command::Fingerprint(args) => fingerprint::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Verify(args) => verify::run(&args),
        Command::Cache(args) => cache::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Completions(args) => manual::completions(&args),
        Command::Man(args) => manual::man(&args),
    };
    done.unwrap_or_else(|error| {
        log::fatal(&error);
        match is_run {
            true => ExitCode::from(run::EXIT_OWN_FAILURE),
            false => error.exit_code(),
        }
    })
}

/// Prints help or the usage error, and exits.
fn exit_of_usage(error: &clap::Error) -> ! {
    // An error is ignored: stderr may be closed.
    let _ = error.print();
    let code = match error.exit_code() {
        0 => 0,
        _ if is_run() => run::EXIT_OWN_FAILURE.into(),
        code => code,
    };
    std::process::exit(code)
}

/// Whether the arguments, which may be wrong, are for `lazystore run`.
fn is_run() -> bool {
    let lenient = Cli::command().ignore_errors(true);
    let matches = lenient.try_get_matches_from(std::env::args_os());
    matches.is_ok_and(|matches| matches.subcommand_name() == Some("run"))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_arguments_are_consistent() {
        super::Cli::command().debug_assert();
    }
}
