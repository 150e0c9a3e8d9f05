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
use limits::BootLimitArgs;

/// Arguments of `lazystore report`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES, after_long_help = help::long(EXAMPLES, HELP))]
pub struct ReportArgs {
    /// A report made with `--report FILE.json`
    #[arg(value_name = "FILE")]
    report: PathBuf,
    /// Compare with an earlier report
    #[arg(long, value_name = "FILE")]
    diff: Option<PathBuf>,
    /// Write the report as HTML
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    #[command(flatten)]
    limits: BootLimitArgs,
}

const EXAMPLES: &str = "\
Examples:
  lazystore run ./result --report boot.json -- qemu-system-x86_64 ...
  lazystore report boot.json --html boot.html
  lazystore report boot.json --diff before.json
  lazystore report boot.json --max-read 100MB --max-paths 200";

const HELP: &str = "\
Bytes read count each block once, for metadata and for contents of files. A path that was never read may be \
unnecessary in the closure.

With a --max option the exit code is 1 if the boot exceeds the limit, for use in CI.";

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
