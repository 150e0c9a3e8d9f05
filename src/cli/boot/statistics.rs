//! Statistics of many boots.

use serde_json::{Value, json};

use super::super::text;
use super::once::Took;

/// All phases, in order.
const PHASES: [&str; 6] = ["exec", "connect", "first read", "mount", "mark", "exit"];

/// All boots with one disk.
pub struct Series {
    pub name: String,
    /// The times of all boots for each phase, in milliseconds.
    pub phases: Vec<(&'static str, Vec<f64>)>,
    requests: Vec<f64>,
    bytes: Vec<f64>,
}

impl Series {
    pub fn new(name: String) -> Self {
        Self {
            name,
            phases: PHASES.map(|phase| (phase, Vec::new())).into(),
            requests: Vec::new(),
            bytes: Vec::new(),
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "shown in few digits")]
    pub fn add(&mut self, took: &Took) {
        for (phase, ms) in &took.phases {
            let found = self.phases.iter_mut().find(|(name, _)| name == phase);
            found.into_iter().for_each(|(_, all)| all.push(*ms));
        }
        if let Some((requests, bytes)) = took.read {
            self.requests.push(requests as f64);
            self.bytes.push(bytes as f64);
        }
    }

    /// Returns a table.
    pub fn text(&self) -> String {
        let mut out = format!(
            "{}\n{:<14}{:>12}{:>12}{:>12}\n",
            self.name, "", "median", "min", "max"
        );
        let mut row = |name: &str, all: &[f64], show: &dyn Fn(f64) -> String| {
            if let Some((median, min, max)) = summary(all) {
                let [median, min, max] = [median, min, max].map(show);
                out += &format!("  {name:<12}{median:>12}{min:>12}{max:>12}\n");
            }
        };
        for (phase, all) in &self.phases {
            row(phase, all, &|ms| format!("{ms:.1} ms"));
        }
        row("requests", &self.requests, &|count| format!("{count:.0}"));
        row("read", &self.bytes, &|bytes| text::bytes(whole(bytes)));
        out.push('\n');
        out
    }

    /// Returns all results as JSON.
    pub fn json(&self) -> Value {
        let numbers = |all: &[f64]| match summary(all) {
            Some((median, min, max)) => {
                json!({"median": median, "min": min, "max": max, "all": all})
            }
            None => Value::Null,
        };
        let phases = self
            .phases
            .iter()
            .map(|(phase, all)| ((*phase).to_owned(), numbers(all)));
        json!({
            "name": self.name, "phases_ms": serde_json::Map::from_iter(phases), "requests": numbers(&self.requests),
            "read_bytes": numbers(&self.bytes),
        })
    }

    /// Returns the median time of a boot: until the mark, or until the VM ended.
    fn boots(&self) -> Option<f64> {
        let ends = self
            .phases
            .iter()
            .filter(|(phase, _)| matches!(*phase, "mark" | "exit"));
        ends.filter_map(|(_, all)| summary(all))
            .next()
            .map(|(median, ..)| median)
    }
}

/// Returns a sentence that says which one boots faster.
pub fn ratio(first: &Series, second: &Series) -> String {
    let (Some(a), Some(b)) = (first.boots(), second.boots()) else {
        return String::new();
    };
    let (fast, slow, ratio) = match a <= b {
        true => (first, second, b / a),
        false => (second, first, a / b),
    };
    format!(
        "{} boots {ratio:.2} times as fast as {}\n",
        fast.name, slow.name
    )
}

/// Returns the median, minimum and maximum.
pub fn summary(all: &[f64]) -> Option<(f64, f64, f64)> {
    let mut sorted = all.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (min, max) = (*sorted.first()?, *sorted.last()?);
    let middle = sorted.len() / 2;
    let median = match sorted.len() % 2 {
        1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    };
    Some((median, min, max))
}

/// Converts a number of bytes back to an integer.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "it saturates"
)]
fn whole(value: f64) -> u64 {
    value as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(summary(&[]), None);
        assert_eq!(summary(&[3.0]), Some((3.0, 3.0, 3.0)));
        assert_eq!(summary(&[3.0, 1.0, 2.0]), Some((2.0, 1.0, 3.0)));
        assert_eq!(summary(&[4.0, 1.0, 2.0, 3.0]), Some((2.5, 1.0, 4.0)));
    }

    #[test]
    fn the_ratio_names_the_faster_one() {
        let series = |name: &str, ms| {
            let mut series = Series::new(name.to_owned());
            let phases = vec![("mark", ms), ("exit", 99.0)];
            series.add(&Took { phases, read: None });
            series
        };
        let text = ratio(&series("a", 30.0), &series("b", 20.0));
        assert_eq!(text, "b boots 1.50 times as fast as a\n");
    }
}
