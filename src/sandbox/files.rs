//! Landlock: forbids all files except those of the store, the network, and signals to other processes.
//!
//! Landlock checks the directories above a file, even if it is opened relative to an open descriptor. So the store
//! directory needs a rule although it is already open.

use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd,
    Ruleset, RulesetAttr, RulesetCreated, RulesetCreatedAttr, Scope,
};

use rustix::fs::{Mode, OFlags, openat};

use super::{Process, Reach, SandboxError};

/// The newest Landlock ABI that this code was tested with. With an older kernel, everything that it supports is used.
const NEWEST: ABI = ABI::V7;

/// Maximum number of paths that get a rule or a mount each, because the kernel copies all rules for every process that
/// restricts itself further. With more paths, workers may read the whole store.
pub const PATHS_MAX: usize = 4096;

/// The warning if the [`jail`](super::jail) could not be set up; the reason is appended.
pub const NO_JAIL: &str = "workers have no mount namespace of their own, so they can learn names, sizes and link targets \
                           of files that are not served";

/// One sentence for each protection that this kernel lacks. Empty on Linux 6.12 and newer.
pub fn missing_protections() -> Vec<&'static str> {
    let hard = || Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
    let lacks = |abi| hard().handle_access(AccessFs::from_all(abi)).is_err();
    if lacks(ABI::V1) {
        return vec![
            "this kernel has no Landlock (Linux 5.13, in the lsm= list): workers that have no mount namespace of their own \
             may read whatever this user may read",
        ];
    }
    let mut missing = Vec::new();
    if lacks(ABI::V3) {
        missing.push(
            "this kernel's Landlock (before Linux 6.2) lets workers truncate files that this user may write to",
        );
    }
    if hard().scope(Scope::from_all(ABI::V6)).is_err() {
        missing.push(
            "this kernel's Landlock (before Linux 6.12) has no scopes: only the filter of system calls keeps workers \
             from signalling other processes",
        );
    }
    missing
}

/// Restricts `process` to the access that it needs, as far as the kernel supports it.
pub(super) fn restrict(process: Process, reach: &Reach<'_>) -> Result<(), SandboxError> {
    let rules = Ruleset::default()
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?
        .create()?;
    let rules = allow_store(rules, reach)?;
    let rules = match process {
        Process::VhostWorker
        | Process::NbdWorker
        | Process::FuseWorker
        | Process::Prefetcher
        | Process::Planner => rules,
        Process::PlanKeeper => allow_plans(rules, reach)?,
        Process::Listener | Process::Mounter => {
            let remove = AccessFs::RemoveFile | AccessFs::RemoveDir;
            let mut dirs = reach.cleaned_dirs.iter();
            let rules = dirs.try_fold(rules, |rules, dir| allow(rules, dir, remove))?;
            let rules = allow_plans(rules, reach)?;
            let write = AccessFs::MakeReg | AccessFs::WriteFile | AccessFs::Truncate;
            let mut dirs = reach.written_dirs.iter();
            dirs.try_fold(rules, |rules, dir| {
                allow(rules, dir, write | AccessFs::RemoveFile)
            })?
        }
    };
    rules.restrict_self()?;
    Ok(())
}

/// Allows reading the served paths. A path that cannot be opened gets no rule, so reads of it fail.
fn allow_store(
    mut rules: RulesetCreated,
    reach: &Reach<'_>,
) -> Result<RulesetCreated, SandboxError> {
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    if reach.paths.is_empty() || reach.paths.len() > PATHS_MAX {
        return Ok(rules.add_rule(PathBeneath::new(reach.store, read))?);
    }
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    for name in &reach.paths {
        if let Ok(path) = openat(reach.store, *name, flags, Mode::empty()) {
            rules = rules.add_rule(PathBeneath::new(path, read))?;
        }
    }
    Ok(rules)
}

/// Allows reading and replacing files in the directory of kept plans, which is an open descriptor because it has no path in the
/// jail.
fn allow_plans(rules: RulesetCreated, reach: &Reach<'_>) -> Result<RulesetCreated, SandboxError> {
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let write = AccessFs::MakeReg | AccessFs::WriteFile | AccessFs::RemoveFile;
    match reach.plan_dir {
        Some(dir) => Ok(rules.add_rule(PathBeneath::new(dir, read | write))?),
        None => Ok(rules),
    }
}

fn allow(
    rules: RulesetCreated,
    path: &Path,
    access: BitFlags<AccessFs>,
) -> Result<RulesetCreated, SandboxError> {
    Ok(rules.add_rule(PathBeneath::new(PathFd::new(path)?, access))?)
}
