//! Debian's Nix on the fixtures in tests/nix, with a store of its own that programs can be run from.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Once;

use serde_json::Value;

use crate::common::tool;

/// The repository.
pub const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// A Nix store below the target directory. It outlives a test run, so what has not changed is not built again.
pub fn store() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("nix/store")
}

/// A program of Nix, for that store: without the users and the sandbox that nix-bin alone does not bring.
pub fn nix(program: &str) -> Command {
    static BEGUN: Once = Once::new();
    BEGUN.call_once(|| {
        // Two that begin one store at the same time get in each other's way ("creating symlink ...: File exists").
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

/// What a command printed; it must have succeeded.
pub fn printed(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// The value of an attribute of tests/nix, with arguments such as `("user", "{ }")`. Reads what it has to build first.
pub fn evaluated(attribute: &str, arguments: &[(&str, &str)]) -> Value {
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

/// Builds an attribute of tests/nix, with this build's lazystore; `qemu` is what takes the place of QEMU.
pub fn built(attribute: &str, qemu: &Path, arguments: &[(&str, &str)]) -> PathBuf {
    let mut command = nix("nix-build");
    command.args(["--no-out-link", "tests/nix", "-A", attribute]);
    command.args(["--argstr", "lazystore", env!("CARGO_BIN_EXE_lazystore")]);
    command.args(["--argstr", "qemu", qemu.to_str().unwrap()]);
    for (name, expression) in arguments {
        command.args(["--arg", name, expression]);
    }
    printed(&command.output().unwrap()).trim().into()
}
