//! A mount namespace with what is served and nothing else.
//!
//! One for all workers of a server. A process of its own, the furnisher, makes it: a user namespace, because only that
//! lets an ordinary user mount, and since entering it takes no right but being its owner; in it a mount namespace whose
//! root is an empty file system in memory, with a mount of each store path. Workers enter both before they give up their
//! rights. All that was mounted before is detached and not just hidden, so that nothing of the host is kept from being
//! unmounted.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::sched::CloneFlags;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, fstat, mkdirat, open, openat, statat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen,
    mount_change, move_mount, open_tree, unmount,
};
use rustix::process::{Pid, fchdir, getegid, geteuid, pivot_root};
use rustix::system::uname;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::error::{JailError, SandboxError};

/// Where the store's directory is in the jail.
const STORE: &str = "store";

/// What a jail is to hold.
#[derive(Debug)]
pub struct Furniture<'a> {
    /// Where the store's directory is.
    pub store: &'a Path,
    /// The same, open: what is there must still be it.
    pub opened: BorrowedFd<'a>,
    /// What of it is served.
    pub contents: Contents<'a>,
}

/// What of the store a jail is to hold.
#[derive(Debug)]
pub enum Contents<'a> {
    /// All of it.
    All,
    /// These entries.
    Entries(Vec<&'a [u8]>),
}

/// Where a process is after it has entered a jail.
#[derive(Debug)]
pub struct Cell {
    /// The store's directory.
    pub store: OwnedFd,
    /// This process is the only one of its user in its user namespace, so that a limit of threads is its own.
    pub counts_threads: bool,
}

/// The namespaces of a furnisher. They outlive it.
#[derive(Debug)]
pub struct Jail {
    user: OwnedFd,
    mounts: OwnedFd,
    /// Each worker gets a user namespace of its own besides.
    own_namespaces: bool,
}

/// Which ids a jail knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ids {
    /// All, as they are outside.
    All,
    /// Those of this process alone.
    Own,
}

/// In the furnisher: leaves the namespaces of the host.
///
/// # Errors
/// When the host gives no namespaces to this user.
pub fn unshare() -> Result<(), JailError> {
    nix::sched::unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS)
        .map_err(|errno| Errno::from_raw_os_error(errno as i32))
        .map_err(JailError::host("make a user and a mount namespace"))
}

/// In the furnisher, after its ids have been mapped: mounts what is wanted and lets go of all else. An entry that is not
/// there any more has no mount.
///
/// # Errors
/// When the host refuses; the namespaces are of no use then.
pub fn furnish(furniture: &Furniture<'_>) -> Result<(), JailError> {
    // What the host mounts from now on is not to appear here.
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).map_err(JailError::host("separate the mounts"))?;
    let store = reopen(furniture)?;
    let root = empty_root().map_err(JailError::host("mount a tmpfs"))?;
    mkdirat(&root, STORE, Mode::from_raw_mode(0o755)).map_err(JailError::host("make /store"))?;
    match &furniture.contents {
        Contents::All => bind(&store, b"", &root, STORE.as_bytes())
            .map_err(JailError::host("mount the store"))?,
        Contents::Entries(entries) => bind_entries(&store, entries, &root)?,
    }
    restrict(&root).map_err(JailError::host("make the mounts read-only"))?;
    turn_into_root(&root).map_err(JailError::host("change the root"))
}

/// Descriptors from before lead to mounts of the host, of which none can be made here.
fn reopen(furniture: &Furniture<'_>) -> Result<OwnedFd, JailError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fault = JailError::host("open the store");
    let found = open(furniture.store, flags, Mode::empty()).and_then(|store| {
        let (now, then) = (fstat(&store)?, fstat(furniture.opened)?);
        match (now.st_dev, now.st_ino) == (then.st_dev, then.st_ino) {
            true => Ok(store),
            false => Err(Errno::STALE),
        }
    });
    found.map_err(fault)
}

/// A file system in memory, mounted over the root, where the processes of this namespace do not see it yet.
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
            // It is gone, or something else by now.
            Ok(()) | Err(Errno::NOENT | Errno::NOTDIR) => {}
            Err(errno) => return Err(JailError::host("mount a store path")(errno)),
        }
    }
    Ok(())
}

/// A directory is mounted on a directory, and anything else on a file.
fn bind_entry(store: &OwnedFd, name: &[u8], to: &OwnedFd) -> Result<(), Errno> {
    let found = statat(store, name, AtFlags::SYMLINK_NOFOLLOW)?;
    match FileType::from_raw_mode(found.st_mode) {
        FileType::Directory => mkdirat(to, name, Mode::from_raw_mode(0o755)),
        _ => touch(to, name),
    }?;
    bind(store, name, to, name)
}

fn touch(dir: &OwnedFd, name: &[u8]) -> Result<(), Errno> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    openat(dir, name, flags, Mode::RUSR).map(drop)
}

/// Mounts `name` of `from`, be it a symlink, at `place` of `to`, without what is mounted inside.
fn bind(from: &OwnedFd, name: &[u8], to: &OwnedFd, place: &[u8]) -> Result<(), Errno> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH
        | OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
    let tree = open_tree(from, name, flags)?;
    let whole = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(&tree, "", to, place, whole)
}

/// All mounts below `root`, at once.
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
    // SAFETY: the path is a C string and the attributes are a `mount_attr` of the length that is given; the kernel only
    // reads both.
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

/// The old root comes to lie on the new one, from where it is detached (pivot_root(2)).
fn turn_into_root(root: &OwnedFd) -> Result<(), Errno> {
    fchdir(root)?;
    pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)
}

impl Jail {
    /// In the furnisher's parent: that process has [`unshare`]d; its ids are mapped here. With `all_ids` owners of files
    /// must look as they do outside.
    ///
    /// # Errors
    /// When this user may not map all ids, or the host refuses.
    pub fn of(furnisher: Pid, all_ids: bool) -> Result<Self, JailError> {
        let dir = format!("/proc/{}", furnisher.as_raw_nonzero());
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

    /// Moves the calling process, which must have one thread, into the jail.
    ///
    /// # Errors
    /// When the kernel refuses; the process may be there in part then.
    pub fn enter(&self) -> Result<Cell, SandboxError> {
        let enter = |namespace: &OwnedFd, kind| {
            move_into_link_name_space(namespace.as_fd(), Some(kind))
                .map_err(SandboxError::host("enter the jail"))
        };
        enter(&self.user, LinkNameSpaceType::User)?;
        enter(&self.mounts, LinkNameSpaceType::Mount)?;
        // Threads are counted for each user in each user namespace (RLIMIT_NPROC), so each worker has one of its own. A user
        // who may have no more of them has workers without that limit.
        let counts_threads =
            self.own_namespaces && nix::sched::unshare(CloneFlags::CLONE_NEWUSER).is_ok();
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let store = openat(CWD, format!("/{STORE}"), flags, Mode::empty());
        Ok(Cell {
            store: store.map_err(SandboxError::host("open the store in the jail"))?,
            counts_threads,
        })
    }
}

/// Before Linux 5.14 threads are counted for each user, whatever the namespace.
fn kernel_counts_threads() -> bool {
    let system = uname();
    let release = system.release().to_str().unwrap_or_default();
    let mut numbers = release
        .split(['.', '-'])
        .map_while(|part| part.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(5), Some(14))
}

/// All ids of this process's namespace as they are; or, for those who may not do that, their own alone.
fn map_ids(dir: &str, all_ids: bool) -> io::Result<Ids> {
    let write = |name: &str, text: &str| fs::write(format!("{dir}/{name}"), text);
    match write("uid_map", &all_of("uid_map")?) {
        Ok(()) => write("gid_map", &all_of("gid_map")?).map(|()| Ids::All),
        Err(error) if all_ids || error.kind() != io::ErrorKind::PermissionDenied => Err(error),
        Err(_) => {
            // Otherwise groups that take rights away could be left (user_namespaces(7)).
            write("setgroups", "deny")?;
            let (user, group) = (geteuid().as_raw(), getegid().as_raw());
            write("uid_map", &format!("{user} {user} 1\n"))?;
            write("gid_map", &format!("{group} {group} 1\n"))?;
            Ok(Ids::Own)
        }
    }
}

/// Each line has the first id inside, the first one outside, and how many there are.
fn all_of(map: &str) -> io::Result<String> {
    let own = fs::read_to_string(format!("/proc/self/{map}"))?;
    let lines = own.lines().filter_map(|line| {
        let mut numbers = line.split_whitespace();
        let (first, _, count) = (numbers.next()?, numbers.next()?, numbers.next()?);
        Some(format!("{first} {first} {count}\n"))
    });
    Ok(lines.collect())
}
