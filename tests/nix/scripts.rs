//! Start scripts as the modules make them, built and executed: with QEMU, and with a program that stands for it.

use std::path::{Path, PathBuf};

use crate::common::process::wait_for;
use crate::common::tool;
use crate::evaluator::{ROOT, built};
use crate::machine::{Guest, Machine, Seen};

fn qemu() -> PathBuf {
    tool("qemu-system-x86_64", "qemu-system-x86")
}

fn fake_qemu() -> PathBuf {
    Path::new(ROOT).join("tests/nix/fake/qemu-system-x86_64")
}

fn lines(path: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn the_start_script_gives_qemu_the_disk_and_leaves_nothing() {
    let machine = Machine::new();
    let script = built("vm", &fake_qemu(), &[]);
    let mut vm = machine.command(&script, "vm");
    let status = vm
        .env("QEMU_OPTS", "-m 2048 -nographic")
        .arg("-snapshot")
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(7));
    let arguments = lines(&machine.path("arguments"));
    let at = |argument: &str| arguments.iter().position(|a| a == argument).unwrap();
    assert!(at("-name") < at("-nographic") && at("-nographic") < at("-snapshot"));
    assert!(at("-snapshot") < at("-chardev"), "{arguments:?}");
    let memory = &arguments[at("-object") + 1];
    assert!(memory.ends_with("size=2G,share=on"), "{memory}");
    assert_eq!(
        arguments.last().unwrap(),
        "vhost-user-blk-pci,chardev=lazystore"
    );
    assert_eq!(
        lines(&machine.path("socket")),
        ["socket 600", "directory 700"]
    );
    assert_eq!(
        lines(&machine.path("directory")),
        [machine.path("vm").to_str().unwrap()]
    );
    let left: Vec<_> = std::fs::read_dir(machine.path("vm"))
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(left, ["xchg"]);
}

/// A socket's path has 107 bytes at most.
#[test]
fn a_vm_may_live_in_a_directory_with_a_long_name() {
    let machine = Machine::new();
    let script = built("vm", &fake_qemu(), &[]);
    let below = "long/".repeat(30);
    assert_eq!(
        machine.command(&script, &below).status().unwrap().code(),
        Some(7)
    );
    assert_eq!(
        lines(&machine.path("socket")),
        ["socket 600", "directory 700"]
    );
}

#[test]
fn what_asks_qemu_something_gets_no_disk() {
    let machine = Machine::new();
    let package = built("package", &fake_qemu(), &[]);
    for question in [
        &["-version"][..],
        &["-device", "help"],
        &["-device", "virtio-blk-pci,help"],
        &["-cpu", "?"],
    ] {
        let emulator = package.join("bin/qemu-system-x86_64");
        let status = machine
            .command(&emulator, ".")
            .args(question)
            .status()
            .unwrap();
        assert_eq!(status.code(), Some(7));
        assert_eq!(lines(&machine.path("arguments")), question);
    }
    for beside in ["bin/qemu-img", "share/qemu/bios.bin"] {
        assert!(package.join(beside).exists(), "{beside}");
    }
}

