//! `lazystore verify`.

use std::io::{self, IsTerminal, Write};
use std::num::NonZeroUsize;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use super::closure_args::{ClosureArgs, Loaded};
use super::errors::CliError;
use super::numbers::{positive, whole};
use crate::closure::{Closure, Contents};
use crate::verify::{PathReport, Report, VerifyOptions, verify};

/// Every file is read once: keeping more of them open would only take descriptors from the host's directories,
/// of which a deep tree needs many.
const MAX_OPEN_FILES: usize = 1024;

/// Arguments of `lazystore verify`.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    #[command(flatten)]
    closure: ClosureArgs,
    /// Only N store paths, evenly chosen and always the same ones
    #[arg(long, value_name = "N", value_parser = positive(u64::MAX))]
    sample: Option<NonZeroUsize>,
    /// Do not compute NAR hashes
    #[arg(long)]
    no_hash: bool,
    /// Differences to print of each path
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = whole::<usize>(0..=u32::MAX.into()))]
    differences: usize,
}

/// Compares the disk with the store; the exit code says whether they are the same.
pub fn run(args: &VerifyArgs) -> Result<ExitCode, CliError> {
    let Loaded {
        closure,
        options,
        image,
    } = args.closure.load(MAX_OPEN_FILES)?;
    let verify_options = VerifyOptions {
        hash: !args.no_hash,
        sample: args.sample,
        differences_per_path: args.differences,
    };
    let bar = progress_bar(&closure, args.sample);
    let start = Instant::now();
    let progress = |bytes| bar.inc(bytes);
    let report = verify(&image, &closure, &options, &verify_options, &progress)?;
    let elapsed = start.elapsed();
    bar.finish_and_clear();
    print(&report, &closure, elapsed)?;
    Ok(if report.is_clean() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// A bar on stderr if a person looks at it. NAR sizes, a little more than the contents, tell how long it gets.
fn progress_bar(closure: &Closure, sample: Option<NonZeroUsize>) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let total = match &closure.contents {
        Contents::StorePaths(paths) if sample.is_none() => {
            paths.iter().map(|path| path.nar_size).sum::<Option<u64>>()
        }
        _ => None,
    };
    let (bar, template) = match total {
        Some(total) => (
            ProgressBar::new(total),
            "{wide_bar} {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec} {eta}",
        ),
        None => (
            ProgressBar::new_spinner(),
            "{spinner} {decimal_bytes} {decimal_bytes_per_sec}",
        ),
    };
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

fn print(report: &Report, closure: &Closure, elapsed: Duration) -> io::Result<()> {
    let mut out = io::stdout().lock();
    for path in &report.faulty {
        print_path(path, closure, &mut out)?;
    }
    let tally = report.tally;
    let seconds = elapsed.as_secs_f64();
    // Rounding a number of bytes for a person is no loss.
    #[expect(clippy::cast_precision_loss)]
    let megabytes = tally.bytes as f64 / 1e6;
    writeln!(
        out,
        "{} paths, {} files, {megabytes:.1} MB in {seconds:.2} s ({:.0} MB/s), {} NAR hashes as registered",
        report.paths,
        tally.files,
        megabytes / seconds.max(1e-9),
        tally.nar_hashes,
    )?;
    match report.faulty.len() {
        0 => writeln!(out, "no differences"),
        1 => writeln!(out, "1 path differs"),
        count => writeln!(out, "{count} paths differ"),
    }
}

fn print_path(path: &PathReport, closure: &Closure, out: &mut impl Write) -> io::Result<()> {
    let store_dir = closure.store_dir.display();
    let name = String::from_utf8_lossy(&path.name);
    writeln!(out, "{store_dir}/{name}")?;
    for (file, difference) in &path.differences {
        if !file.is_empty() {
            write!(out, "  {}:", String::from_utf8_lossy(file))?;
        } else {
            write!(out, " ")?;
        }
        writeln!(out, " {difference}")?;
    }
    let more = path.count.saturating_sub(path.differences.len() as u64);
    if more > 0 {
        writeln!(out, "  and {more} more")?;
    }
    Ok(())
}
