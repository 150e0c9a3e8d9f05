//! The argument for the boot report.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use clap::Args;

use crate::closure::{Closure, Contents};
use crate::server::ReportOptions;

/// Where to write the report.
#[derive(Debug, Args)]
#[command(next_help_heading = "Watching")]
pub struct ReportFileArgs {
    /// Write to FILE when the first VM reads what of each store path: as HTML if FILE ends with .html, otherwise as
    /// JSON for `lazystore report`
    #[arg(long, value_name = "FILE", requires = "SourceArgs")]
    report: Option<PathBuf>,
}

impl ReportFileArgs {
    /// Arguments that write the report to `file`.
    pub fn to(file: &Path) -> Self {
        Self {
            report: Some(file.to_owned()),
        }
    }

    /// The file to be written.
    pub fn written(&self) -> Option<&Path> {
        self.report.as_deref()
    }

    /// The server's options for a disk of `closure`, in a program that started at `start`.
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
