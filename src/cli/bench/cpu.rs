//! CPU time of another process.

use std::fs;

/// Clock ticks a second in `/proc/PID/stat`: `USER_HZ`, which is 100 on every architecture that Linux still has.
const TICKS_PER_SECOND: f64 = 100.0;

/// CPU time of a process and its children, as it was once.
pub(super) struct Cpu {
    pid: u32,
    ticks: u64,
}

impl Cpu {
    /// Looks now.
    pub(super) fn of(pid: u32) -> Self {
        Self {
            pid,
            ticks: ticks(pid),
        }
    }

    /// User and system time since the first look.
    pub(super) fn seconds_since(&self) -> f64 {
        let spent = ticks(self.pid).saturating_sub(self.ticks);
        f64::from(u32::try_from(spent).unwrap_or(u32::MAX)) / TICKS_PER_SECOND
    }
}

/// Ticks of a process and the processes it forked; none where there is no such process.
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

/// utime and stime, fields 14 and 15 of proc(5); the second field, a name in parentheses, may hold anything.
fn own_ticks(stat: &str) -> u64 {
    let (_, fields) = stat.rsplit_once(')').unwrap_or_default();
    let times = fields.split_whitespace().skip(11).take(2);
    times.filter_map(|ticks| ticks.parse::<u64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_and_system_time_behind_any_name() {
        let stat = "7 (a) b (c)) S 1 7 7 0 -1 4194304 89 0 0 0 120 34 5 6 20 0 1 0 100";
        assert_eq!(own_ticks(stat), 154);
        assert_eq!(own_ticks(""), 0);
    }
}
