//! `lazystore verify`.

use std::io::{self, IsTerminal, Write};
use std::num::NonZeroUsize;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use super::closure_args::{ClosureArgs, Loaded};
use super::errors::CliError;
use super::help;
use super::numbers::{positive, whole};
use super::text::{bytes, counted, without_errno};
use crate::closure::{Closure, Contents};
use crate::image::Image;
use crate::verify::{PathReport, Report, VerifyOptions, verify};
use serde::Serialize;

/// Every file is read only once, so keeping many files open has no benefit. Verifying a deep tree needs descriptors for
/// the host's directories.
const MAX_OPEN_FILES: usize = 1024;

/// Arguments of `lazystore verify`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES, after_long_help = help::long(EXAMPLES, HELP))]
pub struct VerifyArgs {
    #[command(flatten)]
    closure: ClosureArgs,
    /// Verify only N store paths, evenly spaced and always the same ones
    #[arg(long, value_name = "N", value_parser = positive(u64::MAX), help_heading = "What to compare")]
    sample: Option<NonZeroUsize>,
    /// Do not compute NAR hashes
    #[arg(long, help_heading = "What to compare")]
    no_hash: bool,
    /// Maximum number of differences to print per path
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = whole::<usize>(0..=u32::MAX.into()), help_heading = "What to compare")]
    differences: usize,
    /// Print JSON
    #[arg(long, help_heading = "What to compare")]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  lazystore verify ./result
  lazystore verify --closure-info ./closure-info --sample 20
  lazystore verify --tree ./rootfs --json";

const HELP: &str = "\
Reads the whole disk with an independent EROFS reader and compares it with the host's store: names, types, modes, \
owners, times, targets, every byte, and the NAR hash of each path that has a registered one. Exit code 1 if anything \
differs.";

/// Compares the disk with the store. The exit code is 1 if they differ.
pub fn run(args: &VerifyArgs) -> Result<ExitCode, CliError> {
    let Loaded {
        closure,
        options,
        image,
        fetcher: _fetcher,
    } = args.closure.load_to_read(MAX_OPEN_FILES)?;
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
    match args.json {
        true => print_json(&report, &closure, &image, elapsed)?,
        false => print(&report, &closure, elapsed)?,
    }
    Ok(if report.is_clean() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Returns a progress bar, if stderr is a terminal. Its length is the sum of NAR sizes, which slightly exceeds the contents.
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
    writeln!(
        out,
        "{}, {}, {} in {:.2} s ({}/s), {} as registered",
        counted(report.paths, "path"),
        counted(tally.files, "file"),
        bytes(tally.bytes),
        elapsed.as_secs_f64(),
        bytes(per_second(tally.bytes, elapsed)),
        match tally.nar_hashes {
            1 => "1 NAR hash".to_owned(),
            count => format!("{count} NAR hashes"),
        },
    )?;
    match report.faulty.len() {
        0 => writeln!(out, "no differences"),
        1 => writeln!(out, "1 path differs"),
        count => writeln!(out, "{count} paths differ"),
    }
}

fn per_second(bytes: u64, elapsed: Duration) -> u64 {
    let nanoseconds = elapsed.as_nanos().max(1);
    u64::try_from(u128::from(bytes) * 1_000_000_000 / nanoseconds).unwrap_or(u64::MAX)
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
        writeln!(out, " {}", without_errno(&difference.to_string()))?;
    }
    let more = path.count.saturating_sub(path.differences.len() as u64);
    if more > 0 {
        writeln!(out, "  and {more} more")?;
    }
    Ok(())
}

/// The result as JSON.
#[derive(Debug, Serialize)]
struct ReportView {
    fingerprint: Option<String>,
    is_clean: bool,
    paths: usize,
    files: u64,
    bytes: u64,
    nar_hashes: u64,
    seconds: f64,
    faulty: Vec<FaultyView>,
}

/// A path with differences.
#[derive(Debug, Serialize)]
struct FaultyView {
    path: String,
    /// Total number; `differences` may list fewer.
    count: u64,
    differences: Vec<DifferenceView>,
}

#[derive(Debug, Serialize)]
struct DifferenceView {
    /// Relative to the path; empty for the path itself.
    file: String,
    difference: String,
}

impl ReportView {
    fn new(report: &Report, closure: &Closure, disk: &Image, elapsed: Duration) -> Self {
        Self {
            fingerprint: disk.fingerprint().map(ToString::to_string),
            is_clean: report.is_clean(),
            paths: report.paths,
            files: report.tally.files,
            bytes: report.tally.bytes,
            nar_hashes: report.tally.nar_hashes,
            seconds: elapsed.as_secs_f64(),
            faulty: report
                .faulty
                .iter()
                .map(|path| FaultyView::new(path, closure))
                .collect(),
        }
    }
}

impl FaultyView {
    fn new(path: &PathReport, closure: &Closure) -> Self {
        let name = String::from_utf8_lossy(&path.name);
        let differences = path.differences.iter();
        let differences = differences.map(|(file, difference)| DifferenceView {
            file: String::from_utf8_lossy(file).into_owned(),
            difference: without_errno(&difference.to_string()),
        });
        Self {
            path: format!("{}/{name}", closure.store_dir.display()),
            count: path.count,
            differences: differences.collect(),
        }
    }
}

fn print_json(
    report: &Report,
    closure: &Closure,
    disk: &Image,
    elapsed: Duration,
) -> io::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, &ReportView::new(report, closure, disk, elapsed))?;
    writeln!(out)
}
