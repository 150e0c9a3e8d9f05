//! Compares two reports.

use std::cmp::Reverse;
use std::collections::HashMap;

use super::super::text;
use super::summary::{bytes_of, is_read, lines};
use crate::server::{BootReport, PathReads, ReportTotals as Totals};

/// Maximum number of paths in each list.
const LISTED: usize = 15;

/// Returns the differences between `before` and `after` as text.
pub fn text(before: &BootReport, after: &BootReport) -> String {
    let mut out = String::new();
    let mut row = |name: &str, old: String, new: String| {
        out += &format!("{name:<16}{old:>14}{new:>14}\n");
    };
    row("", "before".to_owned(), "after".to_owned());
    for event in &after.events {
        let old = before.at(&event.name);
        let old = old.map_or("-".to_owned(), |ms| format!("{ms:.1} ms"));
        row(&event.name, old, format!("{:.1} ms", event.ms));
    }
    let mut total = |name: &str, number: fn(&Totals) -> u64, show: fn(u64) -> String| {
        let [old, new] = [before, after].map(|report| show(number(&report.totals)));
        row(name, old, new);
    };
    let count = |count: u64| count.to_string();
    total("requests", |totals| totals.requests, count);
    total("metadata", |totals| totals.meta_bytes, text::bytes);
    total("files", |totals| totals.data_bytes, text::bytes);
    total("paths read", |totals| totals.touched_paths, count);
    total("paths", |totals| totals.paths, count);
    total("closure", |totals| totals.nar_bytes, text::bytes);
    out += &changes("Read now, and not before", &fresh(before, after));
    out += &changes("Read before, and not now", &fresh(after, before));
    out
}

/// Returns the paths that were read in `after` but not in `before`. Paths that differ only in their hash count as the same
/// path, because it was rebuilt.
fn fresh<'r>(before: &BootReport, after: &'r BootReport) -> Vec<&'r PathReads> {
    let old = before.paths.iter().filter(|path| is_read(path));
    let mut old_names: HashMap<&str, usize> = HashMap::new();
    old.for_each(|path| *old_names.entry(name_of(path)).or_default() += 1);
    let mut found: Vec<&PathReads> = after.paths.iter().filter(|path| is_read(path)).collect();
    found.retain(|path| match old_names.get_mut(name_of(path)) {
        Some(left @ 1..) => {
            *left -= 1;
            false
        }
        _ => true,
    });
    found.sort_by_key(|path| Reverse(bytes_of(path)));
    found
}

/// Returns the name of a store path without its hash.
fn name_of(path: &PathReads) -> &str {
    match path.name.split_at_checked(33) {
        Some((hash, name)) if hash.ends_with('-') => name,
        _ => &path.name,
    }
}

fn changes(title: &str, paths: &[&PathReads]) -> String {
    if paths.is_empty() {
        return String::new();
    }
    let count = text::counted(paths.len() as u64, "path");
    format!("\n{title}: {count}\n{}", lines(paths, bytes_of, LISTED))
}
