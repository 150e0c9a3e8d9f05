//! The Nix expressions, with Debian's nix-bin and without nixpkgs: tests/nix declares the options that the modules touch.
//!
//! Expressions are parsed, configurations evaluated, start scripts built and executed. What only a NixOS can show is the
//! test in nix/check.nix.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;
#[path = "nix/evaluator.rs"]
mod evaluator;
#[path = "nix/machine.rs"]
mod machine;
#[path = "nix/scripts.rs"]
mod scripts;

use std::path::{Path, PathBuf};
use std::process::Command;

use evaluator::{ROOT, evaluated, nix, printed, store, value_of};
use serde_json::{Value, json};

const IMAGE_TYPES: [&str; 2] = ["ext4", "erofs"];

fn nix_files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            nix_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "nix") {
            found.push(path);
        }
    }
}

#[test]
fn every_expression_parses() {
    let root = Path::new(ROOT);
    let mut files = vec![root.join("flake.nix")];
    nix_files(&root.join("nix"), &mut files);
    nix_files(&root.join("tests/nix"), &mut files);
    assert!(files.len() > 10, "{files:?}");
    let mut command = nix("nix-instantiate");
    printed(&command.arg("--parse").args(files).output().unwrap());
}

#[test]
fn the_flake_and_nix_default_offer_the_same() {
    let flake = value_of(
        "let nixpkgs = { lib = import ./tests/nix/lib.nix; legacyPackages.x86_64-linux = { }; };
             outputs = (import ./flake.nix).outputs { self = { }; inherit nixpkgs; };
         in { systems = builtins.attrNames outputs.packages;
              packages = builtins.attrNames outputs.packages.x86_64-linux;
              checks = builtins.attrNames outputs.checks.x86_64-linux;
              modules = builtins.mapAttrs (_: toString) outputs.nixosModules;
              overlay = builtins.attrNames (outputs.overlays.default { callPackage = _: _: 1; } { }); }",
    );
    let plain = value_of(
        "let ours = import ./nix { pkgs = { }; };
         in { modules = builtins.mapAttrs (_: toString) ours.nixosModules; checks = builtins.attrNames ours.checks; }",
    );
    assert_eq!(flake["systems"], json!(["aarch64-linux", "x86_64-linux"]));
    assert_eq!(flake["packages"], json!(["default", "lazystore"]));
    assert_eq!(flake["checks"], json!(["lazystore", "store-isolation"]));
    assert_eq!(flake["overlay"], json!(["lazystore"]));
    assert_eq!(plain["checks"], json!(["store-isolation"]));
    assert_eq!(flake["modules"], plain["modules"]);
    for module in flake["modules"].as_object().unwrap().values() {
        assert!(Path::new(module.as_str().unwrap()).is_file(), "{module}");
    }
}

/// The package's sources are all that cargo wants to see before it builds the program.
#[test]
fn the_package_has_what_cargo_needs() {
    let package = value_of(
        "let lib = { importTOML = file: builtins.fromTOML (builtins.readFile file);
                     fileset = { unions = map toString; toSource = source: source.fileset; };
                     licenses = { mit = 1; asl20 = 2; }; platforms.linux = [ ]; };
         in import ./nix/package.nix { inherit lib; rustPlatform.buildRustPackage = package:
              package // { cargoLock = builtins.mapAttrs (_: toString) package.cargoLock; }; }",
    );
    assert_eq!(package["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(
        package["cargoLock"],
        json!({ "lockFile": format!("{ROOT}/Cargo.lock") })
    );
    let sources = tempfile::tempdir().unwrap();
    for file in package["src"].as_array().unwrap() {
        let relative = Path::new(file.as_str().unwrap())
            .strip_prefix(ROOT)
            .unwrap();
        let to = sources.path().join(relative);
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        let copied = Command::new("cp")
            .arg("-r")
            .arg(Path::new(ROOT).join(relative))
            .arg(&to)
            .status();
        assert!(copied.unwrap().success(), "{file}");
    }
    let cargo = Command::new(env!("CARGO"))
        .args(["metadata", "--locked", "--offline", "--format-version", "1"])
        // What other platforms need has perhaps never been downloaded.
        .args([
            "--filter-platform",
            &format!("{}-unknown-linux-gnu", std::env::consts::ARCH),
        ])
        .current_dir(sources.path())
        .output();
    let metadata: Value = serde_json::from_str(&printed(&cargo.unwrap())).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let ours = packages.iter().find(|p| p["name"] == "lazystore").unwrap();
    let targets = ours["targets"].as_array().unwrap();
    for kind in ["lib", "bin"] {
        assert!(
            targets.iter().any(|t| t["kind"] == json!([kind])),
            "{targets:?}"
        );
    }
}

// --- the NixOS module, evaluated ---

fn summary(user: &str) -> Value {
    evaluated("summary", &[("user", user)])
}

fn user(store_type: &str, writable: bool) -> String {
    format!(
        "{{ virtualisation = {{ writableStore = {writable};
              qemu.isolation.nixStoreFilesystemType = \"{store_type}\"; }}; }}"
    )
}

/// The disk is mounted by its label, where the option says, and the host's store nowhere.
fn assert_mounted(vm: &Value, fs_type: &str, writable: bool) {
    let mount_dir = if writable {
        "/nix/.ro-store"
    } else {
        "/nix/store"
    };
    let mount = &vm["fileSystems"][mount_dir];
    assert_eq!(mount["label"], "nix-store");
    assert_eq!(mount["device"], Value::Null);
    assert_eq!(mount["fsType"], fs_type);
    assert_eq!(mount["options"], json!(["ro"]));
    assert_eq!(mount["neededForBoot"], true);
    assert_eq!(mount["noCheck"], true);
    let dirs: Vec<&String> = vm["fileSystems"].as_object().unwrap().keys().collect();
    if writable {
        assert_eq!(dirs, ["/nix/.ro-store", "/nix/.rw-store", "/nix/store"]);
        let overlay = &vm["fileSystems"]["/nix/store"]["overlay"];
        assert_eq!(overlay["lowerdir"], json!(["/nix/.ro-store"]));
        assert_eq!(overlay["upperdir"], "/nix/.rw-store/upper");
        assert_eq!(overlay["workdir"], "/nix/.rw-store/work");
    } else {
        assert_eq!(dirs, ["/nix/store"]);
        assert_eq!(mount["overlay"]["lowerdir"], Value::Null);
    }
    assert_eq!(vm["sharedDirectories"], json!({}));
    assert_eq!(vm["mountHostNixStore"], false);
    assert!(!vm["vmScript"].as_str().unwrap().contains("-virtfs"));
}

#[test]
fn lazy_builds_no_image_and_starts_qemu_through_lazystore() {
    for writable in [true, false] {
        let vm = summary(&user("lazy", writable));
        assert_mounted(&vm, "erofs", writable);
        assert_eq!(vm["built"], json!(["vm"]));
        assert_eq!(vm["drives"], json!([]));
        assert_eq!(vm["initrd"]["kernelModules"], json!(["erofs"]));
        assert_eq!(vm["failedAssertions"], json!([]));
        let script = vm["vmScript"].as_str().unwrap();
        assert!(
            script.contains("-qemu-with-store/bin/qemu-system-x86_64"),
            "{script}"
        );
        let start = vm["startScript"].as_str().unwrap();
        let run = format!("--store-dir {} -- \"$@\"\n", store().display());
        assert!(start.ends_with(&run), "{start}");
        assert!(
            start.contains("/bin/lazystore run --closure-info /"),
            "{start}"
        );
        // What nixpkgs looks at to choose the emulator.
        assert_eq!(vm["qemuVersion"], "7.2");
        assert_eq!(vm["hostIsLinux"], true);
    }
}

#[test]
fn images_are_attached_read_only_and_qemu_is_left_alone() {
    for (store_type, writable) in IMAGE_TYPES
        .into_iter()
        .flat_map(|t| [(t, true), (t, false)])
    {
        let vm = summary(&user(store_type, writable));
        assert_mounted(&vm, store_type, writable);
        assert_eq!(vm["built"], json!(["nixStoreImage", "vm"]));
        let drive = &vm["drives"][0];
        let options = json!({ "format": "raw", "read-only": "on", "werror": "report" });
        assert_eq!(drive["driveExtraOpts"], options);
        let image = if store_type == "ext4" {
            "nixos.img"
        } else {
            "nix-store.img"
        };
        assert!(drive["file"].as_str().unwrap().ends_with(image), "{drive}");
        assert_eq!(vm["drives"].as_array().unwrap().len(), 1);
        assert_eq!(vm["initrd"]["checkJournalingFS"], store_type != "ext4");
        assert_eq!(vm["startScript"], Value::Null);
    }
}

#[test]
fn by_default_the_store_is_lazy_and_writable() {
    let vm = summary("{ }");
    assert_mounted(&vm, "erofs", true);
    assert_eq!(vm["built"], json!(["vm"]));
    assert_eq!(vm["writableStore"], true);
}

#[test]
fn the_host_store_stays_out_whatever_else_is_said() {
    let vm = summary(
        "{ virtualisation = { mountHostNixStore = true;
             sharedDirectories.more = { source = \"/\"; target = \"/mnt\"; }; }; }",
    );
    assert_mounted(&vm, "erofs", true);
    let two = summary("{ virtualisation.useNixStoreImage = true; }");
    let message = two["failedAssertions"][0].as_str().unwrap();
    assert!(
        message.contains("useNixStoreImage makes a store image too"),
        "{message}"
    );
}

// --- the microvm.nix module, evaluated ---

fn microvm(user: &str) -> Value {
    evaluated("microvm", &[("microvmUser", user)])
}

#[test]
fn microvm_nix_gets_a_socket_for_qemu_and_a_file_for_others() {
    let qemu = microvm("{ }");
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
    assert!(
        qemu["storeDisk"]
            .as_str()
            .unwrap()
            .ends_with("-no-store-disk")
    );
    let other = microvm(
        "{ microvm.hypervisor = \"firecracker\"; microvm.lazystore.mountPoint = \"/run/vm\"; }",
    );
    assert_eq!(other["extraArgs"], json!([]));
    assert_eq!(other["storeDisk"], "/run/vm/nix-store.img");
    for (guest, transport) in [
        (&qemu, "--vhost-user guest-lazystore.sock\n"),
        (&other, "--fuse /run/vm\n"),
    ] {
        assert!(
            guest["preStart"].as_str().unwrap().contains(transport),
            "{guest}"
        );
        assert_eq!(guest["storeDiskType"], "erofs");
        assert_eq!(guest["failedAssertions"], json!([]));
    }
}

/// By the rule that microvm.nix has for its own disks; with shares it has a shared memory backend already.
#[test]
fn microvm_nix_on_a_machine_with_pci_gets_a_pci_device() {
    let pci = "vhost-user-blk-pci,chardev=lazystore,disable-legacy=on";
    let cases = [
        ("qemu.machine = \"q35\";", true),
        ("graphics.enable = true;", true),
        ("devices = [ { bus = \"pci\"; } ];", true),
        ("shares = [ { source = \"/srv\"; } ];", false),
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
    let usb = microvm("{ microvm.devices = [ { bus = \"usb\"; } ]; }");
    assert_eq!(
        usb["extraArgs"].as_array().unwrap().last().unwrap(),
        "vhost-user-blk,chardev=lazystore"
    );
}

#[test]
fn microvm_nix_is_left_alone_or_told_where_there_is_nothing_to_serve() {
    let shared = microvm("{ microvm.shares = [ { source = \"/nix/store\"; } ]; }");
    assert_eq!(shared["preStart"], "");
    assert_eq!(shared["extraArgs"], json!([]));
    for (definition, said) in [
        ("hypervisor = \"vfkit\"", "Linux host"),
        ("hotplugMem = 1", "use microvm.mem"),
    ] {
        let guest = microvm(&format!("{{ microvm.{definition}; }}"));
        let message = guest["failedAssertions"][0].as_str().unwrap();
        assert!(message.contains(said), "{message}");
    }
}
