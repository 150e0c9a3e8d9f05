//! Confinement of the fetcher process. It parses data from the network, but has no contact with guests.
//!
//! It keeps access to the network, read access to files (certificates, resolv.conf, NSS libraries) and its cache
//! directory. Its libraries may make many different calls, so there is no allowlist of system calls, only a list of
//! fatal ones.

use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreatedAttr, Scope,
};

use super::{SandboxError, filter, rights};

/// Older versions forbid moving files between directories, which is how downloaded files are put in place.
const NEEDED: ABI = ABI::V2;

/// The newest Landlock ABI that this code was tested with.
const NEWEST: ABI = ABI::V7;

/// Confines the calling process, which must have one thread. It may write only below `dir`.
///
/// # Errors
/// A system call fails. The process may then be partially confined.
pub fn confine_fetcher(dir: &Path) -> Result<(), SandboxError> {
    rights::drop_all_but_files_of(dir)?;
    let hard = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
    if hard.handle_access(AccessFs::from_all(NEEDED)).is_ok() {
        restrict(dir)?;
    }
    filter::apply_to_fetcher()
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
