//! Writes a status in the text format of Prometheus (version 0.0.4).

use std::fmt::{Display, Write as _};

use super::{ClientStatus, ServerStatus};
use crate::cache::FetchFigures;

/// Bounds of the histogram, in microseconds. Few, because each is a time series per VM.
const BOUNDS_US: [u64; 12] = [
    1, 2, 5, 10, 20, 50, 100, 500, 1_000, 10_000, 100_000, 1_000_000,
];

/// Returns a number of a client.
type Number = fn(&ClientStatus) -> u64;

/// The metrics of a server and of all its clients.
pub fn text(status: &ServerStatus) -> String {
    let mut out = Metrics(String::new());
    out.totals(status);
    if let Some(fetched) = &status.fetched {
        out.fetches(fetched);
    }
    if !status.clients.is_empty() {
        out.vms(&status.clients);
    }
    out.0
}

struct Metrics(String);

impl Metrics {
    fn totals(&mut self, status: &ServerStatus) {
        let vms = status.clients.len() as u64;
        let sum = |departed: u64, number: Number| {
            let clients = status.clients.iter();
            clients.fold(departed, |sum, vm| sum.saturating_add(number(vm)))
        };
        let started = "When the server started, in seconds since 1970.";
        self.gauge("start_time_seconds", started, status.since_sec);
        self.gauge("store_paths", "Store paths that are served.", status.paths);
        let published = "Plans of store paths that are published for all VMs.";
        self.gauge("published_plans", published, status.published_plans);
        let kept = "Published plans that an earlier server kept.";
        self.gauge("kept_plans", kept, status.kept_plans);
        self.gauge("vms", "Connected VMs and other clients.", vms);
        let vms = vms.saturating_add(status.left);
        self.counter("vms_total", "All that have connected.", vms);
        let requests = sum(status.left_requests, |vm| vm.requests);
        self.counter(
            "requests_total",
            "Requests answered to all of them.",
            requests,
        );
        let bytes = sum(status.left_bytes, |vm| vm.bytes);
        self.counter("read_bytes_total", "Bytes delivered to all of them.", bytes);
        let errors = sum(status.left_errors, |vm| vm.errors);
        let failed = "Requests answered with an error to all of them.";
        self.counter("errors_total", failed, errors);
    }

    fn fetches(&mut self, fetched: &FetchFigures) {
        let fetching = "Store paths whose NARs are being fetched.";
        self.gauge("fetching", fetching, fetched.fetching);
        let nars = "NARs fetched from binary caches and verified.";
        self.counter("fetched_nars_total", nars, fetched.nars);
        self.counter(
            "fetched_listings_total",
            "Listings fetched.",
            fetched.listings,
        );
        let received = "Bytes of NARs received, as binary caches compress them.";
        self.counter("received_bytes_total", received, fetched.received_bytes);
        let failures = "Listings and NARs that could not be had.";
        self.counter("fetch_failures_total", failures, fetched.failures);
    }

    fn vms(&mut self, vms: &[ClientStatus]) {
        let mut each = |name, kind, help, number: Number| {
            self.header(name, kind, help);
            for vm in vms {
                self.value(name, &format!("{{{}}}", labels(vm)), number(vm));
            }
        };
        each("vm_requests_total", "counter", "Requests answered.", |vm| {
            vm.requests
        });
        each("vm_read_bytes_total", "counter", "Bytes delivered.", |vm| {
            vm.bytes
        });
        let failed = "Requests answered with an error.";
        each("vm_errors_total", "counter", failed, |vm| vm.errors);
        let waiting = "Requests that wait for the host.";
        each("vm_requests_in_flight", "gauge", waiting, |vm| vm.in_flight);
        let planned = "Store paths whose planning was begun.";
        each("vm_plans_total", "counter", planned, |vm| vm.plans);
        let connected = "When it connected, in seconds since 1970.";
        each("vm_start_time_seconds", "gauge", connected, |vm| {
            vm.since_sec
        });
        let latency = "How long answers took, from a request's being taken to its answer.";
        self.header("vm_request_seconds", "histogram", latency);
        vms.iter()
            .for_each(|vm| self.histogram("vm_request_seconds", vm));
    }

    fn histogram(&mut self, name: &str, vm: &ClientStatus) {
        let labels = labels(vm);
        let up_to = |nanos: u64| {
            let counts = vm.times.iter().filter(|(end, _)| *end <= nanos);
            counts.fold(0_u64, |sum, (_, count)| sum.saturating_add(*count))
        };
        let bucket = format!("{name}_bucket");
        for bound in BOUNDS_US {
            let bound_labels = format!("{{{labels},le=\"{}\"}}", seconds(bound * 1000));
            self.value(&bucket, &bound_labels, up_to(bound * 1000));
        }
        let all = up_to(u64::MAX);
        let sum = vm.times.iter().fold(0_u64, |sum, (end, count)| {
            sum.saturating_add(end.saturating_mul(*count))
        });
        self.value(&bucket, &format!("{{{labels},le=\"+Inf\"}}"), all);
        let labels = format!("{{{labels}}}");
        self.value(&format!("{name}_sum"), &labels, seconds(sum));
        self.value(&format!("{name}_count"), &labels, all);
    }

    fn gauge(&mut self, name: &str, help: &str, value: u64) {
        self.header(name, "gauge", help);
        self.value(name, "", value);
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.header(name, "counter", help);
        self.value(name, "", value);
    }

    fn header(&mut self, name: &str, kind: &str, help: &str) {
        let lines = format!("# HELP lazystore_{name} {help}\n# TYPE lazystore_{name} {kind}");
        // Writing to a String does not fail.
        let _ = writeln!(self.0, "{lines}");
    }

    fn value(&mut self, name: &str, labels: &str, value: impl Display) {
        let _ = writeln!(self.0, "lazystore_{name}{labels} {value}");
    }
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

/// Rounding does not matter here.
#[expect(clippy::cast_precision_loss)]
fn seconds(nanos: u64) -> f64 {
    nanos as f64 / 1e9
}
