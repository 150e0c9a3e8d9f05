//! CPU time of another process.

use std::fs;

/// Clock ticks per second in `/proc/PID/stat`: `USER_HZ`, which is 100 on all architectures that Linux still supports.
const TICKS_PER_SECOND: f64 = 100.0;

/// A snapshot of the CPU time of a process and its children.
pub(super) struct Cpu {
    pid: u32,
    ticks: u64,
}

impl Cpu {
    /// Takes a snapshot.
    pub(super) fn of(pid: u32) -> Self {
        Self {
            pid,
            ticks: ticks(pid),
        }
    }

    /// Returns the user and system time since the snapshot.
    pub(super) fn seconds_since(&self) -> f64 {
        let spent = ticks(self.pid).saturating_sub(self.ticks);
        f64::from(u32::try_from(spent).unwrap_or(u32::MAX)) / TICKS_PER_SECOND
    }
}

/// Returns the ticks of a process and its descendants; 0 if it does not exist.
fn ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let of_children = children
        .unwrap_or_default()
        .split_whitespace()
        .filter_map(|child| child.parse().ok())
        .map(ticks)
        .sum::<u64>();
    own_ticks(&stat) + of_children
}

/// Returns the sum of utime and stime, fields 14 and 15 in proc(5). Field 2, a name in parentheses, may contain anything.
fn own_ticks(stat: &str) -> u64 {
    let (_, fields) = stat.rsplit_once(')').unwrap_or_default();
    let times = fields.split_whitespace().skip(11).take(2);
    times.filter_map(|ticks| ticks.parse::<u64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_parsed_after_any_process_name() {
        let stat = "7 (a) b (c)) S 1 7 7 0 -1 4194304 89 0 0 0 120 34 5 6 20 0 1 0 100";
        assert_eq!(own_ticks(stat), 154);
        assert_eq!(own_ticks(""), 0);
    }
}
