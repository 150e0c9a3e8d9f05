//! All system calls but those in `calls` (seccomp).

use std::collections::BTreeMap;

use rustix::process::getpid;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, apply_filter_all_threads,
};

use super::calls::{self, Call};
use super::{Process, SandboxError};

/// Installs the filters of `process`.
///
/// A child has those of its parent too, and a call must pass all of them: a listener's leave its workers all they need.
pub(super) fn apply(process: Process) -> Result<(), SandboxError> {
    let allowed = allowed(process);
    let allow = compile(&allowed, SeccompAction::Allow, refusal())?;
    let deadly = calls::deadly(process).concat();
    if !deadly.is_empty() {
        let kill = compile(&deadly, SeccompAction::KillProcess, SeccompAction::Allow)?;
        apply_filter_all_threads(&kill)?;
    }
    // Last, because it does not allow further filters in a worker.
    Ok(apply_filter_all_threads(&allow)?)
}

/// What only an intruder asks for ends this process; but it may map code, as the C library does when it looks names up.
pub(super) fn end_intruders_that_may_load_libraries() -> Result<(), SandboxError> {
    let loads = [libc::SYS_mmap, libc::SYS_mprotect, libc::SYS_pkey_mprotect];
    let intruders = calls::deadly(Process::Listener).iter();
    let deadly: Vec<Call> = intruders
        .chain([&calls::NAMESPACES])
        .copied()
        .flatten()
        .copied()
        .filter(|call| !loads.contains(&call.number))
        .collect();
    let kill = compile(&deadly, SeccompAction::KillProcess, SeccompAction::Allow)?;
    Ok(apply_filter_all_threads(&kill)?)
}

fn refusal() -> SeccompAction {
    SeccompAction::Errno(libc::ENOSYS.unsigned_abs())
}

fn allowed(process: Process) -> Vec<Call> {
    let mut allowed = calls::allowed(process).concat();
    if process.is_worker() {
        // abort(3), and nobody else's end.
        let own = u64::from(getpid().as_raw_nonzero().get().unsigned_abs());
        allowed.push(Call::when(libc::SYS_tgkill, 0, u32::MAX.into(), own));
    }
    allowed
}

/// A program that gives `listed` to what is listed and `others` to everything else.
fn compile(
    list: &[Call],
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

    const PROCESSES: [Process; 6] = [
        Process::Listener,
        Process::Mounter,
        Process::VhostWorker,
        Process::NbdWorker,
        Process::FuseWorker,
        Process::Prefetcher,
    ];

    #[test]
    fn every_filter_compiles() {
        for process in PROCESSES {
            let allowed = allowed(process);
            assert!(compile(&allowed, SeccompAction::Allow, refusal()).is_ok());
        }
    }

    /// Otherwise a call with conditions in one list and none in another would have conditions.
    #[test]
    fn a_call_has_conditions_in_all_lists_or_in_none() {
        for process in PROCESSES {
            for list in [allowed(process), calls::deadly(process).concat()] {
                for call in &list {
                    let same = |other: &&Call| other.number == call.number;
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
    fn a_listener_leaves_its_workers_all_they_need() {
        let parents = [
            (Process::Listener, Process::VhostWorker),
            (Process::Listener, Process::NbdWorker),
            (Process::Mounter, Process::VhostWorker),
            (Process::Mounter, Process::NbdWorker),
            (Process::Mounter, Process::FuseWorker),
            (Process::Listener, Process::Prefetcher),
        ];
        for (parent, worker) in parents {
            let parents = allowed(parent);
            for call in allowed(worker) {
                let also = |other: &Call| {
                    other.number == call.number
                        && (other.is_unconditional() || other.tests == call.tests)
                };
                assert!(parents.iter().any(also), "{parent:?}: {}", call.number);
            }
        }
    }

    #[test]
    fn nothing_allowed_is_deadly_whatever_its_arguments() {
        for process in PROCESSES {
            let always = |call: &&Call| call.is_unconditional();
            let deadly = calls::deadly(process).concat();
            for call in deadly.iter().filter(always) {
                let same = |other: &Call| other.number == call.number;
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
                assert!(found.any(Call::is_unconditional), "{number}");
            }
        }
    }
}
