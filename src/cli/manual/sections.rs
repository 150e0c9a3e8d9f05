//! Sections of the manual pages that are not in the help, following man-pages(7).

/// Names and their meanings.
pub type Entries = &'static [(&'static str, &'static str)];

/// The additional sections of one page.
#[derive(Debug, Clone, Copy)]
pub struct Sections {
    /// EXIT STATUS.
    pub exit_status: Entries,
    /// ENVIRONMENT.
    pub environment: Entries,
    /// FILES.
    pub files: Entries,
    /// SEE ALSO, in addition to lazystore(1).
    pub see_also: &'static [&'static str],
}

impl Sections {
    /// Returns the sections for a subcommand, or for lazystore itself.
    pub fn of(subcommand: Option<&str>) -> Self {
        match subcommand {
            None => MAIN,
            Some("run") => RUN,
            Some("serve") => SERVE,
            Some("verify") => VERIFY,
            Some("inspect" | "fingerprint") => INSPECT,
            Some("doctor") => DOCTOR,
            Some(_) => OTHERS,
        }
    }
}

const FAILURE: (&str, &str) = ("1", "An error, with a message on standard error.");
const USAGE: (&str, &str) = ("2", "Wrong usage.");
const LOGGING: [(&str, &str); 2] = [
    (
        "RUST_LOG",
        "What to log, such as debug or lazystore=trace; overrides --verbose.",
    ),
    ("NO_COLOR", "If set and not empty, output has no colours."),
];
const DATABASE: (&str, &str) = (
    "/nix/var/nix/db/db.sqlite",
    "Nix's database, read for ROOT and --all; with --store-root, inside that directory.",
);

const OTHERS: Sections = Sections {
    exit_status: &[("0", "Success."), FAILURE, USAGE],
    environment: &LOGGING,
    files: &[],
    see_also: &[],
};

const MAIN: Sections = Sections {
    exit_status: &[
        ("0", "Success."),
        FAILURE,
        USAGE,
        (
            "others",
            "lazystore run returns the exit status of the VM; see lazystore-run(1).",
        ),
    ],
    files: &[DATABASE],
    see_also: &[
        "lazystore-run(1)",
        "lazystore-serve(1)",
        "lazystore-verify(1)",
        "lazystore-inspect(1)",
        "lazystore-doctor(1)",
        "nix-store(1)",
        "qemu(1)",
        "fsck.erofs(1)",
    ],
    ..OTHERS
};

const SERVE: Sections = Sections {
    exit_status: &[
        (
            "0",
            "Stopped by SIGTERM or SIGINT, or with --once after the first VM.",
        ),
        (
            "1",
            "The disk, or with --once its VM, could not be served; with a message on standard error.",
        ),
        USAGE,
    ],
    environment: &[
        LOGGING[0],
        LOGGING[1],
        (
            "LISTEN_FDS, LISTEN_PID",
            "Sockets passed by systemd (sd_listen_fds(3)); each is served.",
        ),
        (
            "NOTIFY_SOCKET",
            "Socket for READY=1, STATUS= and STOPPING=1 to systemd (sd_notify(3)).",
        ),
    ],
    files: &[
        DATABASE,
        ("/dev/fuse", "For --fuse."),
        (
            "/etc/fuse.conf",
            "Must contain user_allow_other for --allow-other by users other than root.",
        ),
        (
            "/etc/lazystore/NAME.conf",
            "What the unit lazystore@NAME.service serves: CLOSURE=--closure-info DIR, for example.",
        ),
        (
            "/run/lazystore/NAME.sock",
            "The socket of lazystore@NAME.socket.",
        ),
    ],
    see_also: &[
        "lazystore-run(1)",
        "nix-store(1)",
        "qemu(1)",
        "fusermount3(1)",
        "systemd.socket(5)",
    ],
};

const RUN: Sections = Sections {
    exit_status: &[
        ("N", "The VM ended with exit code N."),
        ("128 + N", "The VM was killed by signal N."),
        (
            "125",
            "lazystore itself failed: wrong usage, or the disk cannot be served. The message is on standard error.",
        ),
        ("126", "The command cannot be started."),
        ("127", "There is no such command."),
    ],
    environment: &[
        LOGGING[0],
        LOGGING[1],
        (
            "XDG_RUNTIME_DIR",
            "Directory in which the directory for the socket is created; if unset, TMPDIR or /tmp.",
        ),
    ],
    files: &[
        DATABASE,
        (
            "$XDG_RUNTIME_DIR/lazystore-XXXXXX",
            "Directory with mode 0700 for the socket and the file, removed on exit.",
        ),
        ("/dev/fuse", "For {image}."),
    ],
    see_also: &["lazystore-serve(1)", "lazystore-doctor(1)", "qemu(1)"],
};

const VERIFY: Sections = Sections {
    exit_status: &[
        ("0", "No differences."),
        ("1", "Differences, or an error."),
        USAGE,
    ],
    files: &[DATABASE],
    see_also: &["lazystore-inspect(1)", "nix-store(1)", "fsck.erofs(1)"],
    ..OTHERS
};

const INSPECT: Sections = Sections {
    exit_status: &[
        ("0", "Success."),
        (
            "1",
            "A path cannot be planned, the nid is not an inode, or another error.",
        ),
        USAGE,
    ],
    files: &[DATABASE],
    see_also: &["lazystore-verify(1)", "dump.erofs(1)"],
    ..OTHERS
};

const DOCTOR: Sections = Sections {
    exit_status: &[
        ("0", "Nothing indispensable is missing."),
        (
            "1",
            "Something indispensable for serving a disk to a VM is missing, or an error.",
        ),
        USAGE,
    ],
    files: &[
        ("/dev/kvm", "Checked with a trial boot."),
        ("/dev/fuse", "Checked by opening it."),
        (
            "/run/current-system/kernel, /boot/vmlinuz-RELEASE",
            "Kernels for the trial boot.",
        ),
        DATABASE,
    ],
    see_also: &["lazystore-run(1)", "qemu(1)"],
    ..OTHERS
};
