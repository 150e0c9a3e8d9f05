//! What confined processes cannot do, tried from inside and checked from outside.

mod attempt;
mod calls;
mod jail;
mod served;

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::path::Path;

use lazystore::sandbox::Process;
use nix::sys::signal::Signal;

use crate::common::client::Client;
use crate::common::server::{Server, tree};
use crate::common::tool;
use attempt::{End, FILES, LOOKS, try_in, try_in_jail, try_in_jail_by};
use calls::{CALLS, Refused};
use served::{Served, status, store, store_args};

const WORKERS: [Process; 2] = [Process::VhostWorker, Process::FuseWorker];
const SYSTEM_CALLS_FILTERED: &str = "2";

/// From `linux/capability.h`.
const DAC_READ_SEARCH: u64 = 1 << 2;
const SYS_ADMIN: u64 = 1 << 21;

#[test]
fn workers_are_killed_or_refused() {
    for process in WORKERS {
        for (name, number, arguments, refused) in CALLS {
            let expected = match refused {
                Refused::Deadly => End::Killed(Signal::SIGSYS as i32),
                Refused::Unknown => End::Errno(libc::ENOSYS),
            };
            let end = try_in(Some(process), name);
            assert_eq!(
                end, expected,
                "{name} ({number}, {arguments:?}) in {process:?}"
            );
        }
    }
}

/// Unconfined processes can do what confined ones cannot, so the confinement is the reason.
#[test]
fn an_unconfined_process_may_make_the_same_calls() {
    for (name, ..) in CALLS {
        let end = try_in(None, name);
        let refused = matches!(end, End::Killed(_) | End::Errno(libc::ENOSYS));
        assert!(!refused, "{name}: {end:?}");
    }
    for (name, _) in FILES {
        assert_eq!(try_in(None, name), End::Done, "{name}");
    }
}

#[test]
fn only_the_store_can_be_read() {
    for process in [Process::Listener, Process::VhostWorker, Process::FuseWorker] {
        for (name, allowed) in FILES {
            let expected = match allowed {
                true => End::Done,
                false => End::Errno(libc::EACCES),
            };
            assert_eq!(
                try_in(Some(process), name),
                expected,
                "{name} in {process:?}"
            );
        }
    }
}

/// Without a jail a worker can stat what it cannot read.
#[test]
fn only_a_jail_hides_unserved_paths() {
    for process in [
        Process::VhostWorker,
        Process::NbdWorker,
        Process::FuseWorker,
    ] {
        for name in LOOKS {
            assert_eq!(
                try_in(Some(process), name),
                End::Done,
                "{name} in {process:?}"
            );
        }
    }
}

#[test]
#[ignore = "needs user namespaces"]
fn a_jail_contains_only_served_paths() {
    for process in [
        Process::VhostWorker,
        Process::NbdWorker,
        Process::FuseWorker,
    ] {
        for name in LOOKS {
            let hidden = End::Errno(libc::ENOENT);
            assert_eq!(try_in_jail(process, name), hidden, "{name} in {process:?}");
        }
        for (name, _) in FILES.iter().filter(|(_, allowed)| !allowed) {
            let end = try_in_jail(process, name);
            let refused = matches!(end, End::Errno(libc::ENOENT | libc::EACCES));
            assert!(refused, "{name} in {process:?}: {end:?}");
        }
        let name = "look at a file of the store";
        assert_eq!(try_in_jail(process, name), End::Done, "{process:?}");
    }
}

/// A listener allows its children to read the jail. It cannot read the same files through the host's mounts.
#[test]
#[ignore = "needs user namespaces"]
fn a_listener_with_a_jail_reads_no_store_path_of_the_host() {
    for (name, _) in FILES {
        let end = try_in_jail(Process::Listener, name);
        assert_eq!(end, End::Errno(libc::EACCES), "{name}");
    }
    let end = try_in_jail(Process::Listener, "read a file of the jail");
    assert_eq!(end, End::Done);
}

#[test]
fn memory_of_workers_is_limited() {
    for process in [
        Process::VhostWorker,
        Process::NbdWorker,
        Process::FuseWorker,
    ] {
        let refused = End::Errno(libc::ENOMEM);
        assert_eq!(try_in(Some(process), "allocate"), refused, "{process:?}");
        let little = try_in(Some(process), "allocate a little");
        assert_eq!(little, End::Done, "{process:?}");
    }
    assert_eq!(try_in(None, "allocate"), End::Done);
}

/// For root, the process that starts the server sets the limit.
#[test]
#[ignore = "needs root"]
fn threads_of_an_ordinary_users_workers_are_limited() {
    let name = "start threads";
    let refused = End::Errno(libc::EAGAIN);
    assert_eq!(try_in_jail_by(65534, Process::VhostWorker, name), refused);
    assert_eq!(try_in_jail(Process::VhostWorker, name), End::Done);
}

/// Only vhost-user needs messages with descriptors.
#[test]
fn workers_without_vhost_user_cannot_pass_descriptors() {
    let message = "sendmsg";
    for process in [Process::NbdWorker, Process::FuseWorker] {
        let refused = End::Errno(libc::ENOSYS);
        assert_eq!(try_in(Some(process), message), refused, "{process:?}");
    }
    for process in [None, Some(Process::VhostWorker)] {
        assert_eq!(try_in(process, message), End::Errno(libc::EBADF));
    }
}

#[test]
fn workers_cannot_extend_files() {
    let name = "make a file longer";
    assert_eq!(try_in(None, name), End::Done);
    for process in WORKERS {
        let killed = End::Killed(Signal::SIGXFSZ as i32);
        assert_eq!(try_in(Some(process), name), killed, "{process:?}");
    }
}

#[test]
fn a_listener_can_neither_execute_programs_nor_reach_the_network() {
    for name in [
        "execve",
        "ptrace",
        "mmap PROT_EXEC",
        "io_uring_setup",
        "mount",
    ] {
        let killed = End::Killed(Signal::SIGSYS as i32);
        assert_eq!(try_in(Some(Process::Listener), name), killed, "{name}");
    }
    let refused = End::Errno(libc::ENOSYS);
    assert_eq!(try_in(Some(Process::Listener), "socket AF_INET"), refused);
}

/// A Landlock rule for a directory in /proc stops working when the kernel drops its caches.
#[test]
#[ignore = "needs root"]
fn a_listener_starts_workers_after_the_kernel_has_dropped_its_caches() {
    let tree = tree();
    let server = Server::start(tree.path(), &[]);
    drop(Client::start(&server.socket, 1));
    // Drops directory entries and inodes.
    fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
    drop(Client::start(&server.socket, 1));
}

#[test]
#[ignore = "needs root"]
fn no_process_has_capabilities_while_a_closure_is_served() {
    let store = store();
    let server = Served::at_socket(&store_args(store.path()), store.path());
    let _connected = UnixStream::connect(server.socket()).unwrap();
    for pid in [server.pid(), server.worker()] {
        let status = status(pid);
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(status.capabilities(set), 0, "{set}");
        }
        assert_eq!(status.field("NoNewPrivs"), "1");
        assert_eq!(status.field("Seccomp"), SYSTEM_CALLS_FILTERED);
        let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let core = limits.lines().find(|line| line.contains("core")).unwrap();
        assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
        assert_eq!(core.split_whitespace().nth(5), Some("0"), "{core}");
    }
}

#[test]
fn without_a_sandbox_nothing_is_confined() {
    let store = store();
    let args = [store_args(store.path()), vec!["--no-sandbox".into()]].concat();
    let server = Served::at_socket(&args, store.path());
    let _connected = UnixStream::connect(server.socket()).unwrap();
    for pid in [server.pid(), server.worker()] {
        assert_eq!(status(pid).field("Seccomp"), "0");
        assert_eq!(status(pid).field("NoNewPrivs"), "0");
    }
}

#[test]
#[ignore = "needs root and /dev/fuse"]
fn with_a_mount_only_the_parent_keeps_the_capability_to_unmount() {
    let store = store();
    let server = Served::as_file(&store_args(store.path()), store.path());
    let worker = status(server.worker());
    assert_eq!(worker.capabilities("CapPrm"), 0);
    let parent = status(server.pid());
    assert_eq!(parent.capabilities("CapPrm"), SYS_ADMIN | DAC_READ_SEARCH);
    for status in [worker, parent] {
        assert_eq!(status.capabilities("CapBnd"), 0);
        assert_eq!(status.field("NoNewPrivs"), "1");
        assert_eq!(status.field("Seccomp"), SYSTEM_CALLS_FILTERED);
    }
}

/// The first file data of a tree, read through a confined worker.
fn first_data(socket: &Path, len: usize) -> Vec<u8> {
    let mut client = Client::start(socket, 1);
    let start = 128 << 30;
    client.read(0, &[(start, len)]).remove(0).unwrap()
}

#[test]
#[ignore = "needs root"]
fn private_files_of_a_tree_are_read_with_one_capability() {
    let tree = tempfile::tempdir().unwrap();
    let private = tree.path().join("private");
    fs::create_dir(&private).unwrap();
    fs::write(private.join("file"), [7; 8192]).unwrap();
    for path in [private.join("file"), private] {
        chown(&path, Some(4711), Some(4711)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
    }
    let args = vec!["--tree".into(), tree.path().into()];
    let server = Served::at_socket(&args, tree.path());
    assert!(first_data(server.socket(), 8192) == [7; 8192]);
    let _connected = UnixStream::connect(server.socket()).unwrap();
    assert_eq!(
        status(server.worker()).capabilities("CapEff"),
        DAC_READ_SEARCH
    );
}

/// The descriptors of `pid`, as `user` can see them.
fn descriptors(user: u32, pid: u32) -> String {
    let ids = [format!("--reuid={user}"), format!("--regid={user}")];
    let output = std::process::Command::new(tool("setpriv", "util-linux"))
        .args(ids)
        .args(["--clear-groups", "ls", "-l"])
        .arg(format!("/proc/{pid}/fd"))
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[test]
#[ignore = "needs root"]
fn an_ordinary_user_is_confined_and_pins_the_store_for_its_own_garbage_collector() {
    const USER: u32 = 65534;
    let store = store();
    let server = Served::by_user(USER, &store_args(store.path()), store.path());
    let _connected = UnixStream::connect(server.socket()).unwrap();
    for pid in [server.pid(), server.worker()] {
        let status = status(pid);
        assert_eq!(status.field("NoNewPrivs"), "1");
        assert_eq!(status.field("Seccomp"), SYSTEM_CALLS_FILTERED);
        assert_eq!(status.capabilities("CapEff"), 0);
    }
    let pinned = store.path().join("nix/store");
    let pinned = pinned.to_str().unwrap();
    assert!(descriptors(USER, server.pid()).contains(pinned));
    assert!(!descriptors(USER, server.worker()).contains(pinned));
    let socket = server.socket().to_owned();
    let (status, log) = server.end();
    assert!(status.success(), "{log}");
    assert!(!socket.exists());
}

#[test]
fn a_kernel_without_landlock_causes_one_warning() {
    let tree = tempfile::tempdir().unwrap();
    fs::write(tree.path().join("file"), [9; 8192]).unwrap();
    let args = vec!["--tree".into(), tree.path().into()];
    let server = Served::by_attempt(attempt::NO_LANDLOCK, &args, tree.path());
    for _ in 0..3 {
        assert!(first_data(server.socket(), 8192) == [9; 8192]);
    }
    let (status, log) = server.end();
    assert!(status.success(), "{log}");
    assert_eq!(log.matches("no Landlock").count(), 1, "{log}");
}
