//! The expressions parse, and the flake, nix/default.nix and the package have the right attributes.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use super::evaluator::{ROOT, nix, printed, value_of};

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
             guest = { config = { virtualisation.host.pkgs = host; microvm.vmHostPackages = host; }; pkgs = host; };
             modules = builtins.mapAttrs (_: module: module guest) outputs.nixosModules;
         in { systems = builtins.attrNames outputs.packages;
              packages = builtins.attrNames outputs.packages.x86_64-linux;
              checks = builtins.attrNames outputs.checks.x86_64-linux;
              modules = builtins.mapAttrs (_: module: toString module.imports) modules;
              package = modules.default.virtualisation.qemu.isolation.package;
              hostPackage = modules.host.services.lazystore.package;
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
    // A default, so that users can override it.
    let package = json!({ "_type": "override", "priority": 1000, "content": "the flake's" });
    assert_eq!(flake["package"], package);
    assert_eq!(flake["microvmPackage"], package);
    assert_eq!(flake["hostPackage"], package);
    assert_eq!(flake["test"], true);
    assert_eq!(flake["overlay"], json!(["lazystore"]));
    assert_eq!(plain["checks"], json!(["store-isolation"]));
    assert_eq!(flake["modules"], plain["modules"]);
    for module in flake["modules"].as_object().unwrap().values() {
        assert!(Path::new(module.as_str().unwrap()).is_file(), "{module}");
    }
}

/// The package's sources contain everything that cargo needs to build the program.
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
        // Dependencies of other platforms may not be downloaded.
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

/// The files that the package's install script installs besides the program.
#[test]
fn the_package_installs_units_pages_and_completions() {
    let package = value_of(
        "let lib = { importTOML = file: builtins.fromTOML (builtins.readFile file); licenses = { mit = 1; asl20 = 2; };
                     fileset = { unions = _: 1; toSource = _: 1; }; platforms.linux = [ ];
                     optionalString = condition: text: if condition then text else \"\"; };
         in import ./nix/package.nix { inherit lib; installShellFiles = 1; buildPackages = { };
              stdenv.hostPlatform = { emulator = _: \"env\"; emulatorAvailable = _: true; };
              rustPlatform.buildRustPackage = package: { inherit (package) postInstall; }; }",
    );
    let out = tempfile::tempdir().unwrap();
    let bin = out.path().join("bin");
    std::fs::create_dir(&bin).unwrap();
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_lazystore"), bin.join("lazystore")).unwrap();
    // The functions of nixpkgs' stdenv that the script calls.
    let functions = r#"
        set -euo pipefail
        substituteInPlace() { chmod u+w "$1"; [[ $2 == --replace-fail ]]; grep -q "$3" "$1"; sed -i "s|$3|$4|" "$1"; }
        installManPage() { printf '%s\n' "$@" >"$out/pages"; }
        installShellCompletion() { grep -l lazystore "$4" "$6" "$8" >"$out/completions"; }
    "#;
    let work = tempfile::tempdir().unwrap();
    let copied = Command::new("cp")
        .args(["-r", &format!("{ROOT}/scripts"), "."])
        .current_dir(work.path())
        .status();
    assert!(copied.unwrap().success());
    let script = format!("{functions}\n{}", package["postInstall"].as_str().unwrap());
    let bash = Command::new("bash")
        .args(["-c", &script])
        .env("out", out.path())
        .current_dir(work.path())
        .output();
    printed(&bash.unwrap());
    let read = |name: &str| std::fs::read_to_string(out.path().join(name)).unwrap();
    assert!(read("pages").contains("pages/lazystore-serve.1"));
    assert_eq!(read("completions").lines().count(), 3);
    let unit = read("lib/systemd/system/lazystore@.service");
    let start = format!("ExecStart={}/bin/lazystore serve", out.path().display());
    assert!(unit.contains(&start), "{unit}");
    assert!(read("lib/systemd/system/lazystore@.socket").contains("ListenStream"));
    let place = |file: &str| out.path().join(file).display().to_string();
    let description = read("share/qemu/vhost-user/50-lazystore.json");
    assert!(description.contains(&place("libexec/lazystore/vhost-user-blk")));
    assert!(read("libexec/lazystore/vhost-user-blk").contains(&place("bin/lazystore")));
}

/// Like nixpkgs does for useNixStoreImage: guests get the paths that the test script refers to.
#[test]
fn paths_of_a_test_script_are_added_to_its_guests() {
    let paths = |test: &str| {
        value_of(&format!(
            "let lib = import ./tests/nix/lib.nix;
                 named = builtins.toFile \"named\" \"x\";
                 parallel = {{ nodesCompat.machine.toplevel = builtins.toFile \"toplevel\" \"x\"; }};
                 test = {{ includeTestScriptReferences = true; withoutTestScriptReferences = parallel; }} // ({test});
                 module = import ./nix/test.nix {{ }} {{
                   inherit lib; config = test; options.${{if test ? old then \"x\" else \"nodeDefaults\"}} = 1;
                   hostPkgs.writeStringReferencesToFile = text: builtins.attrNames (builtins.getContext text); }};
                 node = module.config.${{if test ? old then \"defaults\" else \"nodeDefaults\"}};
                 of = useNixStoreImage: (node {{ config.virtualisation = {{ inherit useNixStoreImage; }}; }});
             in {{ paths = builtins.concatLists (of false).virtualisation.additionalPaths;
                  image = (of true).virtualisation.additionalPaths;
                  imports = map toString (of false).imports; }}"
        ))
    };
    let script = paths("{ testScript = \"cat ${named}\"; }");
    assert_eq!(script["paths"].as_array().unwrap().len(), 1);
    assert!(script["paths"][0].as_str().unwrap().ends_with("-named"));
    assert_eq!(script["image"], json!([]));
    assert_eq!(
        script["imports"],
        json!([format!("{ROOT}/nix/qemu-vm.nix")])
    );
    let of_nodes = paths("{ testScript = { nodes }: \"${nodes.machine.toplevel} ${named}\"; }");
    assert_eq!(of_nodes["paths"].as_array().unwrap().len(), 2);
    let old = paths("{ old = true; testScript = \"cat ${named}\"; }");
    assert_eq!(old["paths"].as_array().unwrap().len(), 1);
    let none = paths("{ testScript = \"true\"; }");
    assert_eq!(none["paths"], json!([]));
    let left_out = paths("{ includeTestScriptReferences = false; testScript = \"${named}\"; }");
    assert_eq!(left_out["paths"], json!([]));
}
