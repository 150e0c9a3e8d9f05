use std::ffi::OsString;
use std::path::Path;

/// Why a command cannot use the disk as it stands.
#[derive(Debug, thiserror::Error)]
pub enum VmmError {
    /// Nothing to start.
    #[error("there is no command: write it after --")]
    NoCommand,
    /// Its arguments are not known.
    #[error(
        "{} is not known to lazystore (QEMU, cloud-hypervisor and crosvm are): write {{socket}} where its arguments \
         take the disk's vhost-user-blk socket, {{nbd}} for its NBD socket, or {{image}} where they take the disk as a file",
        Path::new(program).display()
    )]
    UnknownProgram {
        /// What was to be started.
        program: OsString,
    },
    /// Saving something else than QEMU.
    #[error("--snapshot saves and restores QEMU, and no other program")]
    SnapshotOfOther,
    /// NBD, and not QEMU.
    #[error(
        "--nbd gives the disk to QEMU; for another program write {{nbd}} where its arguments take the NBD socket's path"
    )]
    NoNbd,
    /// crosvm, but not to run a VM.
    #[error("crosvm starts a VM with `crosvm run`: write `run` after it")]
    NotCrosvmRun,
    /// QEMU would go into the background.
    #[error(
        "QEMU must stay in the foreground, because the disk ends with it: leave out -daemonize"
    )]
    Daemonize,
    /// A backend that the other process cannot see.
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
    /// Two sizes for one memory.
    #[error("-m says {memory}, and the memory backend \"{id}\" has {backend}: make them equal")]
    SizeDiffers {
        /// By `-m`.
        memory: String,
        /// Which backend.
        id: String,
        /// By the backend.
        backend: String,
    },
    /// A size that cannot be read.
    #[error("\"{text}\" is no size of memory that QEMU knows: write, for example, -m 2G")]
    Size {
        /// What stands there.
        text: String,
    },
    /// cloud-hypervisor's memory is private.
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
