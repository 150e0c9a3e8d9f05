//! Checks of the kernel and of files on the host.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::thread;

use landlock::{AccessFs, LandlockStatus, Ruleset, RulesetAttr};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
use rustix::process::{Resource, getrlimit};

use super::Finding;

/// Number of descriptors with which a big closure can be served without constantly reopening files.
const OPEN_FILES_ENOUGH: u64 = 4096;

const DATABASE: &str = "/nix/var/nix/db/db.sqlite";

/// Checks openat2(2), the only system call that is indispensable.
pub fn kernel() -> Finding {
    let version = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let version = format!("Linux {}", version.trim());
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    match openat2(CWD, "/", flags, Mode::empty(), ResolveFlags::NO_SYMLINKS) {
        Ok(_) => Finding::ok("kernel", version),
        Err(errno) => Finding::missing(
            "kernel",
            format!("{version}, without openat2 ({errno})"),
            "use Linux 5.6 or newer, and let the container's seccomp profile allow openat2",
        ),
    }
}

pub fn fuse() -> Finding {
    match OpenOptions::new().read(true).write(true).open("/dev/fuse") {
        Ok(_) => Finding::ok("/dev/fuse", "usable, for --fuse"),
        Err(error) => Finding::note("/dev/fuse", error.to_string(), fuse_remedy(&error)),
    }
}

fn fuse_remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        ErrorKind::PermissionDenied => {
            "only --fuse needs it: its mode should be 0666 (chmod 666 /dev/fuse), and a container's device rules must \
             let it in"
        }
        _ => "only --fuse needs it: modprobe fuse, or give the container the device",
    }
}

pub fn open_files() -> Finding {
    let limit = getrlimit(Resource::Nofile).maximum;
    match limit {
        Some(limit) if limit < OPEN_FILES_ENOUGH => Finding::note(
            "open files",
            format!("{limit} at most"),
            format!(
                "raise the hard limit to {OPEN_FILES_ENOUGH} or more (ulimit -Hn, LimitNOFILE=)"
            ),
        ),
        Some(limit) => Finding::ok("open files", format!("{limit} at most")),
        None => Finding::ok("open files", "no limit"),
    }
}

/// Landlock restricts the calling thread for good, so the check runs in a thread of its own.
pub fn landlock() -> Finding {
    let confined = thread::spawn(|| {
        let ruleset = Ruleset::default().handle_access(AccessFs::Execute)?;
        ruleset.create()?.restrict_self()
    });
    let remedy = "add landlock to the kernel's lsm= list; without it the server has one layer of confinement less";
    match confined.join() {
        Ok(Ok(status)) => match status.landlock {
            LandlockStatus::Available { effective_abi, .. } => {
                Finding::ok("Landlock", format!("ABI {}", effective_abi as i32))
            }
            LandlockStatus::NotEnabled => Finding::note("Landlock", "not enabled", remedy),
            LandlockStatus::NotImplemented => {
                Finding::note("Landlock", "not in this kernel", "use Linux 5.13 or newer")
            }
        },
        Ok(Err(error)) => Finding::note("Landlock", error.to_string(), remedy),
        Err(_) => Finding::note("Landlock", "the check panicked", remedy),
    }
}

/// lazystore does not use io_uring, but QEMU does with `aio=io_uring` on the file.
pub fn io_uring() -> Finding {
    let remedy =
        "only -drive ...,aio=io_uring on the file needs it: sysctl kernel.io_uring_disabled=0";
    match fs::read_to_string("/proc/sys/kernel/io_uring_disabled") {
        Ok(text) if text.trim() == "0" => {
            Finding::ok("io_uring", "not disabled (QEMU may use it on the file)")
        }
        Ok(text) => Finding::note(
            "io_uring",
            format!("kernel.io_uring_disabled={}", text.trim()),
            remedy,
        ),
        Err(_) => Finding::ok("io_uring", "cannot be disabled in this kernel"),
    }
}

/// Only needed to mount the file on the host; the guest's kernel is not checked.
pub fn erofs() -> Finding {
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if known
        .lines()
        .any(|line| line.trim_end().ends_with("\terofs"))
    {
        return Finding::ok("erofs", "in this kernel (the guest's needs it too)");
    }
    Finding::note(
        "erofs",
        "not loaded in this kernel",
        "only mounting the file on this host needs it: modprobe erofs; the guest's kernel must have it anyway",
    )
}

pub fn nix_database() -> Finding {
    /// Magic of SQLite databases (sqlite.org/fileformat2.html).
    const MAGIC: &[u8; 16] = b"SQLite format 3\0";
    let remedy = "give closures as --closure-info or --store-paths with --registration";
    let mut found = [0; 16];
    match File::open(DATABASE).and_then(|mut file| file.read_exact(&mut found)) {
        Ok(()) if found == *MAGIC => Finding::ok("Nix database", format!("{DATABASE} is readable")),
        Ok(()) => Finding::note(
            "Nix database",
            format!("{DATABASE} is not an SQLite database"),
            remedy,
        ),
        Err(error) => Finding::note("Nix database", format!("{DATABASE}: {error}"), remedy),
    }
}
