//! The argument about the report of a boot.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use clap::Args;

use crate::closure::{Closure, Contents};
use crate::server::ReportOptions;

/// Where a report goes.
#[derive(Debug, Args)]
#[command(next_help_heading = "Watching")]
pub struct ReportFileArgs {
    /// Say in FILE what the first VM reads, of each store path, and when: a page for a browser if FILE ends with .html, otherwise
    /// JSON for `lazystore report`
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

impl ReportFileArgs {
    /// A report in `file`.
    pub fn to(file: &Path) -> Self {
        Self {
            report: Some(file.to_owned()),
        }
    }

    /// The file that is written.
    pub fn written(&self) -> Option<&Path> {
        self.report.as_deref()
    }

    /// For a disk of `closure`, in a program that began at `start`.
    pub fn options(&self, closure: &Closure, start: Instant) -> Option<ReportOptions> {
        let nar_sizes = match &closure.contents {
            Contents::StorePaths(paths) => paths
                .iter()
                .filter_map(|path| Some((path.name.clone(), path.nar_size?)))
                .collect(),
            Contents::Tree => BTreeMap::new(),
        };
        Some(ReportOptions {
            file: self.report.clone()?,
            nar_sizes: Arc::new(nar_sizes),
            start,
        })
    }
}
