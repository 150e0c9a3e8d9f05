//! A Debian root file system, served with `--tree` and without Nix. It is a VM's root below an overlay.

use std::fs;
use std::process::{Command, Stdio};

use crate::common::vm::lock_guest;
use crate::common::{from_env, tool};

/// The script that the guest runs after booting.
const SCRIPT: &str = "stat --file-system --format=%T / >/dev/ttyS0; \
                      touch /written && cat /usr/bin/* | sha256sum >/dev/ttyS0; poweroff -f";

/// The command of docs/examples.md, with a script for the guest.
fn boot(root: &str) -> Command {
    let append = format!(
        "root=/dev/vda rootfstype=erofs ro console=ttyS0 no_timer_check panic=-1 quiet \
         systemd.run=\"/bin/sh -c '{SCRIPT}'\""
    );
    let mut run = Command::new(env!("CARGO_BIN_EXE_lazystore"));
    run.args(["run", "--tree", root, "--"]);
    run.arg(tool("qemu-system-x86_64", "qemu-system-x86"));
    run.args(["-accel", &from_env("LAZYSTORE_ACCEL"), "-cpu", "max"]);
    run.args(["-M", "q35", "-smp", "2", "-m", "1G"]);
    run.args([
        "-nodefaults",
        "-no-reboot",
        "-display",
        "none",
        "-serial",
        "stdio",
    ]);
    run.args(["-kernel", &format!("{root}/vmlinuz")]);
    run.args(["-initrd", &format!("{root}/initrd.img")]);
    run.args(["-append", &append]).stdin(Stdio::null());
    run
}

/// Output of `cat /usr/bin/* | sha256sum` for that root.
fn sum_of_programs(root: &str) -> String {
    let mut sum = Command::new("chroot");
    sum.args([root, "sh", "-c", "cat /usr/bin/* | sha256sum"]);
    let output = sum.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
#[ignore = "needs root, QEMU and a Debian root"]
fn debian_boots_from_a_tree_below_an_overlay() {
    let _lock = lock_guest();
    let root = from_env("LAZYSTORE_TEST_DEBIAN");
    let output = boot(&root).output().unwrap();
    let console = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{console}");
    let text: Vec<&str> = console.lines().map(str::trim).collect();
    assert!(text.contains(&"overlayfs"), "{console}");
    assert!(text.contains(&sum_of_programs(&root).trim()), "{console}");
    // The guest's writes are only in its memory.
    assert!(!fs::exists(format!("{root}/written")).unwrap());
}

#[test]
#[ignore = "needs libvirt-clients"]
fn libvirts_schema_accepts_the_example() {
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/examples/libvirt.xml");
    let mut validate = Command::new(tool("virt-xml-validate", "libvirt-clients"));
    let output = validate.args([example, "domain"]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}
