//! `lazystore doctor`: checks the host, with a remedy for each problem.

mod checks;
mod kvm;
mod programs;

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use super::errors::CliError;
use super::text::without_errno;

/// Arguments of `lazystore doctor`.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit code 1 if something indispensable for serving a disk to a VM is missing."
)]
pub struct DoctorArgs {
    /// Kernel for the trial boot on KVM [default: one from /run/current-system or /boot]
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// Print JSON: a list of objects with name, status, found and remedy
    #[arg(long)]
    json: bool,
}

/// Severity of a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Severity {
    /// No problem.
    Ok,
    /// Something is slower, or one of several ways to serve is not available.
    Note,
    /// Nothing works without it.
    Missing,
}

/// The result of one check.
#[derive(Debug, Serialize)]
struct Finding {
    name: &'static str,
    status: Severity,
    found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<String>,
}

impl Finding {
    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self {
            name,
            status: Severity::Ok,
            found: without_errno(&found.into()),
            remedy: None,
        }
    }

    fn note(name: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            status: Severity::Note,
            remedy: Some(remedy.into()),
            ..Self::ok(name, found)
        }
    }

    fn missing(name: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            status: Severity::Missing,
            ..Self::note(name, found, remedy)
        }
    }
}

/// Runs all checks. Takes as long as a trial boot, at most ten seconds.
pub fn run(args: &DoctorArgs) -> Result<ExitCode, CliError> {
    if let Some(path) = &args.kernel {
        File::open(path)
            .and_then(|mut file| file.read(&mut [0]))
            .map_err(|source| CliError::Kernel {
                path: path.clone(),
                source,
            })?;
    }
    let findings = [
        checks::kernel(),
        programs::vmm(),
        kvm::check(args.kernel.as_deref()),
        checks::fuse(),
        checks::open_files(),
        checks::landlock(),
        checks::io_uring(),
        checks::erofs(),
        checks::nix_database(),
    ];
    let mut stdout = io::stdout().lock();
    match args.json {
        true => writeln!(stdout, "{}", serde_json::json!(findings))?,
        false => print(&findings, &mut stdout)?,
    }
    let is_missing = |finding: &Finding| finding.status == Severity::Missing;
    Ok(match findings.iter().any(is_missing) {
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    })
}

fn print(findings: &[Finding], out: &mut impl Write) -> io::Result<()> {
    for finding in findings {
        let status = match finding.status {
            Severity::Ok => "ok",
            Severity::Note => "note",
            Severity::Missing => "MISSING",
        };
        writeln!(out, "{status:<8}{:<13}{}", finding.name, finding.found)?;
        if let Some(remedy) = &finding.remedy {
            writeln!(out, "{:<21}-> {remedy}", "")?;
        }
    }
    Ok(())
}
