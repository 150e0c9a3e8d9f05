//! Build script: sets the commit and the features that `--version` prints.

use std::env;
use std::fs;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=src/cli/build.rs");
    println!("cargo::rerun-if-env-changed=LAZYSTORE_COMMIT");
    println!("cargo::rustc-env=LAZYSTORE_BUILD={}", build());
}

/// For example `commit 0123456789ab, features: bench`.
fn build() -> String {
    let features = features();
    match commit() {
        Some(commit) => format!("commit {commit}, {features}"),
        None => features,
    }
}

/// The enabled features; Cargo sets one environment variable for each.
fn features() -> String {
    let names = env::vars().filter_map(|(name, _)| {
        let name = name.strip_prefix("CARGO_FEATURE_")?;
        (name != "DEFAULT").then(|| name.to_lowercase().replace('_', "-"))
    });
    let mut names: Vec<_> = names.collect();
    names.sort();
    match names.is_empty() {
        true => "no features".to_owned(),
        false => format!("features: {}", names.join(" ")),
    }
}

/// The commit. `None` if unknown, and in debug builds, which would otherwise be rebuilt after every commit.
fn commit() -> Option<String> {
    if env::var("PROFILE").is_ok_and(|profile| profile == "debug") {
        return None;
    }
    // Set by builds from a tree without history, such as Nix builds.
    let given = env::var("LAZYSTORE_COMMIT").ok();
    let commit = given
        .filter(|text| !text.is_empty())
        .or_else(packaged)
        .or_else(checked_out)?;
    let is_hash = commit.len() >= 12 && commit.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_hash.then(|| commit[..12].to_owned())
}

/// The commit recorded by `cargo package`.
fn packaged() -> Option<String> {
    let info = fs::read_to_string(".cargo_vcs_info.json").ok()?;
    let hash = info.split_once("\"sha1\":")?.1;
    Some(hash.split('"').nth(1)?.to_owned())
}

/// The commit of the git repository in this directory. A surrounding repository, such as that of a vendoring project,
/// does not count.
fn checked_out() -> Option<String> {
    fs::metadata(".git").ok()?;
    for file in ["HEAD", "logs/HEAD"] {
        println!(
            "cargo::rerun-if-changed={}",
            git(&["rev-parse", "--git-path", file])?
        );
    }
    git(&["rev-parse", "HEAD"])
}

fn git(args: &[&str]) -> Option<String> {
    let output = Command::new("git").args(args).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}
