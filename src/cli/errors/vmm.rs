use std::ffi::OsString;
use std::path::Path;

/// Why a VM's command line cannot be combined with the disk.
#[derive(Debug, thiserror::Error)]
pub enum VmmError {
    /// The command is missing.
    #[error("there is no command: write it after --")]
    NoCommand,
    /// The program is unknown, so its arguments cannot be adapted.
    #[error(
        "{} is not known to lazystore (QEMU, cloud-hypervisor and crosvm are): write {{socket}} where its arguments \
         take the disk's vhost-user-blk socket, {{nbd}} for its NBD socket, or {{image}} where they take the disk as a file",
        Path::new(program).display()
    )]
    UnknownProgram {
        /// The program.
        program: OsString,
    },
    /// `--snapshot` with another program than QEMU.
    #[error("--snapshot saves and restores QEMU, and no other program")]
    SnapshotOfOther,
    /// `--nbd` with another program than QEMU.
    #[error(
        "--nbd gives the disk to QEMU; for another program write {{nbd}} where its arguments take the NBD socket's path"
    )]
    NoNbd,
    /// crosvm without its subcommand `run`.
    #[error("crosvm starts a VM with `crosvm run`: write `run` after it")]
    NotCrosvmRun,
    /// QEMU with `-daemonize`.
    #[error(
        "QEMU must stay in the foreground, because the disk ends with it: leave out -daemonize"
    )]
    Daemonize,
    /// A memory backend that is not shared with other processes.
    #[error(
        "the VM's memory must be shared with the disk's server, and {what} does not share it: add share=on, or leave \
         it out and lazystore adds a backend that does"
    )]
    NotShared {
        /// The option.
        what: String,
    },
    /// `-mem-path` makes memory that is not shared.
    #[error(
        "-mem-path gives the VM memory that is not shared: use -object memory-backend-file,id=mem,size=SIZE,\
         mem-path={path},share=on instead"
    )]
    MemPath {
        /// Its argument.
        path: String,
    },
    /// `-m` and the memory backend have different sizes.
    #[error("-m says {memory}, and the memory backend \"{id}\" has {backend}: make them equal")]
    SizeDiffers {
        /// The size given with `-m`.
        memory: String,
        /// Id of the backend.
        id: String,
        /// The size of the backend.
        backend: String,
    },
    /// A memory size that cannot be parsed.
    #[error("\"{text}\" is not a memory size that QEMU accepts: write, for example, -m 2G")]
    Size {
        /// The size as given.
        text: String,
    },
    /// cloud-hypervisor with private memory.
    #[error(
        "{option} {value} keeps the VM's memory private: write shared=on, which the disk needs"
    )]
    SharedOff {
        /// Which option.
        option: &'static str,
        /// Its argument.
        value: String,
    },
}
