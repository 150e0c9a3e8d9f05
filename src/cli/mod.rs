//! The command line: typed arguments to checked configuration, and what the program prints.

#[cfg(feature = "bench")]
mod bench;
mod boot;
mod cache;
mod cache_args;
mod closure_args;
mod device_args;
mod doctor;
mod errors;
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

/// What lazystore is told on the command line.
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
    /// Say more; twice for still more. RUST_LOG decides in detail
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    verbose: u8,
    /// How log lines on stderr look
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
    /// Boot a VM again and again, and say how long it takes.
    Boot(boot::BootArgs),
    /// Serve a closure as a disk, at sockets or as a file.
    Serve(serve::ServeArgs),
    /// Show what servers and their VMs do: rates, latencies, errors.
    Status(status::StatusArgs),
    /// Show the report of a boot, compare two, or hold one against limits.
    Report(report::ReportArgs),
    /// Print where file data lie in a closure's disk, for `lazystore bench --ranges`.
    #[command(hide = true)]
    Ranges(ranges::RangesArgs),
    /// Measure a vhost-user-blk server, this one or another.
    #[cfg(feature = "bench")]
    Bench(bench::BenchArgs),
    /// Measure a vhost-user-blk server: only in builds with the feature `bench`.
    #[cfg(not(feature = "bench"))]
    #[command(hide = true, disable_help_flag = true)]
    Bench(Absent),
    /// Print the identity of a closure's disk: the same on every host that has the same closure.
    Fingerprint(fingerprint::FingerprintArgs),
    /// Say what lies where on the disk: the map of all paths, or what a byte, block or inode belongs to.
    Inspect(inspect::InspectArgs),
    /// Compare the disk with the host's store through another EROFS reader, byte by byte.
    Verify(verify::VerifyArgs),
    /// Look after the directory that keeps what was fetched from binary caches.
    Cache(cache::CacheCommandArgs),
    /// Look at what this host offers for VMs with such a disk.
    Doctor(doctor::DoctorArgs),
    /// Print a completion script for a shell.
    Completions(manual::CompletionsArgs),
    /// Print a manual page, or write all of them.
    Man(manual::ManArgs),
}

/// Any arguments, of a subcommand that this build lacks.
#[cfg(not(feature = "bench"))]
#[derive(Debug, clap::Args)]
struct Absent {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    _args: Vec<std::ffi::OsString>,
}

/// Runs the program; `start` is when it began. Wrong usage exits from within, with 2, or 125 for `run`.
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

/// Prints help, or what is wrong with the arguments, and exits.
fn exit_of_usage(error: &clap::Error) -> ! {
    // Nobody may be there to read it.
    let _ = error.print();
    let code = match error.exit_code() {
        0 => 0,
        _ if is_run() => run::EXIT_OWN_FAILURE.into(),
        code => code,
    };
    std::process::exit(code)
}

/// Whether the arguments, which need not be right, ask for `lazystore run`.
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
