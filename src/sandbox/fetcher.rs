//! The process that fetches: it reads what strangers send, and meets no guest.
//!
//! It keeps the network, reading files (certificates, resolv.conf, libraries that look names up) and its cache directory. So
//! there is no list of what it may call, only one of what ends it.

use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreatedAttr, Scope,
};

use super::{SandboxError, filter, rights};

/// Without it a file cannot be moved to another directory, which is how files get their names.
const NEEDED: ABI = ABI::V2;

/// The newest interface that this was run with.
const NEWEST: ABI = ABI::V7;

/// Confines the calling process, which must have one thread, and which writes below `dir` only.
///
/// # Errors
/// The kernel refuses; the process may be confined in part then.
pub fn confine_fetcher(dir: &Path) -> Result<(), SandboxError> {
    rights::renounce_all_but_files_of(dir)?;
    let hard = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
    if hard.handle_access(AccessFs::from_all(NEEDED)).is_ok() {
        restrict(dir)?;
    }
    filter::end_intruders_that_may_load_libraries()
}

fn restrict(dir: &Path) -> Result<(), SandboxError> {
    let all = AccessFs::from_all(NEWEST);
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    Ruleset::default()
        .handle_access(all)?
        .handle_access(AccessNet::BindTcp)?
        .scope(Scope::Signal)?
        .create()?
        .add_rule(PathBeneath::new(PathFd::new("/")?, read))?
        .add_rule(PathBeneath::new(PathFd::new(dir)?, all))?
        .restrict_self()?;
    Ok(())
}
