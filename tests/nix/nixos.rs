//! Evaluates the module for NixOS VMs.

use serde_json::{Value, json};

use super::evaluator::{evaluated, store};

const IMAGE_TYPES: [&str; 2] = ["ext4", "erofs"];
const REGISTRATION: &str = "regInfo=/nix/store/.lazystore/registration";

fn summary(user: &str) -> Value {
    evaluated("summary", &[("user", user)])
}

fn user(store_type: &str, writable: bool, systemd: bool) -> String {
    format!(
        "{{ virtualisation = {{ writableStore = {writable};
              qemu.isolation.nixStoreFilesystemType = \"{store_type}\"; }};
            boot.initrd.systemd.enable = {systemd}; }}"
    )
}

/// All combinations of writable store and kind of initrd.
fn variants() -> impl Iterator<Item = (bool, bool)> {
    [true, false]
        .into_iter()
        .flat_map(|writable| [(writable, true), (writable, false)])
}

fn keys(value: &Value) -> Vec<&str> {
    value
        .as_object()
        .unwrap()
        .keys()
        .map(|key| &**key)
        .collect()
}

fn assertions(vm: &Value) -> Vec<&str> {
    let all = vm["failedAssertions"].as_array().unwrap();
    all.iter()
        .map(|message| message.as_str().unwrap())
        .collect()
}

/// The disk is mounted by its label, where the option says. The host's store is not mounted.
fn assert_mounted(vm: &Value, fs_type: &str, writable: bool) {
    assert_eq!(assertions(vm), [""; 0]);
    let mount_dir = if writable {
        "/nix/.ro-store"
    } else {
        "/nix/store"
    };
    let mount = &vm["fileSystems"][mount_dir];
    assert_eq!(mount["label"], "nix-store");
    assert_eq!(mount["fsType"], fs_type);
    assert_eq!(mount["options"], json!(["ro"]));
    assert_eq!(mount["neededForBoot"], true);
    assert_eq!(mount["noCheck"], true);
    let mut of_nix = keys(&vm["fileSystems"]);
    of_nix.retain(|dir| dir.starts_with("/nix"));
    if writable {
        assert_eq!(of_nix, ["/nix/.ro-store", "/nix/.rw-store", "/nix/store"]);
        let overlay = &vm["fileSystems"]["/nix/store"];
        assert_eq!(overlay["lowerdir"], json!(["/nix/.ro-store"]));
        assert_eq!(overlay["upperdir"], "/nix/.rw-store/upper");
        assert_eq!(overlay["workdir"], "/nix/.rw-store/work");
    } else {
        assert_eq!(of_nix, ["/nix/store"]);
        assert_eq!(mount["lowerdir"], Value::Null);
    }
    assert_eq!(vm["mountHostNixStore"], false);
    assert_eq!(vm["sharedDirectories"]["nix-store"], Value::Null);
    // The guest's Nix loads the registration that the first regInfo names.
    assert_eq!(vm["kernelParams"][0], REGISTRATION);
    assert!(!vm["options"].to_string().contains("tag=nix-store"));
}

#[test]
fn lazy_builds_no_image_and_starts_qemu_through_lazystore() {
    for (writable, systemd) in variants() {
        let vm = summary(&user("lazy", writable, systemd));
        assert_mounted(&vm, "erofs", writable);
        assert_eq!(vm["image"], Value::Null);
        assert_eq!(vm["drives"].as_array().unwrap().len(), 1);
        assert_eq!(vm["kernelModules"], json!(["erofs"]));
        assert_eq!(vm["checkJournalingFS"], true);
        let package = vm["package"].as_str().unwrap();
        assert!(package.ends_with("-vmm-with-store"), "{package}");
        let start = vm["startScript"].as_str().unwrap();
        let run = format!(
            "--with-registration --store-dir {} -- \"$@\"\n",
            store().display()
        );
        assert!(start.ends_with(&run), "{start}");
        assert!(
            start.contains("/bin/lazystore run --closure-info /"),
            "{start}"
        );
        // nixpkgs chooses the emulator by this.
        assert_eq!(vm["qemuVersion"], "7.2");
        assert_eq!(vm["hostIsLinux"], true);
    }
}

#[test]
fn images_are_the_last_drive_and_read_only_and_qemu_is_left_alone() {
    for (store_type, (writable, systemd)) in IMAGE_TYPES
        .into_iter()
        .flat_map(|store_type| variants().map(move |variant| (store_type, variant)))
    {
        let vm = summary(&user(store_type, writable, systemd));
        assert_mounted(&vm, store_type, writable);
        // As in the module that this one replaces: a derivation that holds nixos.img.
        assert_eq!(vm["image"], "derivation");
        let drives = vm["drives"].as_array().unwrap();
        let names: Vec<&Value> = drives.iter().map(|drive| &drive["name"]).collect();
        assert_eq!(names, ["root", "nixstore"]);
        let options = json!({ "format": "raw", "read-only": "on", "werror": "report" });
        assert_eq!(drives[1]["driveExtraOpts"], options);
        let file = drives[1]["file"].as_str().unwrap();
        assert!(file.ends_with("-nix-store-image/nixos.img"), "{file}");
        // The scripted initrd would check the disk regardless of noCheck. The root file system is checked differently.
        let unchecked = store_type == "ext4" && !systemd;
        assert_eq!(vm["checkJournalingFS"], !unchecked, "{store_type}");
        assert_eq!(vm["startScript"], Value::Null);
    }
}

/// Otherwise /dev/vdb in a test would be another disk than without this module.
#[test]
fn other_disks_keep_their_letters() {
    for store_type in IMAGE_TYPES {
        let vm = summary(&format!(
            "{{ virtualisation.emptyDiskImages = [ 16 ];
                virtualisation.qemu.isolation.nixStoreFilesystemType = \"{store_type}\"; }}"
        ));
        let drives = vm["drives"].as_array().unwrap();
        assert_eq!(drives.len(), 3);
        assert_eq!(drives[0]["name"], "root");
        assert_eq!(drives[2]["name"], "nixstore");
    }
}

#[test]
fn by_default_the_store_is_lazy_and_writable_and_shares_are_kept() {
    let vm = summary("{ }");
    assert_mounted(&vm, "erofs", true);
    assert_eq!(vm["storeType"], "lazy");
    assert_eq!(vm["writableStore"], true);
    assert_eq!(keys(&vm["sharedDirectories"]), ["shared", "xchg"]);
    assert_eq!(vm["fileSystems"]["/tmp/xchg"]["device"], "xchg");
    assert!(vm["options"].to_string().contains("tag=xchg"));
}

#[test]
fn shares_are_the_users_choice_and_never_show_the_store() {
    let own = "more = { source = \"/srv/more\"; target = \"/mnt\"; };";
    let kept = summary(&format!(
        "{{ virtualisation = {{ useHostCerts = true; mountHostNixStore = true; sharedDirectories.{own} }}; }}"
    ));
    assert_mounted(&kept, "erofs", true);
    let names = ["certs", "more", "shared", "xchg"];
    assert_eq!(keys(&kept["sharedDirectories"]), names);
    let none = summary(&format!(
        "{{ virtualisation.qemu.isolation.keepSharedDirectories = false; virtualisation.sharedDirectories.{own} }}"
    ));
    assert_mounted(&none, "erofs", true);
    assert_eq!(none["sharedDirectories"], json!({}));
    assert_eq!(none["fileSystems"]["/mnt"], Value::Null);
    assert!(!none["options"].to_string().contains("virtiofs"));
    for source in ["/", "builtins.storeDir", "builtins.dirOf builtins.storeDir"] {
        let source = if source == "/" { "\"/\"" } else { source };
        let vm = summary(&format!(
            "{{ virtualisation.sharedDirectories.more = {{ source = {source}; target = \"/mnt\"; }}; }}"
        ));
        let message = assertions(&vm)[0];
        assert!(
            message.contains("sharedDirectories.more shares /"),
            "{message}"
        );
    }
}

#[test]
fn unsupported_configurations_fail_with_an_explanation() {
    for (definition, text) in [
        (
            "useNixStoreImage = true;",
            "useNixStoreImage makes a store image too",
        ),
        (
            "useBootLoader = true;",
            "useBootLoader boots from a disk that has a store of its own",
        ),
        (
            "fileSystems = lib.mkForce { };",
            "Nothing is mounted at /nix/.ro-store",
        ),
    ] {
        let vm = summary(&format!(
            "{{ lib, ... }}: {{ virtualisation = {{ {definition} }}; }}"
        ));
        let all = assertions(&vm);
        assert!(all.iter().any(|message| message.contains(text)), "{all:?}");
    }
}

/// There is no lazystore on macOS, so an image is built there.
#[test]
fn on_a_host_that_is_not_linux_the_store_is_an_image() {
    let vm = evaluated("summary", &[("isLinux", "false")]);
    assert_mounted(&vm, "erofs", true);
    assert_eq!(vm["storeType"], "erofs");
    let lazy = "{ virtualisation.qemu.isolation.nixStoreFilesystemType = \"lazy\"; }";
    let vm = evaluated("summary", &[("isLinux", "false"), ("user", lazy)]);
    assert!(assertions(&vm)[0].contains("needs a Linux host: use \"erofs\""));
}
