//! New privileges, capabilities, core dumps.

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

/// Threads that a worker may have: it has one for each queue thread (64 at most), and some thirty more.
const THREADS_MAX: u64 = 256;

/// More capabilities than any kernel has: they are the bits of a 64-bit number.
const CAPABILITIES_MAX: u32 = 64;

/// Core dumps would hold the guest's memory.
pub(super) fn disable_core_dumps(process: Process) -> Result<(), SandboxError> {
    limit(Resource::Core, 0, "limit core dumps")?;
    if process.is_worker() {
        set_dumpable_behavior(DumpableBehavior::NotDumpable)
            .map_err(SandboxError::host("forbid core dumps"))?;
    }
    Ok(())
}

/// A worker makes no file longer, unless its log or its recording is one (`Reach::writes_file`).
pub(super) fn limit_files(process: Process, reach: &Reach<'_>) -> Result<(), SandboxError> {
    if !process.is_worker() || reach.writes_file {
        return Ok(());
    }
    limit(Resource::Fsize, 0, "limit the length of files")
}

/// Private memory, that is: the filter lets workers make no other (`calls`).
pub(super) fn limit_memory(process: Process, reach: &Reach<'_>) -> Result<(), SandboxError> {
    if !process.is_worker() {
        return Ok(());
    }
    limit(Resource::Data, reach.memory_bytes, "limit memory")
}

/// The kernel counts for each user in each user namespace, and for root not at all.
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

/// No new privileges, and no capabilities but the one to write below `dir` if that belongs to somebody else.
pub(super) fn renounce_all_but_files_of(dir: &Path) -> Result<(), SandboxError> {
    keep_only(match is_foreign(dir) {
        true => CapabilitySet::DAC_OVERRIDE,
        false => CapabilitySet::empty(),
    })
}

/// Whether this process mounts itself, and needs no set-user-ID program for it.
pub(super) fn may_mount() -> Result<bool, SandboxError> {
    Ok(held()?.effective.contains(CapabilitySet::SYS_ADMIN))
}

/// No new privileges, and none but the necessary capabilities.
pub(super) fn renounce(process: Process, reach: &Reach<'_>) -> Result<(), SandboxError> {
    keep_only(necessary(process, reach))
}

/// No new privileges, and of the capabilities that are held only `wanted`.
fn keep_only(wanted: CapabilitySet) -> Result<(), SandboxError> {
    set_no_new_privs(true).map_err(SandboxError::host("renounce new privileges"))?;
    empty_bounding_set()?;
    let held = held()?;
    let kept = wanted & held.permitted;
    let sets = CapabilitySets {
        effective: kept,
        permitted: kept,
        // The ambient set shrinks with this one (capabilities(7)).
        inheritable: CapabilitySet::empty(),
    };
    // A system call that systemd's filter may forbid to a service without capabilities.
    if held == sets {
        return Ok(());
    }
    set_capabilities(None, sets).map_err(SandboxError::host("drop capabilities"))
}

fn held() -> Result<CapabilitySets, SandboxError> {
    capabilities(None).map_err(SandboxError::host("look at capabilities"))
}

/// A listener has what its workers need, too.
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

/// Removing a file from there takes more than being root.
fn is_foreign(dir: &Path) -> bool {
    !fs::metadata(dir).is_ok_and(|metadata| metadata.uid() == geteuid().as_raw())
}

/// Only a process with `CAP_SETPCAP` may do that; others gain nothing from the set, having no new privileges.
fn empty_bounding_set() -> Result<(), SandboxError> {
    for bit in 0..CAPABILITIES_MAX {
        match remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << bit)) {
            Ok(()) => {}
            // Not allowed; no more capabilities.
            Err(Errno::PERM | Errno::INVAL) => break,
            Err(errno) => return Err(SandboxError::host("drop capabilities for good")(errno)),
        }
    }
    Ok(())
}
