//! Real guests whose server is killed, and servers whose guests vanish.
//!
//! `scripts/test` prepares kernel, initrd and store, and sets variables with their paths.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::from_env;
use crate::common::proc::{fds, threads, written_kib};
use crate::common::process::{wait_for, wait_long_for};
use crate::common::server::{Server, command_after};
use crate::common::vm::{fact, lock_guest, script};

/// Timeout for progress of a guest.
const PATIENCE: Duration = Duration::from_secs(120);

fn closure() -> Vec<String> {
    let info = from_env("LAZYSTORE_TEST_CLOSURE_INFO");
    let root = from_env("LAZYSTORE_TEST_STORE");
    vec![
        "--closure-info".to_owned(),
        info,
        "--store-root".to_owned(),
        root,
    ]
}

fn vm(server: &Server, out: &Path, options: &[&str]) -> Command {
    let mut vm = script("vm");
    vm.arg("--socket").arg(&server.socket).arg("--out").arg(out);
    vm.args(options).stderr(Stdio::inherit());
    vm
}

/// Waits until the guest writes a text to its console.
fn wait_for_words(out: &Path, words: &str) {
    wait_long_for(words, PATIENCE, || {
        let console = fs::read_to_string(out.join("console.log")).unwrap_or_default();
        console.contains(words).then_some(())
    });
}

/// Number of bytes that a process has read. Zero if it has ended.
fn bytes_read(pid: Pid) -> u64 {
    let io = fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
    let line = io.lines().find_map(|line| line.strip_prefix("rchar: "));
    line.map_or(0, |count| count.parse().unwrap())
}

/// Waits until a worker is serving reads. Fails if the guest finishes first.
fn busy_worker(server: &Server, guest: &mut Child) -> Pid {
    let mut seen: Vec<(Pid, u64)> = Vec::new();
    wait_long_for("a busy worker", PATIENCE, || {
        assert_eq!(guest.try_wait().unwrap(), None, "the guest has ended");
        let now: Vec<_> = server
            .workers()
            .into_iter()
            .map(|pid| (pid, bytes_read(pid)))
            .collect();
        let first = |pid| {
            seen.iter()
                .find(|(other, _)| *other == pid)
                .map(|(_, count)| *count)
        };
        let busy = now
            .iter()
            .find(|(pid, count)| first(*pid).is_some_and(|was| *count > was + (1 << 20)));
        let found = busy.map(|(pid, _)| *pid);
        if first(now.first().map_or(Pid::from_raw(1), |(pid, _)| *pid)).is_none() {
            seen = now;
        }
        found
    })
}

#[test]
#[ignore = "boots a VM"]
fn a_guest_reads_correctly_while_its_worker_is_killed_twenty_times() {
    const KILLS: u32 = 20;
    let _lock = lock_guest();
    let out = tempfile::tempdir().unwrap();
    let mut server = Server::start_after(&[], &closure(), &[]);
    let socket = server.socket.clone();
    let options = ["--reconnect", "1", "--hash-s", "90", "--timeout", "900"];
    let mut guest = vm(&server, out.path(), &options).spawn().unwrap();
    wait_for_words(out.path(), "mounted_uptime_s=");
    let (mut workers, mut servers) = (0, 0);
    while workers + servers < KILLS {
        let worker = busy_worker(&server, &mut guest);
        if workers <= servers {
            kill(worker, Signal::SIGKILL).unwrap();
            workers += 1;
        } else {
            server.kill_and_restart(command_after(&[], &closure(), &socket, &[]));
            servers += 1;
        }
    }
    wait_long_for("the guest's end", 5 * PATIENCE, || {
        guest.try_wait().unwrap()
    });
    let compared = script("compare")
        .arg(out.path())
        .args(closure())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&compared.stdout);
    let fact = |name| fact(out.path(), name);
    println!(
        "{workers} workers and {servers} servers killed; {} rounds of hashing, I/O errors in the guest's log: {}",
        fact("hash_rounds"),
        fact("io_errors")
    );
    assert!(
        compared.status.success() && text.contains("identical"),
        "{text}"
    );
    assert_eq!(
        (fact("different_sums"), fact("io_errors")),
        ("1".to_owned(), "0".to_owned())
    );
}

/// Resources of the server once all workers have ended.
fn holdings(server: &Server) -> (usize, usize, u64) {
    wait_for("workers to go", || {
        server.workers().is_empty().then_some(())
    });
    let pid = server.pid();
    (fds(pid), threads(pid), written_kib(pid))
}

/// The QEMU that uses the socket.
fn qemu(socket: &Path) -> Pid {
    let socket = socket.to_str().unwrap();
    let is_it = |pid: &i32| {
        let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words = String::from_utf8_lossy(&words).into_owned();
        words.starts_with("qemu-system") && words.contains(socket)
    };
    let entries = fs::read_dir("/proc").unwrap().map(Result::unwrap);
    let mut pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    Pid::from_raw(pids.find(is_it).expect("QEMU runs"))
}

#[test]
#[ignore = "boots a VM"]
fn guests_that_reboot_or_are_killed_leave_no_process_or_descriptor() {
    let _lock = lock_guest();
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start_after(&[], &closure(), &[]);
    let boot = |name: &str, options: &[&str]| {
        let out = dir.path().join(name);
        assert!(
            vm(&server, &out, options).status().unwrap().success(),
            "{options:?}"
        );
        out
    };
    let out = boot("rebooting", &["--quick", "--reboot"]);
    assert_eq!(fact(&out, "boots"), "2");
    let before = holdings(&server);
    let out = dir.path().join("vanishing");
    let options = ["--hash-s", "300"];
    let mut guest = vm(&server, &out, &options)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_for_words(&out, "mounted_uptime_s=");
    busy_worker(&server, &mut guest);
    kill(qemu(&server.socket), Signal::SIGKILL).unwrap();
    assert!(!guest.wait().unwrap().success());
    holdings(&server);
    let out = boot("following", &["--quick"]);
    assert_eq!(fact(&out, "io_errors"), "0");
    let after = holdings(&server);
    println!("a reboot, a QEMU killed while its guest read, a VM after it: {before:?} {after:?}");
    assert_eq!((before.0, before.1), (after.0, after.1));
    assert!(after.2 <= before.2 + 256);
}
