//! The command line: typed arguments to checked configuration, and what the program prints.

#[cfg(feature = "bench")]
mod bench;
mod closure_args;
mod device_args;
mod errors;
mod inspect;
mod limits;
mod log;
mod ranges;
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
    after_help = "Examples:
  lazystore serve --closure-info ./closure-info --vhost-user /run/vm/store.sock
  nix-store -qR ./result | lazystore serve --store-paths - --vhost-user store.sock --once
  lazystore serve --tree ./rootfs --vhost-user rootfs.sock
  lazystore serve --closure-info ./closure-info --fuse /run/vm/store
  lazystore inspect --closure-info ./closure-info --nid 123456
  lazystore verify --closure-info ./closure-info --sample 20"
)]
pub struct Cli {
    /// Say more: once for information, twice for debugging. `RUST_LOG` decides in detail.
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    verbose: u8,
    #[command(subcommand)]
    command: Command,
}

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
}

/// Runs the program; `start` is when it began. Wrong usage exits with 2 from within clap.
pub fn run(start: Instant) -> ExitCode {
    let cli = Cli::parse();
    log::init(cli.verbose);
    let done = match cli.command {
        Command::Run(args) => run::run(&args),
        Command::Serve(args) => serve::run(&args, start),
        Command::Ranges(args) => ranges::run(&args),
        #[cfg(feature = "bench")]
        Command::Bench(args) => bench::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Verify(args) => verify::run(&args),
    };
    done.unwrap_or_else(|error| {
        eprintln!("lazystore: {error}");
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
