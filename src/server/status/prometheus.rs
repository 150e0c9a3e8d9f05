//! Writes a status in the text format of Prometheus (version 0.0.4).

use std::fmt::Write as _;

use super::{ClientStatus, ServerStatus};
use crate::cache::FetchFigures;

/// Bounds of the histogram, in microseconds. Few, because each is a time series per VM.
const BOUNDS_US: [u64; 12] = [
    1, 2, 5, 10, 20, 50, 100, 500, 1_000, 10_000, 100_000, 1_000_000,
];

/// Returns a number of a client.
type Number = fn(&ClientStatus) -> u64;

/// Name, type, help, and value.
const NUMBERS: [(&str, &str, &str, Number); 6] = [
    (
        "lazystore_vm_requests_total",
        "counter",
        "Requests answered.",
        |vm| vm.requests,
    ),
    (
        "lazystore_vm_read_bytes_total",
        "counter",
        "Bytes delivered.",
        |vm| vm.bytes,
    ),
    (
        "lazystore_vm_errors_total",
        "counter",
        "Requests answered with an error.",
        |vm| vm.errors,
    ),
    (
        "lazystore_vm_requests_in_flight",
        "gauge",
        "Requests that wait for the host.",
        |vm| vm.in_flight,
    ),
    (
        "lazystore_vm_plans_total",
        "counter",
        "Store paths whose planning was begun.",
        |vm| vm.plans,
    ),
    (
        "lazystore_vm_start_time_seconds",
        "gauge",
        "When it connected, in seconds since 1970.",
        |vm| vm.since_sec,
    ),
];

/// The metrics of a server and of all its clients.
pub fn text(status: &ServerStatus) -> String {
    let mut out = String::new();
    let clients = &status.clients;
    totals(&mut out, status);
    if let Some(fetched) = &status.fetched {
        fetches(&mut out, fetched);
    }
    if clients.is_empty() {
        return out;
    }
    for (name, kind, help, value) in NUMBERS {
        header(&mut out, name, kind, help);
        for vm in clients {
            let _ = writeln!(out, "{name}{{{}}} {}", labels(vm), value(vm));
        }
    }
    let name = "lazystore_vm_request_seconds";
    header(
        &mut out,
        name,
        "histogram",
        "How long answers took, from a request's being taken to its answer.",
    );
    clients.iter().for_each(|vm| histogram(&mut out, name, vm));
    out
}

fn totals(out: &mut String, status: &ServerStatus) {
    let clients = &status.clients;
    let sum = |left: u64, number: Number| {
        clients
            .iter()
            .fold(left, |sum, vm| sum.saturating_add(number(vm)))
    };
    let requests = sum(status.left_requests, |vm| vm.requests);
    let bytes = sum(status.left_bytes, |vm| vm.bytes);
    let errors = sum(status.left_errors, |vm| vm.errors);
    let vms = clients.len() as u64;
    for (name, kind, help, value) in [
        (
            "start_time_seconds",
            "gauge",
            "When the server started, in seconds since 1970.",
            status.since_sec,
        ),
        (
            "store_paths",
            "gauge",
            "Store paths that are served.",
            status.paths,
        ),
        ("vms", "gauge", "Connected VMs and other clients.", vms),
        (
            "vms_total",
            "counter",
            "All that have connected.",
            vms.saturating_add(status.left),
        ),
        (
            "requests_total",
            "counter",
            "Requests answered to all of them.",
            requests,
        ),
        (
            "read_bytes_total",
            "counter",
            "Bytes delivered to all of them.",
            bytes,
        ),
        (
            "errors_total",
            "counter",
            "Requests answered with an error to all of them.",
            errors,
        ),
    ] {
        header(out, &format!("lazystore_{name}"), kind, help);
        let _ = writeln!(out, "lazystore_{name} {value}");
    }
}

fn fetches(out: &mut String, fetched: &FetchFigures) {
    for (name, kind, help, value) in [
        (
            "fetching",
            "gauge",
            "Store paths whose NARs are being fetched.",
            fetched.fetching,
        ),
        (
            "fetched_nars_total",
            "counter",
            "NARs fetched from binary caches and verified.",
            fetched.nars,
        ),
        (
            "fetched_listings_total",
            "counter",
            "Listings fetched.",
            fetched.listings,
        ),
        (
            "received_bytes_total",
            "counter",
            "Bytes of NARs received, as binary caches compress them.",
            fetched.received_bytes,
        ),
        (
            "fetch_failures_total",
            "counter",
            "Listings and NARs that could not be had.",
            fetched.failures,
        ),
    ] {
        header(out, &format!("lazystore_{name}"), kind, help);
        let _ = writeln!(out, "lazystore_{name} {value}");
    }
}

fn header(out: &mut String, name: &str, kind: &str, help: &str) {
    // Writing to a String does not fail.
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

/// The labels of a client. They come from the server, not from a worker, which may be compromised.
fn labels(vm: &ClientStatus) -> String {
    let escaped = |text: &str| {
        text.replace('\\', "\\\\")
            .replace('"', "\\\"")
            .replace('\n', "\\n")
    };
    let (number, kind, place) = (vm.vm, vm.kind.name(), escaped(&vm.place));
    let export = vm.export.as_deref().map(escaped);
    let export = export.map(|name| format!(",export=\"{name}\""));
    let export = export.unwrap_or_default();
    format!("vm=\"{number}\",kind=\"{kind}\",place=\"{place}\"{export}")
}

fn histogram(out: &mut String, name: &str, vm: &ClientStatus) {
    let labels = labels(vm);
    let up_to = |nanos: u64| {
        let counts = vm.times.iter().filter(|(end, _)| *end <= nanos);
        counts.fold(0_u64, |sum, (_, count)| sum.saturating_add(*count))
    };
    for bound in BOUNDS_US {
        let (seconds, count) = (seconds(bound * 1000), up_to(bound * 1000));
        let _ = writeln!(out, "{name}_bucket{{{labels},le=\"{seconds}\"}} {count}");
    }
    let all = up_to(u64::MAX);
    let sum = vm.times.iter().fold(0_u64, |sum, (end, count)| {
        sum.saturating_add(end.saturating_mul(*count))
    });
    let _ = writeln!(out, "{name}_bucket{{{labels},le=\"+Inf\"}} {all}");
    let _ = writeln!(out, "{name}_sum{{{labels}}} {}", seconds(sum));
    let _ = writeln!(out, "{name}_count{{{labels}}} {all}");
}

/// Rounding does not matter here.
#[expect(clippy::cast_precision_loss)]
fn seconds(nanos: u64) -> f64 {
    nanos as f64 / 1e9
}
