//! Boots VMs with the start scripts that the modules create.

use std::fs;
use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::evaluator::built;
use super::machine::{Guest, Machine, Seen};
use crate::common::proc::children;
use crate::common::process::wait_for;
use crate::common::tool;

/// A NixOS VM started like qemu-vm.nix does.
const NIXOS: Guest = Guest {
    mount_dir: "/nix/.ro-store",
    fs_type: "erofs",
    disk: "virtio-blk-pci",
    share: Some("xchg"),
    qemu_options: None,
    hash_s: 0,
};

fn qemu() -> PathBuf {
    tool("qemu-system-x86_64", "qemu-system-x86")
}

fn boot_nixos(user: &str, guest: &Guest) -> (Machine, Seen) {
    let machine = Machine::new();
    fs::create_dir(machine.path("xchg")).unwrap();
    fs::write(machine.path("xchg/from-host"), "from the host\n").unwrap();
    let script = built("vm", &qemu(), &[("user", user)]);
    let seen = machine.boot(&script, guest);
    (machine, seen)
}

/// Checks that the guest saw only its closure, ran a program from it, and that its own Nix knows the closure.
fn assert_closure_only(seen: &Seen) {
    let name = |path: PathBuf| format!("./{}", path.file_name().unwrap().to_str().unwrap());
    let guest = name(built("guest", Path::new("/nowhere"), &[]));
    let unreferenced = name(built("pv", Path::new("/nowhere"), &[]));
    assert!(seen.names.contains(&guest), "{:?}", seen.names);
    assert!(!seen.names.contains(&unreferenced), "{:?}", seen.names);
    // The guest, the two paths that it refers to, and their registration.
    let mut paths: Vec<&str> = seen
        .names
        .iter()
        .filter(|name| name.matches('/').count() == 1)
        .map(|name| name.get(34..).unwrap_or(name))
        .collect();
    paths.sort_unstable();
    assert_eq!(paths, ["-guest", "-message", "-nix", "./.lazystore"]);
    assert_eq!(seen.program, "bin\nmessage\n");
    assert_eq!(seen.fact("program_status"), "0");
    assert_eq!(seen.fact("read_only"), "1");
    assert_eq!(seen.fact("absent"), "yes");
    assert_nix_knows(seen);
}

fn assert_nix_knows(seen: &Seen) {
    assert_eq!(seen.fact("regInfo"), "/nix/store/.lazystore/registration");
    assert_eq!(seen.fact("load_db"), "0", "{}", seen.fact("nix_errors"));
    assert_eq!(seen.fact("verify_path"), "0");
    assert_eq!(seen.fact("references"), "2");
    assert_eq!(seen.fact("verify_absent"), "1");
}

/// Root disk, an empty disk, the store: the same order as without this module, for all kinds of store.
fn assert_letters(seen: &Seen, store: &str) {
    assert_eq!(seen.fact("disk_vda"), "root");
    assert_eq!(seen.fact("disk_vdb"), "");
    assert_eq!(seen.fact("device"), store);
    assert_eq!(seen.fact("serial"), "nixstore");
}

fn assert_exchanged(machine: &Machine, seen: &Seen) {
    assert_eq!(seen.fact("from_host"), "from the host");
    let answer = fs::read_to_string(machine.path("xchg/from-guest")).unwrap();
    assert_eq!(answer, "from the guest\n");
}

/// Other children of the script, which `lazystore run` inherits, end with the VM.
fn assert_no_daemon_left(machine: &Machine) {
    let pids = fs::read_to_string(machine.path("virtiofsd")).unwrap();
    assert_eq!(pids.lines().count(), 2);
    for pid in pids.lines() {
        wait_for("virtiofsd's end", || {
            (!Path::new("/proc").join(pid).exists()).then_some(())
        });
    }
}

#[test]
fn a_lazy_vm() {
    let user = "{ virtualisation.emptyDiskImages = [ 16 ]; }";
    let (machine, seen) = boot_nixos(user, &NIXOS);
    assert_closure_only(&seen);
    assert_letters(&seen, "/dev/vdd");
    assert_eq!(seen.fact("disk_vdc"), "lazystore-out");
    assert_eq!(seen.fact("root_mode"), "555");
    assert_eq!(seen.fact("label"), "nix-store");
    assert_exchanged(&machine, &seen);
    assert_no_daemon_left(&machine);
}

/// Tested from outside, like the module that this one replaces.
#[test]
fn a_vm_without_shared_directories() {
    let user = "{ virtualisation.qemu.isolation.keepSharedDirectories = false; }";
    let guest = Guest {
        share: None,
        ..NIXOS
    };
    let (machine, seen) = boot_nixos(user, &guest);
    assert_closure_only(&seen);
    assert_eq!(seen.fact("virt_mounts"), "0");
    assert!(!machine.path("virtiofsd").exists());
}

#[test]
fn a_vm_with_an_erofs_image() {
    boot_image("erofs", "755");
}

#[test]
fn a_vm_with_an_ext4_image() {
    boot_image("ext4", "755");
}

fn boot_image(fs_type: &'static str, root_mode: &str) {
    let user = format!(
        "{{ virtualisation.emptyDiskImages = [ 16 ];
            virtualisation.qemu.isolation.nixStoreFilesystemType = \"{fs_type}\"; }}"
    );
    let guest = Guest { fs_type, ..NIXOS };
    let (machine, seen) = boot_nixos(&user, &guest);
    assert_closure_only(&seen);
    assert_letters(&seen, "/dev/vdc");
    assert_eq!(seen.fact("root_mode"), root_mode);
    assert_exchanged(&machine, &seen);
    assert_no_daemon_left(&machine);
}

/// QEMU then runs as another user than the one that started it, and must still be able to connect to a new worker.
#[test]
fn a_vm_of_another_user_survives_its_worker() {
    let guest = Guest {
        share: None,
        qemu_options: Some("-runas nobody"),
        hash_s: 8,
        ..NIXOS
    };
    let machine = Machine::new();
    let user = "{ virtualisation.qemu.isolation.keepSharedDirectories = false; }";
    let script = built("vm", &qemu(), &[("user", user)]);
    let seen = machine.boot_and(&script, &guest, |vm| {
        wait_for("the guest to read", || {
            machine.console().contains("hashed 1").then_some(())
        });
        for worker in workers(vm) {
            kill(worker, Signal::SIGKILL).unwrap();
        }
    });
    assert_eq!(seen.fact("different_sums"), "1");
    assert_eq!(seen.fact("io_errors"), "0");
}

/// The processes that serve a VM: children of the server, which is a child of `lazystore run`.
fn workers(vm: Pid) -> Vec<Pid> {
    let is_lazystore = |pid: &Pid| {
        let name = fs::read_to_string(format!("/proc/{pid}/comm"));
        name.is_ok_and(|name| name.trim() == "lazystore")
    };
    let below = |pids: Vec<Pid>| pids.into_iter().flat_map(children).filter(is_lazystore);
    let servers = below(below(vec![vm]).collect());
    let workers: Vec<Pid> = below(servers.collect()).collect();
    assert!(!workers.is_empty());
    workers
}

const MICROVM: Guest = Guest {
    mount_dir: "/nix/.ro-store",
    fs_type: "erofs",
    disk: "virtio-blk-device",
    share: None,
    qemu_options: None,
    hash_s: 0,
};

#[test]
fn a_microvm_from_the_socket() {
    let machine = Machine::new();
    let seen = machine.boot(&built("runner", &qemu(), &[]), &MICROVM);
    assert_closure_only(&seen);
    // microvm.nix reserves the letter before it for the store.
    assert_eq!(seen.fact("device"), "/dev/vdb");
    wait_for("the server's end", || {
        (!machine.path("guest-lazystore.sock").exists()).then_some(())
    });
}

/// QEMU stands for the hypervisors that read a file.
#[test]
fn a_microvm_from_the_file_ends_with_its_server() {
    let machine = Machine::new();
    let microvm = "{ microvm = { hypervisor = \"firecracker\"; qemu.machine = \"q35\"; }; }";
    let runner = built("runner", &qemu(), &[("microvmUser", microvm)]);
    let guest = Guest {
        disk: "virtio-blk-pci",
        ..MICROVM
    };
    let seen = machine.boot(&runner, &guest);
    assert_closure_only(&seen);
    assert_eq!(seen.fact("device"), "/dev/vda");
    let dir = machine.path("guest-lazystore");
    wait_for("the unmount", || {
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        (!mounts.contains(dir.to_str().unwrap())).then_some(())
    });
}
