//! Builds the modules' start scripts, and executes them with fake VMMs.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::evaluator::{ROOT, built, rebuilt};
use super::machine::Machine;
use crate::common::proc::children;
use crate::common::process::{first_line, wait_for};

fn fake_qemu() -> PathBuf {
    Path::new(ROOT).join("tests/nix/fake/qemu-system-x86_64")
}

fn lines(path: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(str::to_owned).collect()
}

/// Number of occurrences of an argument.
fn count(arguments: &[String], argument: &str) -> usize {
    arguments.iter().filter(|a| *a == argument).count()
}

/// Current NixOS starts QEMU with memory that is already shared, for virtiofs.
#[test]
fn the_start_script_gives_qemu_the_disk_and_cleans_up() {
    let machine = Machine::new();
    let script = built("vm", &fake_qemu(), &[]);
    let mut vm = machine.command(&script, "vm");
    let status = vm
        .env("QEMU_OPTS", "-smp 2 -nographic")
        .arg("-snapshot")
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(7));
    let arguments = lines(&machine.path("arguments"));
    let at = |argument: &str| arguments.iter().position(|a| a == argument).unwrap();
    assert!(at("-name") < at("-nographic") && at("-nographic") < at("-snapshot"));
    let disk = at("vhost-user-blk-pci,chardev=lazystore");
    assert_eq!(disk, arguments.len() - 1);
    // The existing memory backend is used.
    assert_eq!(count(&arguments, "-object"), 1);
    assert_eq!(count(&arguments, "memory-backend=mem0"), 1);
    let memory = &arguments[at("-object") + 1];
    assert_eq!(memory, "memory-backend-memfd,id=mem0,size=1024M,share=on");
    assert_eq!(
        lines(&machine.path("socket")),
        ["socket 600 root", "directory 700 root"]
    );
    assert_eq!(
        lines(&machine.path("directory")),
        [machine.path("vm").to_str().unwrap()]
    );
    let left: Vec<_> = std::fs::read_dir(machine.path("vm"))
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .filter(|name| !name.to_str().unwrap().starts_with("tmp."))
        .collect();
    assert_eq!(left, ["xchg"]);
}

/// Older NixOS starts QEMU without. The memory then becomes shared, with whatever size the options set.
#[test]
fn unshared_memory_becomes_shared() {
    let machine = Machine::new();
    let user = "{ virtualisation.qemu = { enableSharedMemory = false; isolation.keepSharedDirectories = false; }; }";
    let script = built("vm", &fake_qemu(), &[("user", user)]);
    let mut vm = machine.command(&script, "vm");
    let status = vm.env("QEMU_OPTS", "-m 2048").status().unwrap();
    assert_eq!(status.code(), Some(7));
    let arguments = lines(&machine.path("arguments"));
    let at = arguments.iter().position(|a| a == "-object").unwrap();
    let memory = &arguments[at + 1];
    assert!(memory.ends_with("size=2G,share=on"), "{memory}");
}

/// A socket's path is at most 107 bytes long.
#[test]
fn a_vm_works_in_a_directory_with_a_long_name() {
    let machine = Machine::new();
    let script = built("vm", &fake_qemu(), &[]);
    let below = "long/".repeat(30);
    assert_eq!(
        machine.command(&script, &below).status().unwrap().code(),
        Some(7)
    );
    assert_eq!(
        lines(&machine.path("socket")),
        ["socket 600 root", "directory 700 root"]
    );
}

#[test]
fn queries_to_qemu_get_no_disk() {
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
    for file in ["bin/qemu-img", "share/qemu/bios.bin"] {
        assert!(package.join(file).exists(), "{file}");
    }
}

// --- microvm.nix ---

/// Otherwise systemd would consider the unit active before the VM has booted.
#[test]
fn lazystore_does_not_notify_systemd() {
    let machine = Machine::new();
    let heard = machine.path("notify");
    let listener = UnixDatagram::bind(&heard).unwrap();
    for hypervisor in ["qemu", "firecracker", "cloud-hypervisor", "crosvm"] {
        let microvm = format!("{{ microvm.hypervisor = \"{hypervisor}\"; }}");
        let runner = built("runner", &fake_qemu(), &[("microvmUser", &microvm)]);
        let mut vm = machine.command(&runner, ".");
        let status = vm.env("NOTIFY_SOCKET", &heard).status().unwrap();
        assert_eq!(status.code(), Some(7), "{hypervisor}");
        // The VM has run, so an earlier notification would be here, before this one.
        let last = UnixDatagram::unbound().unwrap();
        last.send_to(b"nothing", &heard).unwrap();
        let mut message = [0; 64];
        let len = listener.recv(&mut message).unwrap();
        assert_eq!(&message[..len], b"nothing", "{hypervisor}");
    }
}

#[test]
fn cloud_hypervisor_gets_the_socket_and_shared_memory() {
    let machine = Machine::new();
    let microvm = "{ microvm.hypervisor = \"cloud-hypervisor\"; }";
    let runner = built("runner", &fake_qemu(), &[("microvmUser", microvm)]);
    let status = machine.command(&runner, ".").status().unwrap();
    assert_eq!(status.code(), Some(7));
    let arguments = lines(&machine.path("arguments"));
    assert_eq!(arguments[..2], ["--memory", "size=512M,shared=on"]);
    assert_eq!(arguments[2], "--disk");
    assert!(
        arguments[3].ends_with("-no-store-disk,readonly=on"),
        "{arguments:?}"
    );
    assert!(
        arguments[4].starts_with("vhost_user=true,socket=/"),
        "{arguments:?}"
    );
    assert_eq!(arguments.len(), 5);
}

#[test]
fn crosvm_gets_the_socket_only_when_it_runs_a_vm() {
    let machine = Machine::new();
    let microvm = "{ microvm.hypervisor = \"crosvm\"; }";
    let arguments = [("microvmUser", microvm)];
    let runner = built("runner", &fake_qemu(), &arguments);
    let status = machine.command(&runner, ".").status().unwrap();
    assert_eq!(status.code(), Some(7));
    let text = lines(&machine.path("arguments"));
    assert_eq!(text[..2], ["run", "--vhost-user"]);
    assert!(text[2].starts_with("block,socket=/"), "{text:?}");
    let program = built("crosvm", &fake_qemu(), &arguments).join("bin/crosvm");
    let mut button = machine.command(&program, ".");
    let status = button.args(["powerbtn", "vm.sock"]).status().unwrap();
    assert_eq!(status.code(), Some(7));
    assert_eq!(lines(&machine.path("arguments")), ["powerbtn", "vm.sock"]);
}

/// QEMU switches to that user after it has connected, and must be able to reconnect.
#[test]
fn the_socket_belongs_to_the_user_that_qemu_switches_to() {
    let machine = Machine::new();
    let microvm = "{ microvm.user = \"nobody\"; }";
    let runner = built("runner", &fake_qemu(), &[("microvmUser", microvm)]);
    let status = machine.command(&runner, ".").status().unwrap();
    assert_eq!(status.code(), Some(7));
    let socket = &lines(&machine.path("socket"))[0];
    assert_eq!(socket, "socket 600 nobody");
}

/// A PATH with only some of the machine's programs, and an `id` that reports another user.
fn path_without_fuse(machine: &Machine, uid: u32) -> PathBuf {
    let dir = machine.path("bin");
    std::fs::create_dir(&dir).unwrap();
    let id = dir.join("id");
    std::fs::write(&id, format!("#!/bin/sh\necho {uid}\n")).unwrap();
    std::fs::set_permissions(&id, PermissionsExt::from_mode(0o755)).unwrap();
    std::os::unix::fs::symlink("/bin/mkdir", dir.join("mkdir")).unwrap();
    dir
}

fn refused(vm: &mut Command) -> String {
    let output = vm.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn without_fuse_for_users_the_error_says_what_to_set() {
    let machine = Machine::new();
    let microvm = "{ microvm.hypervisor = \"firecracker\"; }";
    let runner = built("runner", &fake_qemu(), &[("microvmUser", microvm)]);
    let mut vm = machine.command(&runner, ".");
    vm.env("PATH", path_without_fuse(&machine, 1000));
    let text = refused(&mut vm);
    assert!(text.contains("set programs.fuse.enable = true"), "{text}");
}

/// microvm.nix restarts a VM whose processes were all killed.
#[test]
fn a_dead_mount_is_replaced() {
    let machine = Machine::new();
    let dir = machine.path("guest-lazystore");
    std::fs::create_dir(&dir).unwrap();
    let mut server = Command::new(env!("CARGO_BIN_EXE_lazystore"))
        .args(["serve", "--tree", ROOT, "--fuse", dir.to_str().unwrap()])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    assert!(first_line(&mut server).starts_with("ready "));
    let pid = Pid::from_raw(i32::try_from(server.id()).unwrap());
    let workers = children(pid);
    server.kill().unwrap();
    for worker in workers {
        // It may already have noticed that the server is gone.
        let _ = kill(worker, Signal::SIGKILL);
    }
    server.wait().unwrap();
    let microvm = "{ microvm.hypervisor = \"kvmtool\"; }";
    let runner = built("runner", &fake_qemu(), &[("microvmUser", microvm)]);
    let status = machine.command(&runner, ".").status().unwrap();
    assert_eq!(status.code(), Some(7));
    wait_for("the unmount", || {
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        (!mounts.contains(dir.to_str().unwrap())).then_some(())
    });
}

#[test]
fn a_directory_that_cannot_be_created_is_named() {
    let machine = Machine::new();
    let microvm =
        "{ microvm.hypervisor = \"firecracker\"; microvm.lazystore.mountPoint = \"/proc/none\"; }";
    let runner = built("runner", &fake_qemu(), &[("microvmUser", microvm)]);
    let text = refused(&mut machine.command(&runner, "."));
    assert!(text.contains("/proc/none, which cannot be made"), "{text}");
}

// --- images ---

/// They do not depend on the builder and the date.
#[test]
fn images_are_reproducible() {
    for store_type in ["erofs", "ext4"] {
        let user = format!(
            "{{ virtualisation.qemu.isolation.nixStoreFilesystemType = \"{store_type}\"; }}"
        );
        let image = built("image", &fake_qemu(), &[("user", &user)]);
        rebuilt("image", &[("user", &user)]);
        assert!(image.join("nixos.img").is_file());
    }
}
