//! `lazystore report`.

mod compare;
mod limits;
mod summary;

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use super::errors::{CliError, ReportError};
use super::help;
use crate::server::{BootReport, REPORT_FORMAT};
use limits::LimitArgs;

/// Arguments of `lazystore report`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES, after_long_help = help::long(EXAMPLES, HELP))]
pub struct ReportArgs {
    /// A report that `--report FILE.json` made
    #[arg(value_name = "FILE")]
    report: PathBuf,
    /// Say what another report has that this one has not, and the other way round
    #[arg(long, value_name = "FILE")]
    diff: Option<PathBuf>,
    /// Write the report as a page for a browser
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    #[command(flatten)]
    limits: LimitArgs,
}

const EXAMPLES: &str = "\
Examples:
  lazystore run ./result --report boot.json -- qemu-system-x86_64 ...
  lazystore report boot.json --html boot.html
  lazystore report boot.json --diff before.json
  lazystore report boot.json --max-read 100MB --max-paths 200";

const HELP: &str = "\
Bytes that are read count each block once: metadata, and contents of files. A path that was never read may be one that the \
closure could do without.

With a --max option the exit code is 1 when the boot read more: a check for CI.";

/// Shows a report.
pub fn run(args: &ReportArgs) -> Result<ExitCode, CliError> {
    let report = read(&args.report)?;
    if let Some(page) = &args.html {
        fs::write(page, report.page()).map_err(|source| ReportError::Write {
            path: page.clone(),
            source,
        })?;
    }
    let text = match &args.diff {
        Some(other) => compare::text(&read(other)?, &report),
        None => summary::text(&report),
    };
    io::stdout().lock().write_all(text.as_bytes())?;
    args.limits.check(&report)?;
    Ok(ExitCode::SUCCESS)
}

fn read(path: &Path) -> Result<BootReport, ReportError> {
    let text = fs::read(path).map_err(|source| ReportError::Read {
        path: path.to_owned(),
        source,
    })?;
    let report: BootReport =
        serde_json::from_slice(&text).map_err(|source| ReportError::Parse {
            path: path.to_owned(),
            source,
        })?;
    match report.format == REPORT_FORMAT {
        true => Ok(report),
        false => Err(ReportError::Format {
            path: path.to_owned(),
        }),
    }
}
