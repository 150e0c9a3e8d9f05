//! What the manual pages say beyond the help: sections that man-pages(7) asks for.

/// Names and what they mean.
pub type Entries = &'static [(&'static str, &'static str)];

/// The further sections of one page.
#[derive(Debug, Clone, Copy)]
pub struct Sections {
    /// EXIT STATUS.
    pub exit_status: Entries,
    /// ENVIRONMENT.
    pub environment: Entries,
    /// FILES.
    pub files: Entries,
    /// SEE ALSO, besides lazystore(1).
    pub see_also: &'static [&'static str],
}

impl Sections {
    /// Of the page of a subcommand, or of lazystore itself.
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

const FAILURE: (&str, &str) = ("1", "An error, said in one sentence on standard error.");
const USAGE: (&str, &str) = ("2", "Wrong usage.");
const LOGGING: [(&str, &str); 2] = [
    (
        "RUST_LOG",
        "What is logged, such as debug or lazystore=trace; decides in place of --verbose.",
    ),
    (
        "NO_COLOR",
        "If set and not empty, nothing is coloured on a terminal.",
    ),
];
const DATABASE: (&str, &str) = (
    "/nix/var/nix/db/db.sqlite",
    "Nix's database, read for ROOT and --all; below --store-root if that is given.",
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
            "lazystore run returns the VM's; see lazystore-run(1).",
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
            "Ended by SIGTERM or SIGINT, or with --once after the first VM.",
        ),
        (
            "1",
            "The disk could not be served, or with --once its VM could not; said in one sentence on standard error.",
        ),
        USAGE,
    ],
    environment: &[
        LOGGING[0],
        LOGGING[1],
        (
            "LISTEN_FDS, LISTEN_PID",
            "Sockets that systemd hands over (sd_listen_fds(3)); each is served.",
        ),
        (
            "NOTIFY_SOCKET",
            "Where systemd is told READY=1, STATUS= and STOPPING=1 (sd_notify(3)).",
        ),
    ],
    files: &[
        DATABASE,
        ("/dev/fuse", "For --fuse."),
        (
            "/etc/fuse.conf",
            "Must say user_allow_other for --allow-other by users other than root.",
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
        ("128 + N", "Signal N ended the VM."),
        (
            "125",
            "lazystore itself failed: wrong usage, or the disk cannot be served. It says so in one sentence on standard \
             error.",
        ),
        ("126", "The command cannot be started."),
        ("127", "There is no such command."),
    ],
    environment: &[
        LOGGING[0],
        LOGGING[1],
        (
            "XDG_RUNTIME_DIR",
            "Where the directory for the socket is made; if unset, in TMPDIR or /tmp.",
        ),
    ],
    files: &[
        DATABASE,
        (
            "$XDG_RUNTIME_DIR/lazystore-XXXXXX",
            "Directory with mode 0700 for the socket and the file, removed at the end.",
        ),
        ("/dev/fuse", "For {image}."),
    ],
    see_also: &["lazystore-serve(1)", "lazystore-doctor(1)", "qemu(1)"],
};

const VERIFY: Sections = Sections {
    exit_status: &[
        ("0", "Nothing differs."),
        ("1", "Something differs, or an error."),
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
            "A path cannot be planned, the nid is not one of an inode, or another error.",
        ),
        USAGE,
    ],
    files: &[DATABASE],
    see_also: &["lazystore-verify(1)", "dump.erofs(1)"],
    ..OTHERS
};

const DOCTOR: Sections = Sections {
    exit_status: &[
        ("0", "All that is necessary is there."),
        (
            "1",
            "Something is missing without which no VM gets a disk, or an error.",
        ),
        USAGE,
    ],
    files: &[
        ("/dev/kvm", "Tried with a boot."),
        ("/dev/fuse", "Opened."),
        (
            "/run/current-system/kernel, /boot/vmlinuz-RELEASE",
            "Kernels for the trial boot.",
        ),
        DATABASE,
    ],
    see_also: &["lazystore-run(1)", "qemu(1)"],
    ..OTHERS
};
