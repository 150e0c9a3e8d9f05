//! Privileges, capabilities and resource limits.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::io::Errno;
use rustix::process::{
    DumpableBehavior, Resource, Rlimit, geteuid, set_dumpable_behavior, setrlimit,
};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, remove_capability_from_bounding_set,
    set_capabilities, set_no_new_privs,
};

use super::{Process, Reach, SandboxError};

/// Maximum number of threads of a worker. It uses one per queue (at most 64) and about thirty more.
const THREADS_MAX: u64 = 256;

/// Upper bound of capability numbers: the kernel stores them as bits of a 64-bit number.
const CAPABILITIES_MAX: u32 = 64;

/// Disables core dumps, which would contain guest memory.
pub(super) fn disable_core_dumps(process: Process) -> Result<(), SandboxError> {
    limit(Resource::Core, 0, "limit core dumps")?;
    if process.is_worker() {
        set_dumpable_behavior(DumpableBehavior::NotDumpable)
            .map_err(SandboxError::host("forbid core dumps"))?;
    }
    Ok(())
}

/// Forbids a worker to extend files, unless its log or recording is a file (`Reach::writes_file`).
pub(super) fn limit_files(process: Process, reach: &Reach<'_>) -> Result<(), SandboxError> {
    if !process.is_worker() || reach.writes_file {
        return Ok(());
    }
    limit(Resource::Fsize, 0, "limit the length of files")
}

/// Limits a worker's private memory. The filter forbids workers to create shared memory (`calls`).
pub(super) fn limit_memory(process: Process, reach: &Reach<'_>) -> Result<(), SandboxError> {
    if !process.is_worker() {
        return Ok(());
    }
    limit(Resource::Data, reach.memory_bytes, "limit memory")
}

/// Limits a worker's threads. The kernel counts threads per user and user namespace, and does not limit root.
pub(super) fn limit_threads(process: Process, reach: &Reach<'_>) -> Result<(), SandboxError> {
    if !process.is_worker() || !reach.counts_threads {
        return Ok(());
    }
    limit(Resource::Nproc, THREADS_MAX, "limit threads")
}

fn limit(resource: Resource, value: u64, action: &'static str) -> Result<(), SandboxError> {
    let limit = Rlimit {
        current: Some(value),
        maximum: Some(value),
    };
    setrlimit(resource, limit).map_err(SandboxError::host(action))
}

/// Sets no_new_privs and drops all capabilities, except for CAP_DAC_OVERRIDE if `dir` belongs to another user.
pub(super) fn drop_all_but_files_of(dir: &Path) -> Result<(), SandboxError> {
    keep_only(match is_foreign(dir) {
        true => CapabilitySet::DAC_OVERRIDE,
        false => CapabilitySet::empty(),
    })
}

/// Returns whether this process may call mount(2) and needs no set-user-ID program for that.
pub(super) fn may_mount() -> Result<bool, SandboxError> {
    Ok(held()?.effective.contains(CapabilitySet::SYS_ADMIN))
}

/// Sets no_new_privs and drops all unnecessary capabilities.
pub(super) fn drop_privileges(process: Process, reach: &Reach<'_>) -> Result<(), SandboxError> {
    keep_only(necessary(process, reach))
}

/// Sets no_new_privs and drops all capabilities except `wanted`.
fn keep_only(wanted: CapabilitySet) -> Result<(), SandboxError> {
    set_no_new_privs(true).map_err(SandboxError::host("renounce new privileges"))?;
    empty_bounding_set()?;
    let held = held()?;
    let kept = wanted & held.permitted;
    let sets = CapabilitySets {
        effective: kept,
        permitted: kept,
        // This also empties the ambient set (capabilities(7)).
        inheritable: CapabilitySet::empty(),
    };
    // Skip capset(2) if nothing changes: systemd's filter may forbid it to a service without capabilities.
    if held == sets {
        return Ok(());
    }
    set_capabilities(None, sets).map_err(SandboxError::host("drop capabilities"))
}

fn held() -> Result<CapabilitySets, SandboxError> {
    capabilities(None).map_err(SandboxError::host("look at capabilities"))
}

/// Returns the capabilities that `process` needs. A listener also needs those of its workers.
fn necessary(process: Process, reach: &Reach<'_>) -> CapabilitySet {
    let mut sets = CapabilitySet::empty();
    if reach.any_owner {
        sets |= CapabilitySet::DAC_READ_SEARCH;
    }
    if process == Process::Mounter {
        sets |= CapabilitySet::SYS_ADMIN | CapabilitySet::DAC_READ_SEARCH;
    }
    let mut dirs = reach.cleaned_dirs.iter().chain(&reach.written_dirs);
    if !process.is_worker() && dirs.any(|dir| is_foreign(dir)) {
        sets |= CapabilitySet::DAC_OVERRIDE;
    }
    sets
}

/// Returns whether `dir` belongs to another user. Root then needs CAP_DAC_OVERRIDE to write there.
fn is_foreign(dir: &Path) -> bool {
    !fs::metadata(dir).is_ok_and(|metadata| metadata.uid() == geteuid().as_raw())
}

/// Empties the bounding set, if this process has `CAP_SETPCAP`. For others the set does not matter, because
/// no_new_privs keeps them from gaining capabilities.
fn empty_bounding_set() -> Result<(), SandboxError> {
    for bit in 0..CAPABILITIES_MAX {
        match remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << bit)) {
            Ok(()) => {}
            // EPERM: no CAP_SETPCAP. EINVAL: there are no more capabilities.
            Err(Errno::PERM | Errno::INVAL) => break,
            Err(errno) => return Err(SandboxError::host("drop capabilities for good")(errno)),
        }
    }
    Ok(())
}
