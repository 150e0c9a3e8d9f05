//! `lazystore cache`.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::cache_args::CacheDirArgs;
use super::errors::{CacheError, CliError};
use super::help;
use super::numbers::size;
use super::text::{bytes, counted};
use crate::cache::{CacheDir, KeptNar};

/// Arguments of `lazystore cache`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES, after_long_help = help::long(EXAMPLES, HELP))]
pub struct CacheCommandArgs {
    #[command(subcommand)]
    command: CacheCommand,
}

#[derive(Debug, Subcommand)]
enum CacheCommand {
    /// List the NARs in the directory: size, whether in use, store path.
    List(ListArgs),
    /// Remove NARs beyond a size limit, NARs that failed verification, and leftovers of killed servers. NARs in use are
    /// kept.
    Prune(PruneArgs),
    /// Verify the hash of every NAR and remove those that have changed; the exit code is then 1.
    Verify(ListArgs),
}

/// Selects the directory.
#[derive(Debug, Args)]
struct ListArgs {
    #[command(flatten)]
    dir: CacheDirArgs,
}

#[derive(Debug, Args)]
struct PruneArgs {
    #[command(flatten)]
    dir: CacheDirArgs,
    /// Limit for the NARs that are kept, such as 5GB; 0 removes all NARs that are not in use
    #[arg(long, value_name = "SIZE", default_value = "20GB", value_parser = size, help_heading = "Binary caches")]
    cache_size: u64,
}

const EXAMPLES: &str = "\
Examples:
  lazystore cache list
  lazystore cache prune --cache-size 5GB
  lazystore cache verify --cache-dir /var/cache/lazystore";

const HELP: &str = "\
The directory holds narinfos, listings and uncompressed NARs; docs/binary-caches.md describes it. Data that a running \
server needs is never removed.";

/// Runs one of the subcommands.
pub fn run(args: &CacheCommandArgs) -> Result<ExitCode, CliError> {
    match &args.command {
        CacheCommand::List(args) => list(&args.dir.open()?),
        CacheCommand::Prune(args) => prune(&args.dir.open()?, args.cache_size),
        CacheCommand::Verify(args) => verify(&args.dir.open()?),
    }
}

fn list(dir: &CacheDir) -> Result<ExitCode, CliError> {
    let (nars, names) = (dir.nars(), dir.store_paths());
    let mut out = io::BufWriter::new(io::stdout().lock());
    for nar in &nars {
        let size = bytes(nar.bytes);
        let used = if nar.is_in_use { "in use" } else { "-" };
        let name = names.get(&nar.hash).unwrap_or(&nar.hash);
        writeln!(out, "{size:>12}  {used:<6}  {name}")?;
    }
    let total = nars.iter().map(|nar| nar.bytes).sum();
    let (count, total, place) = (counted(nars.len(), "NAR"), bytes(total), dir.path());
    writeln!(out, "{count}, {total} in {}", place.display())?;
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

fn prune(dir: &CacheDir, limit_bytes: u64) -> Result<ExitCode, CliError> {
    let removed = dir.prune(limit_bytes).map_err(CacheError::from)?;
    let (gone, left) = (removed.gone, removed.left);
    let mut out = io::stdout().lock();
    writeln!(
        out,
        "removed {} ({}), left {} ({})",
        counted(gone.files, "file"),
        bytes(gone.bytes),
        counted(left.files, "NAR"),
        bytes(left.bytes)
    )?;
    Ok(ExitCode::SUCCESS)
}

fn verify(dir: &CacheDir) -> Result<ExitCode, CliError> {
    let nars = dir.nars();
    let names = dir.store_paths();
    let mut broken = 0;
    for nar in &nars {
        if !dir.is_intact(nar).map_err(CacheError::from)? {
            broken += 1;
            dir.remove_nar(nar).map_err(CacheError::from)?;
            report(nar, names.get(&nar.hash))?;
        }
    }
    let mut out = io::stdout().lock();
    let count = counted(nars.len(), "NAR");
    match broken {
        0 => writeln!(out, "{count}, unchanged")?,
        _ => writeln!(out, "{count}, {broken} changed and removed")?,
    }
    Ok(match broken {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

fn report(nar: &KeptNar, name: Option<&String>) -> io::Result<()> {
    let name = name.unwrap_or(&nar.hash);
    writeln!(
        io::stdout().lock(),
        "{name}: the NAR has changed since it was fetched; removed it"
    )
}
