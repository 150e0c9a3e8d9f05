//! All files but the store's, the network, other processes (Landlock).
//!
//! Access is decided by the directories above a file, whatever descriptor it is opened through: the store's directory
//! needs a rule although it is open already.

use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd,
    Ruleset, RulesetAttr, RulesetCreated, RulesetCreatedAttr, Scope,
};

use super::{Process, Reach, SandboxError};

/// The newest interface that this was run with; of an older one all there is is used.
const NEWEST: ABI = ABI::V7;

/// Where fuser opens one more descriptor for each of its threads.
const FUSE_DEVICE: &str = "/dev/fuse";

/// Where the listener counts its threads before it forks.
const THREADS: &str = "/proc/self/task";

/// Whether this kernel cannot confine a process to some files.
pub fn is_landlock_missing() -> bool {
    Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(ABI::V1))
        .is_err()
}

/// Leaves `process` what it needs, as far as the kernel can.
pub(super) fn restrict(process: Process, reach: &Reach<'_>) -> Result<(), SandboxError> {
    let rules = Ruleset::default()
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?
        .create()?
        .add_rule(PathBeneath::new(
            reach.store,
            AccessFs::ReadFile | AccessFs::ReadDir,
        ))?;
    let rules = match process {
        Process::VhostWorker | Process::Prefetcher => rules,
        Process::FuseWorker => {
            let device = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::IoctlDev;
            allow(rules, FUSE_DEVICE.as_ref(), device)?
        }
        Process::Listener | Process::Mounter => {
            let rules = allow(rules, THREADS.as_ref(), AccessFs::ReadDir.into())?;
            let remove = AccessFs::RemoveFile | AccessFs::RemoveDir;
            let mut dirs = reach.cleaned_dirs.iter();
            dirs.try_fold(rules, |rules, dir| allow(rules, dir, remove))?
        }
    };
    rules.restrict_self()?;
    Ok(())
}

fn allow(
    rules: RulesetCreated,
    path: &Path,
    access: BitFlags<AccessFs>,
) -> Result<RulesetCreated, SandboxError> {
    Ok(rules.add_rule(PathBeneath::new(PathFd::new(path)?, access))?)
}
