//! Formats the result of a benchmark as text or JSON.

use super::client::Latencies;

/// The reported quantiles.
const QUANTILES: [(&str, f64); 5] = [
    ("p50", 0.5),
    ("p90", 0.9),
    ("p99", 0.99),
    ("p99.9", 0.999),
    ("max", 1.0),
];

/// The result of a benchmark.
pub(super) struct BenchReport {
    pub latencies: Latencies,
    pub seconds: f64,
    pub block_bytes: usize,
    /// CPU time of the server.
    pub cpu_seconds: Option<f64>,
}

impl BenchReport {
    /// Returns the reads per second.
    fn iops(&self) -> f64 {
        // The conversion to f64 is exact below 2^53 reads.
        self.reads() / self.seconds
    }

    #[allow(clippy::cast_precision_loss)]
    fn reads(&self) -> f64 {
        self.latencies.len() as f64
    }

    #[allow(clippy::cast_precision_loss)]
    fn mib_per_second(&self) -> f64 {
        self.iops() * self.block_bytes as f64 / f64::from(1 << 20)
    }

    fn cpu_micros_per_read(&self) -> Option<f64> {
        let reads = self.reads().max(1.0);
        self.cpu_seconds.map(|seconds| seconds * 1e6 / reads)
    }

    #[allow(clippy::cast_precision_loss)]
    fn micros(&self, quantile: f64) -> f64 {
        self.latencies.value_at_quantile(quantile) as f64 / 1e3
    }

    /// Returns the names and values, in order of output.
    fn values(&self) -> Vec<(String, f64)> {
        let mut values = vec![
            ("iops".to_owned(), self.iops()),
            ("mib_per_s".to_owned(), self.mib_per_second()),
            ("mean_us".to_owned(), self.latencies.mean() / 1e3),
        ];
        let quantile = |(name, at): (&str, f64)| (format!("{name}_us"), self.micros(at));
        values.extend(QUANTILES.map(quantile));
        let cpu = self.cpu_micros_per_read();
        values.extend(cpu.map(|micros| ("server_cpu_us_per_read".to_owned(), micros)));
        values
    }

    /// One line of JSON.
    pub(super) fn json(&self) -> String {
        let fields = self
            .values()
            .into_iter()
            .map(|(name, value)| format!("\"{name}\":{value:.3}"));
        let fields: Vec<String> = fields.collect();
        format!(
            "{{\"reads\":{},\"seconds\":{:.3},\"block_bytes\":{},{}}}",
            self.latencies.len(),
            self.seconds,
            self.block_bytes,
            fields.join(",")
        )
    }

    /// One line per value.
    pub(super) fn table(&self) -> String {
        let lines = self
            .values()
            .into_iter()
            .map(|(name, value)| format!("{name:<24}{value:>14.1}\n"));
        lines.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(cpu_seconds: Option<f64>) -> BenchReport {
        let mut latencies = Latencies::new_with_bounds(1, 1_000_000_000, 3).unwrap();
        for micros in 1..=100 {
            latencies.record(micros * 1000).unwrap();
        }
        BenchReport {
            latencies,
            seconds: 2.0,
            block_bytes: 4096,
            cpu_seconds,
        }
    }

    #[test]
    fn the_json_is_one_flat_object() {
        let json = report(Some(0.001)).json();
        assert!(
            json.starts_with(
                "{\"reads\":100,\"seconds\":2.000,\"block_bytes\":4096,\"iops\":50.000,"
            )
        );
        assert!(json.contains("\"mean_us\":50.5"), "{json}");
        assert!(
            json.ends_with("\"server_cpu_us_per_read\":10.000}"),
            "{json}"
        );
    }

    #[test]
    fn the_table_has_one_line_per_value() {
        assert_eq!(report(None).table().lines().count(), 8);
    }
}
