//! The command line: typed arguments to checked configuration, and what the program prints.

#[cfg(feature = "bench")]
mod bench;
mod closure_args;
mod device_args;
mod doctor;
mod errors;
mod inspect;
mod limit_args;
mod limits;
mod log;
mod manual;
mod pins;
mod qemu_text;
mod ranges;
mod record_args;
mod run;
mod serve;
mod socket_args;
mod systemd;
mod verify;

use std::process::ExitCode;
use std::time::Instant;

use clap::{Parser, Subcommand};

/// What lazystore is told on the command line.
#[derive(Debug, Parser)]
#[command(
    name = "lazystore",
    version,
    about = "A VM's /nix/store as a read-only EROFS disk that is never built",
    before_help = EXAMPLES,
    after_long_help = "In the guest: mount -t erofs -o ro LABEL=nix-store /nix/store\n\n\
What is wrong is said in one sentence on stderr. Exit code: 0; 1 for an error; 2 for wrong usage; `run` returns the VM's."
)]
pub struct Cli {
    /// Say more: once for information, twice for debugging. `RUST_LOG` decides in detail
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
  lazystore run ./result -- qemu-system-x86_64 -M q35 -m 1G -kernel ./vmlinuz ...
  lazystore serve ./result --vhost-user /run/vm/store.sock
  lazystore serve --tree ./rootfs --fuse /run/vm/store
  lazystore serve --closure-info ./closure-info --vhost-user store.sock --once
  lazystore verify ./result --sample 20
  lazystore doctor";

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a VM with a closure as its disk.
    Run(run::RunArgs),
    /// Serve a closure as a disk, at sockets or as a file.
    Serve(serve::ServeArgs),
    /// Print where file data lie in a closure's disk, for `lazystore bench --ranges`.
    Ranges(ranges::RangesArgs),
    /// Measure a vhost-user-blk server, this one or another.
    #[cfg(feature = "bench")]
    Bench(bench::BenchArgs),
    /// Say what lies where on the disk: the map of all paths, or what a byte, block or inode belongs to.
    Inspect(inspect::InspectArgs),
    /// Compare the disk with the host's store through another EROFS reader, byte by byte.
    Verify(verify::VerifyArgs),
    /// Look at what this host offers for VMs with such a disk.
    Doctor(doctor::DoctorArgs),
    /// Print a completion script for a shell.
    Completions(manual::CompletionsArgs),
    /// Print a manual page, or write all of them.
    Man(manual::ManArgs),
}

/// Runs the program; `start` is when it began. Wrong usage exits with 2 from within clap.
pub fn run(start: Instant) -> ExitCode {
    let cli = Cli::parse();
    log::init(cli.verbose, cli.log_format);
    let done = match cli.command {
        Command::Run(args) => run::run(&args),
        Command::Serve(args) => serve::run(&args, start),
        Command::Ranges(args) => ranges::run(&args),
        #[cfg(feature = "bench")]
        Command::Bench(args) => bench::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Verify(args) => verify::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Completions(args) => manual::completions(&args),
        Command::Man(args) => manual::man(&args),
    };
    done.unwrap_or_else(|error| {
        log::fatal(&error);
        ExitCode::FAILURE
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_arguments_are_consistent() {
        super::Cli::command().debug_assert();
    }
}
