//! Evaluates the module for microvm.nix.

use serde_json::{Value, json};

use super::evaluator::{MICROVM, evaluated, real};

/// Hypervisors that read the disk as a file.
const FILE_HYPERVISORS: [&str; 4] = ["firecracker", "kvmtool", "stratovirt", "alioth"];
/// Hypervisors that `lazystore run` starts.
const WRAPPED_HYPERVISORS: [&str; 2] = ["cloud-hypervisor", "crosvm"];

fn microvm(user: &str) -> Value {
    evaluated("microvm", &[("microvmUser", user)])
}

fn with(hypervisor: &str) -> Value {
    microvm(&format!("{{ microvm.hypervisor = \"{hypervisor}\"; }}"))
}

/// Checks that apply to all of them. With the real microvm.nix, also that the script that starts the VM can be built.
fn assert_served(guest: &Value) {
    assert_eq!(guest["failedAssertions"], json!([]));
    assert_eq!(guest["storeDiskType"], "erofs");
    assert_eq!(
        guest["kernelParams"][0],
        "regInfo=/nix/store/.lazystore/registration"
    );
    let modules = guest["kernelModules"].as_array().unwrap();
    assert!(modules.contains(&json!("erofs")), "{modules:?}");
    assert_eq!(guest["command"].is_string(), real(MICROVM).is_some());
}

#[test]
fn qemu_gets_a_socket() {
    let qemu = microvm("{ }");
    assert_served(&qemu);
    let shared = "memory-backend-memfd,id=lazystore,size=512M,share=on";
    let arguments = json!([
        "-object",
        shared,
        "-machine",
        "memory-backend=lazystore",
        "-chardev",
        "socket,id=lazystore,path=guest-lazystore.sock,reconnect=1",
        "-global",
        "virtio-mmio.force-legacy=false",
        "-device",
        "vhost-user-blk,chardev=lazystore"
    ]);
    assert_eq!(qemu["extraArgs"], arguments);
    let placeholder = qemu["storeDisk"].as_str().unwrap();
    assert!(placeholder.ends_with("-no-store-disk"), "{placeholder}");
    let start = qemu["preStart"].as_str().unwrap();
    assert!(
        start.contains("--vhost-user guest-lazystore.sock\n"),
        "{start}"
    );
    assert!(start.contains("--with-registration"), "{start}");
    assert!(!start.contains("chown"), "{start}");
    let other = microvm("{ microvm.user = \"vm\"; }");
    let start = other["preStart"].as_str().unwrap();
    assert!(start.contains("chown vm guest-lazystore.sock"), "{start}");
}

#[test]
fn hypervisors_that_read_a_file_get_one_in_the_directory_of_the_vm() {
    for hypervisor in FILE_HYPERVISORS {
        let guest = with(hypervisor);
        assert_served(&guest);
        assert_eq!(guest["extraArgs"], json!([]));
        let file = "/proc/self/cwd/guest-lazystore/nix-store.img";
        assert_eq!(guest["storeDisk"], file);
        let start = guest["preStart"].as_str().unwrap();
        assert!(start.contains("--fuse guest-lazystore\n"), "{start}");
        assert!(start.contains("programs.fuse.enable"), "{start}");
    }
    let chosen = microvm(
        "{ microvm.hypervisor = \"firecracker\"; microvm.lazystore.mountPoint = \"/run/vm\"; }",
    );
    assert_eq!(chosen["storeDisk"], "/run/vm/nix-store.img");
    let start = chosen["preStart"].as_str().unwrap();
    assert!(start.contains("--fuse /run/vm\n"), "{start}");
}

#[test]
fn hypervisors_that_know_vhost_user_are_started_by_lazystore() {
    for hypervisor in WRAPPED_HYPERVISORS {
        let guest = with(hypervisor);
        assert_served(&guest);
        if guest["startScript"].is_null() && real(MICROVM).is_some() {
            // Before February 2026, microvm.nix had no option for the hypervisor's package.
            assert!(
                guest["preStart"]
                    .as_str()
                    .unwrap()
                    .contains("--fuse guest-lazystore")
            );
            continue;
        }
        let start = guest["startScript"].as_str().unwrap();
        assert!(
            start.contains("/bin/lazystore run --closure-info /"),
            "{start}"
        );
        assert!(
            !guest["preStart"]
                .as_str()
                .unwrap()
                .contains("lazystore serve")
        );
        let placeholder = guest["storeDisk"].as_str().unwrap();
        assert!(placeholder.ends_with("-no-store-disk"), "{placeholder}");
    }
}

/// Follows microvm.nix's rule for its own disks. With shares there already is a shared memory backend.
#[test]
fn a_machine_with_pci_gets_a_pci_device() {
    let pci = "vhost-user-blk-pci,chardev=lazystore,disable-legacy=on";
    let share = "{ tag = \"srv\"; source = \"/srv\"; mountPoint = \"/srv\"; }";
    let cases = [
        ("qemu.machine = \"q35\";".to_owned(), true),
        ("graphics.enable = true;".to_owned(), true),
        (
            "devices = [ { bus = \"pci\"; path = \"0\"; } ];".to_owned(),
            true,
        ),
        (format!("shares = [ {share} ];"), false),
    ];
    for (definition, own_memory) in cases {
        let guest = microvm(&format!("{{ microvm = {{ {definition} }}; }}"));
        let arguments: Vec<&str> = guest["extraArgs"]
            .as_array()
            .unwrap()
            .iter()
            .map(|a| a.as_str().unwrap())
            .collect();
        assert_eq!(arguments.last(), Some(&pci), "{definition}");
        assert_eq!(arguments.contains(&"-object"), own_memory, "{definition}");
    }
    let usb = microvm("{ microvm.devices = [ { bus = \"usb\"; path = \"0\"; } ]; }");
    assert_eq!(
        usb["extraArgs"].as_array().unwrap().last().unwrap(),
        "vhost-user-blk,chardev=lazystore"
    );
}

#[test]
fn without_a_store_disk_nothing_is_added_and_hotplugged_memory_is_refused() {
    let store = "{ tag = \"ro-store\"; source = \"/nix/store\"; mountPoint = \"/nix/.ro-store\"; }";
    let shared = microvm(&format!("{{ microvm.shares = [ {store} ]; }}"));
    assert_eq!(shared["preStart"], "");
    assert_eq!(shared["extraArgs"], json!([]));
    let plugged = microvm("{ microvm.hotplugMem = 1; }");
    let message = plugged["failedAssertions"][0].as_str().unwrap();
    assert!(message.contains("use microvm.mem"), "{message}");
}

#[test]
fn macos_has_no_lazystore() {
    let guest = with("vfkit");
    let message = guest["failedAssertions"][0].as_str().unwrap();
    assert!(message.contains("Linux host"), "{message}");
}

/// The option for compression does not apply to a disk that is never built.
#[test]
fn squashfs_is_no_conflict() {
    assert_served(&microvm("{ microvm.storeDiskType = \"squashfs\"; }"));
}
