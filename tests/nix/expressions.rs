//! The expressions by themselves: they parse, and the flake, nix/default.nix and the package offer what they should.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::evaluator::{ROOT, nix, printed, value_of};

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
             self.packages.x86_64-linux.lazystore = \"the flake's\";
             outputs = (import ./flake.nix).outputs { inherit self nixpkgs; };
             host.stdenv.hostPlatform.system = \"x86_64-linux\";
             guest = { config = { virtualisation.host.pkgs = host; microvm.vmHostPackages = host; }; pkgs = { }; };
             modules = builtins.mapAttrs (_: module: module guest) outputs.nixosModules;
         in { systems = builtins.attrNames outputs.packages;
              packages = builtins.attrNames outputs.packages.x86_64-linux;
              checks = builtins.attrNames outputs.checks.x86_64-linux;
              modules = builtins.mapAttrs (_: module: toString module.imports) modules;
              package = modules.default.virtualisation.qemu.isolation.package;
              microvmPackage = modules.microvm.microvm.lazystore.package;
              test = builtins.isFunction outputs.testModules.default;
              overlay = builtins.attrNames (outputs.overlays.default { callPackage = _: _: 1; } { }); }",
    );
    let plain = value_of(
        "let ours = import ./nix { pkgs = { }; };
         in { modules = builtins.mapAttrs (_: toString) ours.nixosModules; checks = builtins.attrNames ours.checks; }",
    );
    assert_eq!(flake["systems"], json!(["aarch64-linux", "x86_64-linux"]));
    assert_eq!(flake["packages"], json!(["default", "lazystore"]));
    assert_eq!(flake["checks"], json!(["lazystore", "store-isolation"]));
    // As a default, so that a user's own choice counts.
    let package = json!({ "_type": "override", "priority": 1000, "content": "the flake's" });
    assert_eq!(flake["package"], package);
    assert_eq!(flake["microvmPackage"], package);
    assert_eq!(flake["test"], true);
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
             optionalString = condition: text: if condition then text else \"\";
         in import ./nix/package.nix { lib = lib // { inherit optionalString; }; installShellFiles = 1; buildPackages = { };
              stdenv.hostPlatform = { emulator = _: \"\"; emulatorAvailable = _: true; };
              rustPlatform.buildRustPackage = package: package // { cargoLock = builtins.mapAttrs (_: toString) package.cargoLock; }; }",
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
