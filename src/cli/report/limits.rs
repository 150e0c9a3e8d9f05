//! Limits for a boot, for CI.

use clap::Args;

use super::super::errors::ReportError;
use super::super::numbers;
use super::super::text;
use crate::server::BootReport;

/// Limits for a boot.
#[derive(Debug, Args)]
#[command(next_help_heading = "Limits")]
pub struct BootLimitArgs {
    /// Maximum number of bytes read, such as 100MB or 64MiB
    #[arg(long, value_name = "SIZE", value_parser = numbers::size)]
    max_read: Option<u64>,
    /// Maximum number of store paths read
    #[arg(long, value_name = "N")]
    max_paths: Option<u64>,
    /// Maximum number of requests
    #[arg(long, value_name = "N")]
    max_requests: Option<u64>,
    /// Maximum number of milliseconds from the program's start to the first read of the root directory
    #[arg(long, value_name = "MS", value_parser = numbers::whole::<u32>(1..=u32::MAX.into()))]
    max_mount_ms: Option<u32>,
}

impl BootLimitArgs {
    /// Checks that the report is within the limits.
    pub fn check(&self, report: &BootReport) -> Result<(), ReportError> {
        let totals = &report.totals;
        let read = totals.meta_bytes.saturating_add(totals.data_bytes);
        let limits = [
            (
                self.max_read,
                read,
                "read",
                text::bytes(read),
                text::bytes as fn(u64) -> String,
            ),
            (
                self.max_paths,
                totals.touched_paths,
                "paths read",
                totals.touched_paths.to_string(),
                |limit| limit.to_string(),
            ),
            (
                self.max_requests,
                totals.requests,
                "requests",
                totals.requests.to_string(),
                |limit| limit.to_string(),
            ),
        ];
        for (limit, value, what, shown, show) in limits {
            if let Some(limit) = limit.filter(|limit| value > *limit) {
                return Err(ReportError::Over {
                    what,
                    value: shown,
                    limit: show(limit),
                });
            }
        }
        let mounted = report.at("mounted");
        match self.max_mount_ms {
            Some(limit) if mounted.is_none_or(|ms| ms > f64::from(limit)) => {
                Err(ReportError::Over {
                    what: "time until mounted",
                    value: mounted.map_or("never".to_owned(), |ms| format!("{ms:.0} ms")),
                    limit: format!("{limit} ms"),
                })
            }
            _ => Ok(()),
        }
    }
}
