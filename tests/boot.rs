//! Real boots: a Debian kernel under QEMU mounts the disk by its label, and what it read is compared with the host.
//!
//! `scripts/test` prepares kernel, initrd and store, and says where they are.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use common::from_env;
use common::process::first_line;

/// Emulated guests take all of a core each: one at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn turn() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

fn script(name: &str) -> Command {
    Command::new(
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("scripts")
            .join(name),
    )
}

/// A served store and a directory for what guests saw of it.
struct Served {
    dir: tempfile::TempDir,
    closure: Vec<String>,
    server: Child,
}

impl Served {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("mnt")).unwrap();
        let closure = vec![
            "--closure-info".to_owned(),
            from_env("LAZYSTORE_TEST_CLOSURE_INFO"),
            "--store-root".to_owned(),
            from_env("LAZYSTORE_TEST_STORE"),
        ];
        let mut server = Command::new(env!("CARGO_BIN_EXE_lazystore"))
            .arg("serve")
            .args(&closure)
            .arg("--vhost-user")
            .arg(dir.path().join("socket"))
            .arg("--fuse")
            .arg(dir.path().join("mnt"))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let ready = first_line(&mut server);
        assert!(ready.starts_with("ready "), "{ready}");
        Self {
            dir,
            closure,
            server,
        }
    }

    /// Boots a guest from the socket and returns where its findings are.
    fn boot(&self, name: &str, options: &[&str]) -> PathBuf {
        self.boot_from("--socket", "socket", name, options)
    }

    fn boot_from(&self, option: &str, disk: &str, name: &str, options: &[&str]) -> PathBuf {
        let out = self.dir.path().join(name);
        let mut vm = script("vm");
        vm.arg(option).arg(self.dir.path().join(disk));
        vm.arg("--out").arg(&out).args(options);
        assert!(vm.status().unwrap().success(), "scripts/vm {options:?}");
        out
    }

    /// Compares all that the guest saw with the host.
    fn compare(&self, out: &Path) {
        let compared = script("compare")
            .arg(out)
            .args(&self.closure)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&compared.stdout);
        assert!(compared.status.success(), "{said}");
        assert!(
            said.contains("identical") && said.contains("read-only"),
            "{said}"
        );
    }
}

impl Drop for Served {
    /// Asked to end, it unmounts.
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.server);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.server.wait();
    }
}

fn fact(out: &Path, name: &str) -> String {
    let facts = std::fs::read_to_string(out.join("facts")).unwrap();
    let mut values = facts.lines().rev().filter_map(|line| line.split_once('='));
    let found = values.find(|(key, _)| *key == name);
    found
        .unwrap_or_else(|| panic!("no {name} in {facts}"))
        .1
        .to_owned()
}

#[test]
fn q35_boots_reads_everything_runs_a_program_and_reboots() {
    let _turn = turn();
    let served = Served::start();
    let run = from_env("LAZYSTORE_TEST_RUN");
    let out = served.boot("vm", &["--smp", "2", "--reboot", "--run", &run]);
    served.compare(&out);
    assert_eq!(fact(&out, "program_status"), "0");
    assert_eq!(fact(&out, "serial"), "nixstore");
    assert_eq!(fact(&out, "read_only"), "1");
    assert_eq!(fact(&out, "queues"), "2");
}

#[test]
fn microvm_boots_and_reads_everything_and_another_vm_follows() {
    let _turn = turn();
    let served = Served::start();
    for name in ["first", "second"] {
        let out = served.boot(name, &["--machine", "microvm"]);
        served.compare(&out);
    }
}

#[test]
fn sixteen_cpus_read_through_sixteen_queues() {
    let _turn = turn();
    let served = Served::start();
    let out = served.boot("vm", &["--smp", "16", "--quick"]);
    assert_eq!(fact(&out, "queues"), "16");
    assert_eq!(fact(&out, "superblocks_seen"), "1");
}

#[test]
fn a_vm_boots_from_the_file_in_every_way_that_qemu_reads_it() {
    let _turn = turn();
    let served = Served::start();
    let ways = [
        ("threads", "aio=threads"),
        ("io_uring", "aio=io_uring"),
        ("direct", "cache=none,aio=native"),
    ];
    for (name, drive) in ways {
        let options = ["--drive", drive];
        let out = served.boot_from("--image", "mnt/nix-store.img", name, &options);
        served.compare(&out);
    }
}
