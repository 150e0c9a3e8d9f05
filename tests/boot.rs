//! Real boots: a Debian kernel under QEMU mounts the disk by its label. What it read is compared with the host.
//!
//! `scripts/test` prepares kernel, initrd and store, and sets variables with their paths.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::common::from_env;
use crate::common::process::first_line;
use crate::common::vm::{fact, lock_guest, script};

/// A served store, and a directory for the guests' results.
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

    /// Boots a guest from the socket. Returns the directory of its results.
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

    /// Compares everything that the guest read with the host.
    fn compare(&self, out: &Path) {
        let compared = script("compare")
            .arg(out)
            .args(&self.closure)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&compared.stdout);
        assert!(compared.status.success(), "{text}");
        assert!(
            text.contains("identical") && text.contains("read-only"),
            "{text}"
        );
    }
}

impl Drop for Served {
    /// Ends the server, which unmounts.
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.server);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.server.wait();
    }
}

#[test]
#[ignore = "boots a VM"]
fn q35_boots_reads_everything_runs_a_program_and_reboots() {
    let _lock = lock_guest();
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
#[ignore = "boots a VM"]
fn two_microvms_boot_one_after_the_other_and_read_everything() {
    let _lock = lock_guest();
    let served = Served::start();
    for name in ["first", "second"] {
        let out = served.boot(name, &["--machine", "microvm"]);
        served.compare(&out);
    }
}

#[test]
#[ignore = "boots a VM"]
fn sixteen_cpus_read_through_sixteen_queues() {
    let _lock = lock_guest();
    let served = Served::start();
    let out = served.boot("vm", &["--smp", "16", "--quick"]);
    assert_eq!(fact(&out, "queues"), "16");
    assert_eq!(fact(&out, "superblocks_seen"), "1");
}

#[test]
#[ignore = "boots a VM"]
fn a_vm_boots_from_the_file_with_every_aio_mode_of_qemu() {
    let _lock = lock_guest();
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
