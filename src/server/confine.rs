//! Confines the processes: the parent before it accepts clients, a worker before it serves one.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, fstat};
use rustix::stdio::stderr;

use super::ServeOptions;
use super::disks::Disks;
use crate::image::{Image, PlanDir};
use crate::sandbox::jail::JailedStore;
use crate::sandbox::{self, PATHS_MAX, Process, Reach, SandboxError};

/// Memory limit of a worker, plus the size of plans.
const MEMORY_BYTES: u64 = 2 << 30;

/// Warns of what this kernel lacks for confining processes.
pub(super) fn warn_of_missing_protections(disks: &Disks, options: &ServeOptions) {
    if !options.sandbox {
        return;
    }
    let paths = disks.path_count();
    if paths > PATHS_MAX {
        tracing::warn!(
            "{paths} store paths are too many to be let in one by one ({PATHS_MAX} are not): workers may read all of the \
             store"
        );
    }
    for missing in sandbox::missing_protections() {
        tracing::warn!("{missing}");
    }
}

/// Whether log lines go to a regular file. Must be called before a worker is muted, because that replaces stderr.
pub(super) fn log_is_file() -> bool {
    let log = fstat(stderr()).map(|stat| FileType::from_raw_mode(stat.st_mode));
    log == Ok(FileType::RegularFile)
}

/// Confines a process before it serves one of `disks`, unless the sandbox is disabled. With `logs_to_file` it may extend
/// files. With `jail`, Landlock rules for store paths are unnecessary, because the jail contains no others.
pub(super) fn confine(
    process: Process,
    disks: &Disks,
    options: &ServeOptions,
    status: &[&Path],
    logs_to_file: bool,
    jail: Option<&JailedStore>,
    plan_dir: Option<&PlanDir>,
) -> Result<(), SandboxError> {
    if !options.sandbox {
        return Ok(());
    }
    let reach = Reach {
        store: jail.map_or(disks.first().store_dir(), |jail| jail.dir.as_fd()),
        paths: match jail {
            Some(_) => Vec::new(),
            None => paths(process, disks, options),
        },
        writes_file: options.record.is_some() || logs_to_file || process == Process::PlanKeeper,
        memory_bytes: memory_bytes(disks),
        counts_threads: jail.is_some_and(|jail| jail.counts_threads),
        any_owner: disks.is_tree(),
        cleaned_dirs: cleaned_dirs(disks, options, status),
        written_dirs: written_dirs(options),
        plan_dir: plan_dir.map(AsFd::as_fd),
    };
    sandbox::confine(process, &reach)
}

/// Several times the measured size of a process: stacks, long reads, plans, one very large plan. The planner plans the
/// paths of all disks.
fn memory_bytes(disks: &Disks) -> u64 {
    let plans = disks.images().map(|image| image.plan_cache_bytes() as u64);
    MEMORY_BYTES + 4 * plans.sum::<u64>()
}

/// The served store paths, for the process that is confined first. Its children inherit the Landlock rules. More rules
/// would only cost time in the kernel.
fn paths<'d>(process: Process, disks: &'d Disks, options: &ServeOptions) -> Vec<&'d [u8]> {
    let is_first = match process {
        Process::Listener => true,
        Process::Mounter => false,
        // Landlock forbids mounting, so the parent is not confined by it, and the children are confined first.
        Process::VhostWorker
        | Process::NbdWorker
        | Process::FuseWorker
        | Process::Prefetcher
        | Process::Planner
        | Process::PlanKeeper => options.fuse.is_some(),
    };
    match is_first && !disks.is_tree() {
        true => disks.paths(),
        false => Vec::new(),
    }
}

/// Directories in which the parent or its caller removes files at the end.
fn cleaned_dirs(disks: &Disks, options: &ServeOptions, status: &[&Path]) -> Vec<PathBuf> {
    let removed = options.socket_files().chain(status.iter().copied());
    let removed = removed.chain(options.private_dir.as_deref());
    let removed = removed.chain(options.record.as_deref());
    let pins = disks.images().filter_map(Image::pins_file);
    removed.chain(pins).map(dir_of).collect()
}

fn written_dirs(options: &ServeOptions) -> Vec<PathBuf> {
    let reports = options.report.iter().map(|report| report.file.as_path());
    let files = reports.chain(options.metrics.as_deref());
    files.map(dir_of).collect()
}

fn dir_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir.to_owned(),
        _ => PathBuf::from("."),
    }
}
