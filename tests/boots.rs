//! `lazystore boot`: real guests, booted repeatedly.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use crate::common::fuse::Server as FuseServer;
use crate::common::vm::{CONSOLE_ARGS, lock_guest};
use crate::common::{from_env, tool};

/// Runs `lazystore boot OPTIONS -- COMMAND`. Also returns what it leaves in its runtime directory.
fn boot(options: &[&str], command: &[&str]) -> (Output, usize) {
    let runtime = tempfile::tempdir().unwrap();
    let mut boot = Command::new(env!("CARGO_BIN_EXE_lazystore"));
    boot.arg("boot").args(options).arg("--").args(command);
    let output = boot
        .env("XDG_RUNTIME_DIR", runtime.path())
        .output()
        .unwrap();
    let left = fs::read_dir(runtime.path()).unwrap().count();
    (output, left)
}

/// A shell instead of a VM, which runs `script`.
fn shell(options: &[&str], script: &str) -> (i32, String, String) {
    let tree = crate::common::server::tree();
    let tree = ["--tree", tree.path().to_str().unwrap()];
    let script = format!(": {{socket}}; {script}");
    let (output, left) = boot(&[&tree, options].concat(), &["sh", "-c", &script]);
    assert_eq!(left, 0, "{output:?}");
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        output.status.code().unwrap(),
        text(output.stdout),
        text(output.stderr),
    )
}

#[test]
fn a_missing_mark_is_reported_in_one_sentence() {
    let options = ["--runs", "3", "--until", "login:", "--timeout", "2"];
    let (code, _, stderr) = shell(&options, "echo hello; echo; exec sleep 1000");
    assert_eq!(code, 1);
    assert_eq!(
        stderr,
        "lazystore: boot 1 did not print \"login:\" within 2 s: its last line was \"hello\"; is its console on stdout?\n"
    );
}

#[test]
fn a_vm_that_ends_before_the_mark_is_reported_in_one_sentence() {
    for (options, script) in [
        (&["--until", "login:"][..], "echo panic"),
        (&[][..], "echo panic; exit 3"),
    ] {
        let (code, _, stderr) = shell(options, script);
        assert_eq!(code, 1, "{stderr}");
        assert!(
            stderr.contains("the VM of boot 1 ended before it had booted"),
            "{stderr}"
        );
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
    }
}

#[test]
fn without_a_mark_a_vm_is_measured_until_it_ends() {
    let (code, stdout, stderr) = shell(&["--runs", "2"], "exit 0");
    assert_eq!(code, 0, "{stderr}");
    assert!(
        stdout.contains("exit") && !stdout.contains("mark"),
        "{stdout}"
    );
}

/// The mark may be written in two parts.
#[test]
fn a_mark_written_in_two_parts_is_found() {
    let script = "printf log; sleep 0.2; printf in:; exec sleep 1000";
    let (code, stdout, stderr) = shell(&["--runs", "1", "--until", "login:"], script);
    assert_eq!(code, 0, "{stderr}");
    assert!(stdout.contains("mark"), "{stdout}");
}

/// The guest of the other tests. It prints a line after running a program from the disk, and writes its results to `out`.
fn guest(out: &Path) -> Vec<String> {
    fs::File::create(out).unwrap().set_len(16 << 20).unwrap();
    let drive = format!("file={},format=raw,if=none,id=out", out.display());
    let append = format!(
        "{CONSOLE_ARGS} reboot=t lazystore.quick=1 lazystore.run={}",
        from_env("LAZYSTORE_TEST_RUN")
    );
    let qemu = tool("qemu-system-x86_64", "qemu-system-x86");
    let words = [
        qemu.to_str().unwrap(),
        "-accel",
        &from_env("LAZYSTORE_ACCEL"),
        "-cpu",
        "max",
        "-M",
        "q35",
        "-m",
        "512",
        "-nodefaults",
        "-no-user-config",
        "-no-reboot",
        "-display",
        "none",
        "-serial",
        "stdio",
        "-kernel",
        &from_env("LAZYSTORE_TEST_KERNEL"),
        "-initrd",
        &from_env("LAZYSTORE_TEST_INITRD"),
        "-append",
        &append,
        "-drive",
        &drive,
        "-device",
        "virtio-blk-pci,drive=out,serial=lazystore-out",
    ];
    words.map(str::to_owned).into()
}

fn median(series: &Value, phase: &str) -> f64 {
    let found = series["phases_ms"][phase]["median"].as_f64();
    found.unwrap_or_else(|| panic!("{phase} in {series}"))
}

#[test]
#[ignore = "boots a VM"]
fn real_guests_are_measured_phase_by_phase() {
    let _lock = lock_guest();
    let dir = tempfile::tempdir().unwrap();
    let closure_info = from_env("LAZYSTORE_TEST_CLOSURE_INFO");
    let closure = [
        "--closure-info",
        &*closure_info,
        "--store-root",
        &from_env("LAZYSTORE_TEST_STORE"),
    ];
    let built = FuseServer::start(&closure);
    let (json, svg) = (dir.path().join("boot.json"), dir.path().join("boot.svg"));
    let image = built.image();
    let options = [
        "--runs",
        "3",
        "--until",
        "program_status=0",
        "--vs",
        &closure_info,
        "--image",
        image.to_str().unwrap(),
        "--json",
        json.to_str().unwrap(),
        "--svg",
        svg.to_str().unwrap(),
    ];
    let guest = guest(&dir.path().join("out"));
    let guest: Vec<&str> = guest.iter().map(String::as_str).collect();
    let (output, left) = boot(&[&closure[..], &options].concat(), &guest);
    assert!(output.status.success() && left == 0, "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    println!("{text}");
    let all: Vec<Value> = serde_json::from_slice(&fs::read(&json).unwrap()).unwrap();
    assert_eq!(all.len(), 3);
    for series in &all[..2] {
        let phases = ["exec", "connect", "first read", "mount", "mark", "exit"];
        let phases = phases.map(|phase| median(series, phase));
        assert!(phases.is_sorted() && phases[0] > 0.0, "{series}");
        assert_eq!(
            series["phases_ms"]["mark"]["all"].as_array().unwrap().len(),
            3
        );
        assert!(series["requests"]["min"].as_f64() > Some(10.0), "{series}");
        assert!(
            series["read_bytes"]["min"].as_f64() > Some(100_000.0),
            "{series}"
        );
    }
    assert!(median(&all[2], "mark") <= median(&all[2], "exit"));
    assert_eq!(all[2]["requests"], Value::Null);
    assert_eq!(drawn(&svg), 3 * (6 + 6 + 2));
}

/// Dots of a plot.
fn drawn(svg: &Path) -> usize {
    fs::read_to_string(svg).unwrap().matches("<circle").count()
}
