//! Runs Debian's Nix on the fixtures in tests/nix, with a separate store from which programs can be run.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Once;

use serde_json::Value;

use crate::common::tool;

/// The repository.
pub const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// A Nix store below the target directory. It is kept, so that later runs do not build everything again.
pub fn store() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("nix/store")
}

/// A Nix program for that store, configured without build users and sandbox, which nix-bin alone does not have.
pub fn nix(program: &str) -> Command {
    static BEGUN: Once = Once::new();
    BEGUN.call_once(|| {
        // Two processes that create a store at the same time conflict ("creating symlink ...: File exists").
        let mut begin = on_the_store("nix-store");
        printed(&begin.arg("--init").output().unwrap());
    });
    on_the_store(program)
}

fn on_the_store(program: &str) -> Command {
    let mut command = Command::new(tool(program, "nix-bin"));
    let base = store().parent().unwrap().to_owned();
    for dir in ["store", "state", "log", "conf"] {
        let place = base.join(dir);
        std::fs::create_dir_all(&place).unwrap();
        command.env(format!("NIX_{}_DIR", dir.to_uppercase()), place);
    }
    command.env_remove("NIX_REMOTE").current_dir(ROOT).env(
        "NIX_CONFIG",
        "sandbox = false\nbuild-users-group =\nsubstituters =",
    );
    command
}

/// Output of a command that must have succeeded.
pub fn printed(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// A directory with the real code, which replaces an imitation.
pub fn real(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).map(PathBuf::from)
}

/// The real nixpkgs: lib and nixos, which qemu-vm.nix needs.
pub const NIXPKGS: &str = "LAZYSTORE_TEST_NIXPKGS";
/// The real microvm.nix.
pub const MICROVM: &str = "LAZYSTORE_TEST_MICROVM";

/// A mkfs.erofs that is newer than Debian's.
const MKFS_EROFS: &str = "LAZYSTORE_TEST_MKFS_EROFS";

/// Prints once what is evaluated. A test's own output would be shown only if it failed.
fn say_what_is_evaluated() {
    static SAID: Once = Once::new();
    SAID.call_once(|| {
        for variable in [NIXPKGS, MICROVM] {
            let text = match real(variable) {
                Some(dir) => format!("{variable}: evaluating {}\n", dir.display()),
                None => format!("{variable} is not set: evaluating the imitation in tests/nix\n"),
            };
            std::io::stderr().write_all(text.as_bytes()).unwrap();
        }
    });
}

/// The value of an attribute of tests/nix, with the real code where it is given. microvm.nix needs nixpkgs' lib.
pub fn evaluated(attribute: &str, arguments: &[(&str, &str)]) -> Value {
    say_what_is_evaluated();
    let mut all: Vec<(&str, String)> = Vec::new();
    for (name, variable) in [("nixpkgs", NIXPKGS), ("microvmNix", MICROVM)] {
        if let Some(dir) = real(variable) {
            all.push((name, format!("/. + \"{}\"", dir.display())));
        }
    }
    all.extend(
        arguments
            .iter()
            .map(|(name, value)| (*name, (*value).to_owned())),
    );
    let all: Vec<(&str, &str)> = all.iter().map(|(name, value)| (*name, &**value)).collect();
    imitated(attribute, &all)
}

/// The value of an attribute of tests/nix, with arguments such as `("user", "{ }")`. Builds what the evaluation reads.
pub fn imitated(attribute: &str, arguments: &[(&str, &str)]) -> Value {
    let mut command = nix("nix-instantiate");
    command.args([
        "--eval",
        "--strict",
        "--json",
        "--read-write-mode",
        "tests/nix",
    ]);
    command.args(["-A", attribute]);
    for (name, expression) in arguments {
        command.args(["--arg", name, expression]);
    }
    serde_json::from_str(&printed(&command.output().unwrap())).unwrap()
}

/// The value of an expression that finds the repository at `./.`.
pub fn value_of(expression: &str) -> Value {
    let mut command = nix("nix-instantiate");
    command.args(["--eval", "--strict", "--json", "-E", expression]);
    serde_json::from_str(&printed(&command.output().unwrap())).unwrap()
}

/// Builds an attribute of tests/nix with this build's lazystore. `qemu` replaces QEMU.
pub fn built(attribute: &str, qemu: &Path, arguments: &[(&str, &str)]) -> PathBuf {
    let mut command = build(attribute, arguments);
    command.args(["--argstr", "qemu", qemu.to_str().unwrap()]);
    printed(&command.output().unwrap()).trim().into()
}

/// Builds it again. The result must be the same.
pub fn rebuilt(attribute: &str, arguments: &[(&str, &str)]) {
    let mut command = build(attribute, arguments);
    printed(&command.arg("--check").output().unwrap());
}

fn build(attribute: &str, arguments: &[(&str, &str)]) -> Command {
    let mut command = nix("nix-build");
    command.args(["--no-out-link", "tests/nix", "-A", attribute]);
    command.args(["--argstr", "lazystore", env!("CARGO_BIN_EXE_lazystore")]);
    if let Some(mkfs) = real(MKFS_EROFS) {
        command.args(["--argstr", "mkfsErofs", mkfs.to_str().unwrap()]);
    }
    for (name, expression) in arguments {
        command.args(["--arg", name, expression]);
    }
    command
}
