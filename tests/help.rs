//! Help, manual pages, completions, log lines, and the doctor.

use std::process::{Command, Output};

use crate::common::{from_env, tool};
use serde_json::Value;

fn lazystore(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lazystore"));
    command.args(args).env_remove("RUST_LOG");
    command
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stdout_of(args: &[&str]) -> String {
    stdout(&lazystore(args).output().unwrap())
}

const SUBCOMMANDS: [&str; 7] = [
    "run",
    "serve",
    "inspect",
    "verify",
    "doctor",
    "completions",
    "man",
];

#[test]
fn help_shows_usage_first_and_does_not_wrap_examples() {
    for args in [
        &["--help"][..],
        &["-h"],
        &["run", "--help"],
        &["serve", "--help"],
    ] {
        let help = stdout(&lazystore(args).env("COLUMNS", "80").output().unwrap());
        let (before, examples) = help.split_once("\nExamples:\n").unwrap();
        assert!(before.contains("\nUsage: lazystore "), "{args:?}: {help}");
        let examples = examples.split("\n\n").next().unwrap();
        for line in examples.lines() {
            assert!(line.starts_with("  "), "wrapped: {line}");
        }
        let longest = help.lines().filter(|line| !line.starts_with("Usage: "));
        assert!(longest.map(str::len).max() <= Some(80), "{help}");
    }
    let help = stdout_of(&["serve", "--help"]);
    for group in [
        "Closure:",
        "Where to serve:",
        "Socket options:",
        "Recording and prefetching:",
    ] {
        assert!(help.contains(&format!("\n{group}\n")), "{group}: {help}");
    }
    let help = stdout_of(&["--help"]);
    for subcommand in SUBCOMMANDS {
        assert!(
            help.contains(&format!("\n  {subcommand} ")),
            "{subcommand}: {help}"
        );
    }
    assert!(!help.contains("\n  ranges "), "{help}");
    assert!(stdout_of(&["run", "--help"]).contains("CONFIG_EROFS_FS"));
}

#[test]
fn every_shell_gets_completions() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = stdout_of(&["completions", shell]);
        for word in ["closure-info", "socket-group", "doctor"] {
            assert!(script.contains(word), "{shell} lacks {word}");
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let script = dir.path().join("script");
    std::fs::write(&script, stdout_of(&["completions", "bash"])).unwrap();
    let checked = Command::new("bash")
        .arg("-n")
        .arg(&script)
        .output()
        .unwrap();
    assert!(checked.status.success(), "{checked:?}");
}

#[test]
fn every_subcommand_has_a_manual_page() {
    let dir = tempfile::tempdir().unwrap();
    stdout_of(&["man", "--dir", dir.path().to_str().unwrap()]);
    assert!(dir.path().join("lazystore.1").is_file());
    for subcommand in SUBCOMMANDS {
        let page =
            std::fs::read_to_string(dir.path().join(format!("lazystore-{subcommand}.1"))).unwrap();
        assert!(
            page.contains(&format!(".TH lazystore-{subcommand} 1")),
            "{page}"
        );
        for section in ["EXIT STATUS", "ENVIRONMENT", "EXAMPLES", "SEE ALSO"] {
            let is_there = page.contains(&format!(".SH \"{section}\""));
            assert!(is_there || section == "EXAMPLES", "{subcommand}: {section}");
        }
        let printed = stdout_of(&["man", subcommand]);
        assert!(
            printed.contains(&format!(".TH lazystore-{subcommand} 1")),
            "{printed}"
        );
    }
    assert!(stdout_of(&["man"]).contains("lazystore serve \\-\\-tree ./rootfs"));
    assert!(stdout_of(&["man", "serve"]).contains(".SH \"FILES\""));
    assert!(!dir.path().join("lazystore-ranges.1").exists());
    let output = lazystore(&["man", "nothing"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn json_log_lines_are_objects() {
    let json = [
        "--log-format",
        "json",
        "serve",
        "--vhost-user",
        "/nowhere/s",
        "--tree",
    ];
    for tree in ["/nowhere", "/proc/self"] {
        let output = lazystore(&json).arg(tree).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        let lines = String::from_utf8(output.stderr).unwrap();
        assert!(!lines.is_empty());
        for line in lines.lines() {
            let line: Value = serde_json::from_str(line).expect(line);
            assert_eq!(line["level"], "ERROR");
            assert!(
                line["fields"]["message"]
                    .as_str()
                    .unwrap()
                    .contains("/nowhere")
            );
        }
    }
}

#[test]
fn an_invalid_rust_log_is_reported() {
    let output = lazystore(&["man"])
        .env("RUST_LOG", "lazystore=loud")
        .output()
        .unwrap();
    assert!(output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("RUST_LOG is malformed"));
}

#[test]
fn the_version_lists_the_features() {
    let long = stdout_of(&["--version"]);
    assert!(
        long.starts_with("lazystore ") && long.contains("features"),
        "{long}"
    );
    assert_eq!(
        stdout_of(&["-V"]),
        format!("lazystore {}\n", env!("CARGO_PKG_VERSION"))
    );
}

#[test]
#[cfg(not(feature = "bench"))]
fn bench_names_the_feature_that_it_needs() {
    let output = lazystore(&["bench", "--socket", "x", "--help"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("--features bench"), "{text}");
}

fn doctor(command: &mut Command) -> (Vec<Value>, Option<i32>) {
    let output = command.output().unwrap();
    let findings = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {output:?}"));
    (findings, output.status.code())
}

fn finding<'a>(findings: &'a [Value], name: &str) -> &'a Value {
    let found = findings.iter().find(|finding| finding["name"] == name);
    found.unwrap_or_else(|| panic!("no {name} in {findings:?}"))
}

#[test]
#[ignore = "boots a VM"]
fn the_doctor_tries_kvm_with_a_real_boot() {
    let kernel = from_env("LAZYSTORE_TEST_KERNEL");
    let (findings, code) = doctor(&mut lazystore(&["doctor", "--json", "--kernel", &kernel]));
    assert_eq!(code, Some(0), "{findings:?}");
    let kvm = finding(&findings, "KVM");
    // The result of a trial boot by scripts/test.
    let boots = from_env("LAZYSTORE_ACCEL").starts_with("kvm");
    assert_eq!(kvm["status"] == "ok", boots, "{kvm}");
    assert_eq!(finding(&findings, "QEMU")["status"], "ok");
    assert_eq!(finding(&findings, "kernel")["status"], "ok");
}

#[test]
#[ignore = "needs prlimit"]
fn the_doctor_names_what_is_missing() {
    let empty = tempfile::tempdir().unwrap();
    let mut without_qemu = lazystore(&["doctor", "--json"]);
    let (findings, code) = doctor(without_qemu.env("PATH", empty.path()));
    assert_eq!(code, Some(1));
    let qemu = finding(&findings, "QEMU");
    assert_eq!(qemu["status"], "missing");
    assert!(qemu["remedy"].as_str().unwrap().contains("install QEMU"));

    let output = lazystore(&["doctor"])
        .env("PATH", empty.path())
        .output()
        .unwrap();
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(table.contains("\nMISSING QEMU         neither"), "{table}");

    let mut few_files = Command::new(tool("prlimit", "util-linux"));
    few_files.args([
        "--nofile=64",
        env!("CARGO_BIN_EXE_lazystore"),
        "doctor",
        "--json",
    ]);
    let (findings, _) = doctor(few_files.env("PATH", empty.path()));
    let files = finding(&findings, "open files");
    assert_eq!(
        (&files["status"], &files["found"]),
        (&Value::from("note"), &Value::from("64 at most"))
    );
}
