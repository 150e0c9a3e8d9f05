//! Formats a report as text.

use super::super::text;
use crate::server::{BootReport, PathReads};

/// Maximum number of paths in each list. The HTML page lists all.
const LISTED: usize = 10;

/// Returns a summary of the report.
pub fn text(report: &BootReport) -> String {
    let totals = &report.totals;
    let read = totals.meta_bytes.saturating_add(totals.data_bytes);
    let mut out = String::from("Time line\n");
    for event in &report.events {
        out += &format!("{:>10.1} ms  {}\n", event.ms, event.name);
    }
    out += &format!(
        "\n{} read{}: {} of metadata, {} of files\n{} of {} read ({} of {})\n{}, {} delivered, {}\n",
        text::bytes(read),
        share(read, totals.nar_bytes),
        text::bytes(totals.meta_bytes),
        text::bytes(totals.data_bytes),
        totals.touched_paths,
        text::counted(totals.paths, "path"),
        text::bytes(totals.touched_nar_bytes),
        text::bytes(totals.nar_bytes),
        text::counted(totals.requests, "request"),
        text::bytes(totals.bytes),
        text::counted(totals.errors, "error"),
    );
    let mut most: Vec<&PathReads> = report.paths.iter().filter(|path| is_read(path)).collect();
    most.sort_by_key(|path| std::cmp::Reverse(bytes_of(path)));
    out += &list("Read most", &most, bytes_of);
    let mut never: Vec<&PathReads> = report.paths.iter().filter(|path| !is_read(path)).collect();
    never.sort_by_key(|path| std::cmp::Reverse(path.nar_bytes));
    out += &list("Never read", &never, |path| path.nar_bytes.unwrap_or(0));
    out
}

/// Returns whether any part of the path was read.
pub fn is_read(path: &PathReads) -> bool {
    path.first_ms.is_some()
}

/// Returns the bytes read of a path.
pub fn bytes_of(path: &PathReads) -> u64 {
    path.meta_bytes.saturating_add(path.data_bytes)
}

fn list(title: &str, paths: &[&PathReads], size: fn(&PathReads) -> u64) -> String {
    if paths.is_empty() {
        return String::new();
    }
    let sum = paths
        .iter()
        .fold(0, |sum: u64, path| sum.saturating_add(size(path)));
    let (count, sum) = (text::counted(paths.len() as u64, "path"), text::bytes(sum));
    format!("\n{title}: {count}, {sum}\n{}", lines(paths, size, LISTED))
}

/// Returns a line for each of the first `count` paths.
pub fn lines(paths: &[&PathReads], size: fn(&PathReads) -> u64, count: usize) -> String {
    let mut out = String::new();
    for path in paths.iter().take(count) {
        out += &format!("{:>10}  {}\n", text::bytes(size(path)), shown(path));
    }
    if paths.len() > count {
        out += &format!("{:>10}  and {} more\n", "", paths.len() - count);
    }
    out
}

/// Returns the name of a path for output.
fn shown(path: &PathReads) -> String {
    match path.name.is_empty() {
        true => "(the tree)".to_owned(),
        // Names may contain control characters, which must not reach a terminal.
        false => path.name.chars().filter(|c| !c.is_control()).collect(),
    }
}

#[expect(clippy::cast_precision_loss, reason = "shown in two digits")]
fn share(part: u64, whole: u64) -> String {
    match whole {
        0 => String::new(),
        whole => format!(
            " ({:.1} % of {})",
            100.0 * part as f64 / whole as f64,
            text::bytes(whole)
        ),
    }
}
