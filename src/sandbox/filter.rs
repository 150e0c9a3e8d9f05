//! Seccomp: forbids all system calls except those listed in `calls`.

use std::collections::BTreeMap;

use rustix::process::getpid;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, apply_filter_all_threads,
};

use super::calls::{self, CallRule};
use super::{Process, SandboxError};

/// Installs the filters of `process`.
///
/// A child inherits its parent's filters, and a call must pass all of them. So the filters of a listener must allow
/// everything that its workers need.
pub(super) fn apply(process: Process) -> Result<(), SandboxError> {
    let allowed = allowed(process);
    let allow = compile(&allowed, SeccompAction::Allow, refusal())?;
    let fatal = calls::fatal(process).concat();
    if !fatal.is_empty() {
        let kill = compile(&fatal, SeccompAction::KillProcess, SeccompAction::Allow)?;
        apply_filter_all_threads(&kill)?;
    }
    // Must be last: a worker's allowlist forbids installing further filters.
    Ok(apply_filter_all_threads(&allow)?)
}

/// Installs a filter that kills the fetcher on fatal calls. Unlike other processes it may map executable memory,
/// because the C library loads NSS modules.
pub(super) fn apply_to_fetcher() -> Result<(), SandboxError> {
    let loads = [libc::SYS_mmap, libc::SYS_mprotect, libc::SYS_pkey_mprotect];
    let fatal: Vec<CallRule> = calls::fatal(Process::Listener)
        .iter()
        .chain([&calls::NAMESPACES])
        .copied()
        .flatten()
        .copied()
        .filter(|call| !loads.contains(&call.number))
        .collect();
    let kill = compile(&fatal, SeccompAction::KillProcess, SeccompAction::Allow)?;
    Ok(apply_filter_all_threads(&kill)?)
}

fn refusal() -> SeccompAction {
    SeccompAction::Errno(libc::ENOSYS.unsigned_abs())
}

fn allowed(process: Process) -> Vec<CallRule> {
    let mut allowed = calls::allowed(process).concat();
    if process.is_worker() {
        // abort(3) uses tgkill(2). Allow it only for this process.
        let own = u64::from(getpid().as_raw_nonzero().get().unsigned_abs());
        allowed.push(CallRule::when(libc::SYS_tgkill, 0, u32::MAX.into(), own));
    }
    allowed
}

/// Compiles a filter with the action `listed` for the calls in `list`, and `others` for all other calls.
fn compile(
    list: &[CallRule],
    listed: SeccompAction,
    others: SeccompAction,
) -> Result<BpfProgram, SandboxError> {
    let mut rules = BTreeMap::<i64, Vec<SeccompRule>>::new();
    for call in list {
        let rules = rules.entry(call.number).or_default();
        let conditions: Vec<_> = call
            .tests
            .iter()
            .flatten()
            .map(|test| {
                let equal = SeccompCmpOp::MaskedEq(test.mask);
                SeccompCondition::new(test.argument, SeccompCmpArgLen::Qword, equal, test.value)
            })
            .collect::<Result<_, _>>()?;
        if !conditions.is_empty() {
            rules.push(SeccompRule::new(conditions)?);
        }
    }
    let arch = std::env::consts::ARCH.try_into()?;
    Ok(SeccompFilter::new(rules, others, listed, arch)?.try_into()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROCESSES: [Process; 8] = [
        Process::Listener,
        Process::Mounter,
        Process::VhostWorker,
        Process::NbdWorker,
        Process::FuseWorker,
        Process::Prefetcher,
        Process::Planner,
        Process::PlanKeeper,
    ];

    #[test]
    fn every_filter_compiles() {
        for process in PROCESSES {
            let allowed = allowed(process);
            assert!(compile(&allowed, SeccompAction::Allow, refusal()).is_ok());
        }
    }

    /// `compile` would lose an unconditional entry if the same list also had the call with conditions.
    #[test]
    fn a_call_is_conditional_in_all_lists_or_in_none() {
        for process in PROCESSES {
            for list in [allowed(process), calls::fatal(process).concat()] {
                for call in &list {
                    let same = |other: &&CallRule| other.number == call.number;
                    let with = list
                        .iter()
                        .filter(same)
                        .filter(|call| !call.is_unconditional());
                    let all = list.iter().filter(same).count();
                    let with = with.count();
                    assert!(with == 0 || with == all, "{process:?}: {}", call.number);
                }
            }
        }
    }

    #[test]
    fn a_listener_may_make_all_calls_of_its_workers() {
        let parents = [
            (Process::Listener, Process::VhostWorker),
            (Process::Listener, Process::NbdWorker),
            (Process::Mounter, Process::VhostWorker),
            (Process::Mounter, Process::NbdWorker),
            (Process::Mounter, Process::FuseWorker),
            (Process::Listener, Process::Prefetcher),
            (Process::Listener, Process::Planner),
            (Process::Mounter, Process::Planner),
            (Process::Listener, Process::PlanKeeper),
            (Process::Mounter, Process::PlanKeeper),
        ];
        for (parent, worker) in parents {
            let parents = allowed(parent);
            for call in allowed(worker) {
                let also = |other: &CallRule| {
                    other.number == call.number
                        && (other.is_unconditional() || other.tests == call.tests)
                };
                assert!(parents.iter().any(also), "{parent:?}: {}", call.number);
            }
        }
    }

    #[test]
    fn no_allowed_call_is_unconditionally_fatal() {
        for process in PROCESSES {
            let always = |call: &&CallRule| call.is_unconditional();
            let fatal = calls::fatal(process).concat();
            for call in fatal.iter().filter(always) {
                let same = |other: &CallRule| other.number == call.number;
                assert!(!allowed(process).iter().any(same), "{}", call.number);
            }
        }
    }

    #[test]
    fn the_data_path_has_no_conditions() {
        let hot = [
            libc::SYS_preadv,
            libc::SYS_preadv2,
            libc::SYS_pread64,
            libc::SYS_read,
            libc::SYS_write,
            libc::SYS_writev,
            libc::SYS_futex,
            libc::SYS_epoll_pwait,
            libc::SYS_openat2,
            libc::SYS_statx,
            libc::SYS_close,
            libc::SYS_sched_yield,
        ];
        for number in hot {
            for process in PROCESSES {
                let list = allowed(process);
                let mut found = list.iter().filter(|call| call.number == number);
                assert!(found.any(CallRule::is_unconditional), "{number}");
            }
        }
    }
}
