//! A mount namespace that contains only the served paths.
//!
//! All workers of a server share one jail. A separate short-lived process, the builder, sets it up. It creates a user
//! namespace, because only that lets an ordinary user mount, and because its owner can enter it without further
//! privileges. In it, it creates a mount namespace whose root is an empty tmpfs with a bind mount of each store path.
//! Workers enter both namespaces before they drop their privileges. All earlier mounts are detached, not only hidden,
//! so that the jail does not keep host file systems from being unmounted.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use nix::sched::CloneFlags;
use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, mkdirat, open, openat};
use rustix::io::{Errno, FdFlags, fcntl_setfd};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen,
    mount_change, move_mount, open_tree, unmount,
};
use rustix::process::{Pid, fchdir, getegid, geteuid, pivot_root};
use rustix::system::uname;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::error::{JailError, SandboxError};

/// Name of the store directory in the jail's root.
const STORE: &str = "store";

/// What to mount in a jail.
#[derive(Debug)]
pub struct JailSpec<'a> {
    /// Path of the store directory.
    pub store: &'a Path,
    /// The store directory, opened earlier; `store` must still be the same directory.
    pub opened: BorrowedFd<'a>,
    /// Which of its entries are served.
    pub contents: JailContents<'a>,
}

/// The part of the store to mount in a jail.
#[derive(Debug)]
pub enum JailContents<'a> {
    /// All of it.
    All,
    /// These entries.
    Entries(Vec<&'a [u8]>),
}

/// The store in a jail, for a process that has entered it or whose children enter it.
#[derive(Debug)]
pub struct JailedStore {
    /// The store directory in the jail. Outside, it only serves to name it in a Landlock rule.
    pub dir: OwnedFd,
    /// This process has its own user namespace, so RLIMIT_NPROC counts only its threads.
    pub counts_threads: bool,
}

/// The namespaces of a builder. They outlive that process.
#[derive(Debug)]
pub struct Namespaces {
    user: OwnedFd,
    mounts: OwnedFd,
    /// Each worker also gets its own nested user namespace, for RLIMIT_NPROC.
    own_namespaces: bool,
}

/// A finished jail.
#[derive(Debug)]
pub struct Jail {
    namespaces: Namespaces,
    store: JailedStore,
}

/// Which user and group ids are mapped in a jail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ids {
    /// All ids, unchanged.
    All,
    /// Only the ids of this process.
    Own,
}

/// Moves the calling process (the builder) to new user and mount namespaces.
///
/// # Errors
/// The kernel does not let this user create namespaces.
pub fn unshare() -> Result<(), JailError> {
    nix::sched::unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS)
        .map_err(|errno| Errno::from_raw_os_error(errno as i32))
        .map_err(JailError::host("make a user and a mount namespace"))
}

/// Called by the builder after its ids have been mapped: mounts `spec`, detaches everything else, and sends the store
/// directory to `parent`. Entries that no longer exist are skipped.
///
/// # Errors
/// A system call fails. The namespaces must not be used then.
pub fn build(spec: &JailSpec<'_>, parent: &UnixStream) -> Result<(), JailError> {
    // Mounts made on the host from now on must not propagate to here.
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).map_err(JailError::host("separate the mounts"))?;
    let store = reopen(spec)?;
    let root = empty_root().map_err(JailError::host("mount a tmpfs"))?;
    mkdirat(&root, STORE, Mode::from_raw_mode(0o755)).map_err(JailError::host("make /store"))?;
    match &spec.contents {
        JailContents::All => clone_tree(&store, b"")
            .and_then(|tree| attach(&tree, &root, STORE.as_bytes()))
            .map_err(JailError::host("mount the store"))?,
        JailContents::Entries(entries) => bind_entries(&store, entries, &root)?,
    }
    restrict(&root).map_err(JailError::host("make the mounts read-only"))?;
    turn_into_root(&root).map_err(JailError::host("change the root"))?;
    let store = open_store().map_err(JailError::host("open the store in the jail"))?;
    send(parent, &store).map_err(JailError::io("send the store's directory"))
}

/// In a jail: opens its store directory.
fn open_store() -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(CWD, format!("/{STORE}"), flags, Mode::empty())
}

/// Sends a descriptor with one byte. Without it, a stream would not transmit the descriptor.
fn send(parent: &UnixStream, store: &OwnedFd) -> io::Result<()> {
    parent.send_with_fd(&[0_u8][..], store.as_raw_fd())?;
    Ok(())
}

/// Receives the descriptor that [`send`] has sent. Does not wait, because the builder has ended.
fn receive(builder: &UnixStream) -> io::Result<OwnedFd> {
    let (_, file) = builder.recv_with_fd(&mut [0])?;
    let file = file.ok_or(io::ErrorKind::UnexpectedEof)?;
    // `recv_with_fd` does not set it.
    fcntl_setfd(&file, FdFlags::CLOEXEC)?;
    Ok(file.into())
}

/// Opens the store again. The descriptor opened before belongs to a mount of the host's namespace, which cannot be
/// cloned from here.
fn reopen(spec: &JailSpec<'_>) -> Result<OwnedFd, JailError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fault = JailError::host("open the store");
    let found = open(spec.store, flags, Mode::empty()).and_then(|store| {
        let (now, then) = (fstat(&store)?, fstat(spec.opened)?);
        match (now.st_dev, now.st_ino) == (then.st_dev, then.st_ino) {
            true => Ok(store),
            false => Err(Errno::STALE),
        }
    });
    found.map_err(fault)
}

/// Mounts a tmpfs over the root. Processes do not see it before their root changes.
fn empty_root() -> Result<OwnedFd, Errno> {
    let made = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&made, "mode", "0755")?;
    fsconfig_create(&made)?;
    let root = fsmount(
        &made,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::empty(),
    )?;
    let whole = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(&root, "", CWD, "/", whole)?;
    Ok(root)
}

fn bind_entries(store: &OwnedFd, entries: &[&[u8]], root: &OwnedFd) -> Result<(), JailError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let to = openat(root, STORE, flags, Mode::empty()).map_err(JailError::host("open /store"))?;
    for name in entries {
        match bind_entry(store, name, &to) {
            // It was removed or replaced meanwhile.
            Ok(()) | Err(Errno::NOENT | Errno::NOTDIR) => {}
            Err(errno) => return Err(JailError::host("mount a store path")(errno)),
        }
    }
    Ok(())
}

/// Bind-mounts an entry on a new mount point: a directory for a directory, a file for anything else.
fn bind_entry(store: &OwnedFd, name: &[u8], to: &OwnedFd) -> Result<(), Errno> {
    let tree = clone_tree(store, name)?;
    match FileType::from_raw_mode(fstat(&tree)?.st_mode) {
        FileType::Directory => mkdirat(to, name, Mode::from_raw_mode(0o755)),
        _ => touch(to, name),
    }?;
    attach(&tree, to, name)
}

fn touch(dir: &OwnedFd, name: &[u8]) -> Result<(), Errno> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    openat(dir, name, flags, Mode::RUSR).map(drop)
}

/// Clones the mount of `from/name`, without following a symlink and without submounts.
fn clone_tree(from: &OwnedFd, name: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH
        | OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
    open_tree(from, name, flags)
}

/// Mounts `tree` at `to/name`.
fn attach(tree: &OwnedFd, to: &OwnedFd, name: &[u8]) -> Result<(), Errno> {
    let whole = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(tree, "", to, name, whole)
}

/// Makes `root` and all mounts below it read-only, nodev, nosuid and noexec.
#[allow(unsafe_code)]
fn restrict(root: &OwnedFd) -> Result<(), Errno> {
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_RDONLY
            | libc::MOUNT_ATTR_NODEV
            | libc::MOUNT_ATTR_NOSUID
            | libc::MOUNT_ATTR_NOEXEC,
        attr_clr: 0,
        propagation: libc::MS_PRIVATE,
        userns_fd: 0,
    };
    let flags = libc::AT_EMPTY_PATH | libc::AT_RECURSIVE;
    // SAFETY: the path is a C string, and the attributes are a `mount_attr` with the given length. The kernel only
    // reads them.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            root.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(last_errno()),
    }
}

fn last_errno() -> Errno {
    Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::INVAL)
}

/// Makes `root` the root. pivot_root(".", ".") stacks the old root on top of the new one, and umount2(2) detaches it.
fn turn_into_root(root: &OwnedFd) -> Result<(), Errno> {
    fchdir(root)?;
    pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)
}

impl Namespaces {
    /// Called by the parent of `builder` after that has called [`unshare`]: maps its ids and opens its namespaces.
    /// With `all_ids`, all ids must be mapped, because the disk shows the owners of files.
    ///
    /// # Errors
    /// This user may not map all ids, or a system call fails.
    pub fn of(builder: Pid, all_ids: bool) -> Result<Self, JailError> {
        let dir = format!("/proc/{}", builder.as_raw_nonzero());
        let ids = map_ids(&dir, all_ids).map_err(JailError::io("map the ids of users"))?;
        let open = |name| {
            let path = format!("{dir}/ns/{name}");
            let flags = OFlags::RDONLY | OFlags::CLOEXEC;
            open(path, flags, Mode::empty()).map_err(JailError::host("open the namespaces"))
        };
        Ok(Self {
            user: open("user")?,
            mounts: open("mnt")?,
            own_namespaces: ids == Ids::Own && kernel_counts_threads(),
        })
    }

    /// Called by the parent after the builder has ended without an error. `builder` is the parent's end of its socket.
    ///
    /// # Errors
    /// The builder has not sent the store directory.
    pub fn finish(self, builder: &UnixStream) -> Result<Jail, JailError> {
        let dir = receive(builder).map_err(JailError::io("receive the store's directory"))?;
        let store = JailedStore {
            dir,
            counts_threads: false,
        };
        Ok(Jail {
            namespaces: self,
            store,
        })
    }
}

impl Jail {
    /// The store, for the parent, which does not enter the jail.
    pub fn store(&self) -> &JailedStore {
        &self.store
    }

    /// Moves the calling process, which must have one thread, into the jail.
    ///
    /// # Errors
    /// A system call fails. The process may then be in only one of the namespaces.
    pub fn enter(&self) -> Result<JailedStore, SandboxError> {
        let enter = |namespace: &OwnedFd, kind| {
            move_into_link_name_space(namespace.as_fd(), Some(kind))
                .map_err(SandboxError::host("enter the jail"))
        };
        let namespaces = &self.namespaces;
        enter(&namespaces.user, LinkNameSpaceType::User)?;
        enter(&namespaces.mounts, LinkNameSpaceType::Mount)?;
        // RLIMIT_NPROC counts threads per user and user namespace, so each worker gets its own user namespace. If the
        // user may not create more of them, workers have no limit of threads.
        let counts_threads =
            namespaces.own_namespaces && nix::sched::unshare(CloneFlags::CLONE_NEWUSER).is_ok();
        Ok(JailedStore {
            dir: open_store().map_err(SandboxError::host("open the store in the jail"))?,
            counts_threads,
        })
    }
}

/// Before Linux 5.14, RLIMIT_NPROC counts threads per user across all namespaces.
fn kernel_counts_threads() -> bool {
    let system = uname();
    let release = system.release().to_str().unwrap_or_default();
    let mut numbers = release
        .split(['.', '-'])
        .map_while(|part| part.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(5), Some(14))
}

/// Maps all ids of this process's namespace unchanged. Unprivileged users may only map their own ids.
fn map_ids(dir: &str, all_ids: bool) -> io::Result<Ids> {
    let write = |name: &str, text: &str| fs::write(format!("{dir}/{name}"), text);
    match write("uid_map", &all_of("uid_map")?) {
        Ok(()) => write("gid_map", &all_of("gid_map")?).map(|()| Ids::All),
        Err(error) if all_ids || error.kind() != io::ErrorKind::PermissionDenied => Err(error),
        Err(_) => {
            // Required by the kernel: otherwise a process could leave groups that deny it access (user_namespaces(7)).
            write("setgroups", "deny")?;
            let (user, group) = (geteuid().as_raw(), getegid().as_raw());
            write("uid_map", &format!("{user} {user} 1\n"))?;
            write("gid_map", &format!("{group} {group} 1\n"))?;
            Ok(Ids::Own)
        }
    }
}

/// Returns an identity mapping of all ids in `map`. A line has the first id inside, the first id outside, and the count.
fn all_of(map: &str) -> io::Result<String> {
    let own = fs::read_to_string(format!("/proc/self/{map}"))?;
    let lines = own.lines().filter_map(|line| {
        let mut numbers = line.split_whitespace();
        let (first, _, count) = (numbers.next()?, numbers.next()?, numbers.next()?);
        Some(format!("{first} {first} {count}\n"))
    });
    Ok(lines.collect())
}
