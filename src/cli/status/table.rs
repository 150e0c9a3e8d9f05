//! Formats a status as a table.

use std::path::Path;
use std::time::Duration;

use super::super::text;
use crate::cache::FetchFigures;
use crate::device::meter::percentile;
use crate::server::{ClientStatus, ServerStatus};

/// A client's rates and latencies between two samples.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rates {
    pub requests: f64,
    pub bytes: f64,
    pub p50_us: Option<f64>,
    pub p99_us: Option<f64>,
}

impl Rates {
    /// The rates of `client` over `seconds`. It may not exist in `before`.
    #[expect(clippy::cast_precision_loss, reason = "shown in three digits")]
    pub fn of(before: &ServerStatus, client: &ClientStatus, seconds: f64) -> Self {
        let same = |old: &&ClientStatus| (old.vm, old.kind) == (client.vm, client.kind);
        let before = before.clients.iter().find(same);
        let old = |number: fn(&ClientStatus) -> u64| before.map_or(0, number);
        let rate = |now: u64, old: u64| now.saturating_sub(old) as f64 / seconds;
        let times = new_times(client, before);
        let micros = |per_mille| percentile(&times, per_mille).map(|time| time.as_secs_f64() * 1e6);
        Self {
            requests: rate(client.requests, old(|old| old.requests)),
            bytes: rate(client.bytes, old(|old| old.bytes)),
            p50_us: micros(500),
            p99_us: micros(990),
        }
    }
}

fn new_times(client: &ClientStatus, before: Option<&ClientStatus>) -> Vec<(u64, u64)> {
    let old = |nanos: u64| {
        let times = before.map_or(&[][..], |before| &before.times);
        times
            .iter()
            .find(|(end, _)| *end == nanos)
            .map_or(0, |(_, count)| *count)
    };
    let times = client.times.iter();
    times
        .map(|&(nanos, count)| (nanos, count.saturating_sub(old(nanos))))
        .collect()
}

const HEADINGS: [&str; 11] = [
    "VM", "REQ/S", "READ/S", "WAITING", "P50", "P99", "PLANS", "ERRORS", "REQUESTS", "READ",
    "SINCE",
];

/// The table of a server.
pub fn text(point: &Path, before: &ServerStatus, now: &ServerStatus, seconds: f64) -> String {
    let mut out = format!(
        "{}: process {}, up {}, {}, {} connected, {} left\n",
        point.display().to_string().trim_end_matches(".status"),
        now.pid,
        age(now.age_ms),
        text::counted(now.paths, "path"),
        now.clients.len(),
        now.left,
    );
    if now.published_plans > 0 {
        out += &plans_text(now);
    }
    if let Some(fetched) = &now.fetched {
        out += &fetched_text(fetched);
    }
    if now.clients.is_empty() {
        return out;
    }
    let rows = now
        .clients
        .iter()
        .map(|client| row(before, client, seconds));
    let rows: Vec<[String; 11]> = std::iter::once(HEADINGS.map(str::to_owned))
        .chain(rows)
        .collect();
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: [usize; 11] = std::array::from_fn(width);
    let places = std::iter::once("PLACE".to_owned()).chain(now.clients.iter().map(place));
    for (row, place) in rows.iter().zip(places) {
        for (cell, width) in row.iter().zip(widths) {
            out += &format!("{cell:>width$}  ");
        }
        out += &place;
        out.push('\n');
    }
    out
}

/// Where a client is connected, and the disk that it has chosen there.
fn place(client: &ClientStatus) -> String {
    match &client.export {
        Some(export) => format!("{} ({export})", client.place),
        None => client.place.clone(),
    }
}

/// A line about the plans that are published for all VMs.
fn plans_text(now: &ServerStatus) -> String {
    let published = text::counted(now.published_plans, "path");
    match now.kept_plans {
        0 => format!("planned for all VMs: {published}\n"),
        kept => format!("planned for all VMs: {published}, {kept} from the plan directory\n"),
    }
}

/// A line about fetches from binary caches.
fn fetched_text(fetched: &FetchFigures) -> String {
    format!(
        "fetched: {}, {} received, {}, {}, {} being fetched\n",
        text::counted(fetched.nars, "NAR"),
        text::bytes(fetched.received_bytes),
        text::counted(fetched.listings, "listing"),
        text::counted(fetched.failures, "failure"),
        fetched.fetching,
    )
}

fn row(before: &ServerStatus, client: &ClientStatus, seconds: f64) -> [String; 11] {
    let rates = Rates::of(before, client, seconds);
    [
        match client.vm {
            0 => "file".to_owned(),
            vm => vm.to_string(),
        },
        format!("{:.0}", rates.requests),
        text::bytes(rounded(rates.bytes)),
        client.in_flight.to_string(),
        micros(rates.p50_us),
        micros(rates.p99_us),
        client.plans.to_string(),
        client.errors.to_string(),
        client.requests.to_string(),
        text::bytes(client.bytes),
        age(client.age_ms),
    ]
}

/// Rounds to a whole number, for output.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "it saturates"
)]
fn rounded(value: f64) -> u64 {
    value.round() as u64
}

fn micros(value: Option<f64>) -> String {
    match value {
        None => "-".to_owned(),
        Some(value) if value < 10.0 => format!("{value:.1}us"),
        Some(value) if value < 1e4 => format!("{value:.0}us"),
        Some(value) => format!("{:.0}ms", value / 1e3),
    }
}

/// `5s`, `12m`, `3h`, `9d`.
fn age(millis: u64) -> String {
    let seconds = Duration::from_millis(millis).as_secs();
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}
