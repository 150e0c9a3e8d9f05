//! Checks the units in scripts/systemd with systemd-analyze.

mod booted;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::common::client::Client;
use crate::common::process::{wait_for, wait_for_listener};
use crate::common::small_store::SmallStore;
use crate::common::{server, tool};

/// Maximum exposure level of the hardened service according to systemd, in tenths (0 to 100). One tenth is for
/// setpriority(2), with which the planner lowers its priority. Without CAP_SYS_NICE it cannot raise any.
const EXPOSURE_MAX: &str = "9";

/// The units for a VM called `web`, with the program under test.
fn units() -> (tempfile::TempDir, PathBuf, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/systemd");
    let unit = |kind: &str| {
        let text = fs::read_to_string(from.join(format!("lazystore@.{kind}"))).unwrap();
        let text = text.replace("/usr/bin/lazystore", env!("CARGO_BIN_EXE_lazystore"));
        let path = dir.path().join(format!("lazystore@web.{kind}"));
        fs::write(&path, text).unwrap();
        path
    };
    let (service, socket) = (unit("service"), unit("socket"));
    (dir, service, socket)
}

#[test]
#[ignore = "needs systemd"]
fn systemd_accepts_the_units() {
    let (_dir, service, socket) = units();
    let analyze = tool("systemd-analyze", "systemd");
    let mut verify = Command::new(analyze);
    let output = verify
        .arg("verify")
        .args([service, socket])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    assert_eq!(text, "");
}

#[test]
#[ignore = "needs systemd"]
fn the_exposure_level_of_the_service_has_not_grown() {
    let (_dir, service, _) = units();
    let mut security = Command::new(tool("systemd-analyze", "systemd"));
    let threshold = format!("--threshold={EXPOSURE_MAX}");
    let output = security
        .args(["security", "--offline=true", &threshold])
        .arg(service)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
}

/// The system calls in one of systemd's sets, such as `@privileged`.
fn set_of_calls(set: &str) -> BTreeSet<String> {
    let mut analyze = Command::new(tool("systemd-analyze", "systemd"));
    let output = analyze.args(["syscall-filter", set]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && text.starts_with(set), "{text}");
    let lines = text.lines().skip(1).map(str::trim);
    let inside = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
    let calls = inside.map(|name| match name.starts_with('@') {
        true => set_of_calls(name),
        false => BTreeSet::from([name.to_owned()]),
    });
    calls.flatten().collect()
}

/// The system calls that the unit allows. Later lines add calls to earlier ones, or remove them with ~.
fn allowed_calls(unit: &str) -> BTreeSet<String> {
    let mut allowed = set_of_calls("@default");
    let lines = unit.lines();
    for list in lines.filter_map(|line| line.strip_prefix("SystemCallFilter=")) {
        let (takes, list) = match list.strip_prefix('~') {
            Some(list) => (true, list),
            None => (false, list),
        };
        for name in list.split_whitespace() {
            let calls = match name.starts_with('@') {
                true => set_of_calls(name),
                false => BTreeSet::from([name.to_owned()]),
            };
            match takes {
                true => allowed.retain(|call| !calls.contains(call)),
                false => allowed.extend(calls),
            }
        }
    }
    allowed
}

/// Regression: the unit forbade system calls that the service needs to take its socket and to confine itself.
#[test]
#[ignore = "needs systemd and strace"]
fn the_unit_allows_the_system_calls_of_the_service() {
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/systemd/lazystore@.service");
    let allowed = allowed_calls(&fs::read_to_string(unit).unwrap());
    let store = SmallStore::new(&["aaa-one"]);
    let dir = tempfile::tempdir().unwrap();
    let (socket, trace) = (dir.path().join("socket"), dir.path().join("trace"));
    // Without capabilities, like the unit.
    let mut activate = Command::new(tool("setpriv", "util-linux"));
    activate.args(["--bounding-set=-all", "--inh-caps=-all"]);
    activate
        .arg(tool("systemd-socket-activate", "systemd"))
        .arg("-l")
        .arg(&socket)
        .arg(tool("strace", "strace"));
    // -D: strace is the child, because the process that was passed the socket must be the server.
    activate.args(["-D", "-f", "-o"]).arg(&trace);
    activate.arg(env!("CARGO_BIN_EXE_lazystore"));
    activate.args(["serve", "--once"]).args(store.args());
    let mut child = activate
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_for_listener(&mut child, &socket);
    drop(Client::start(&socket, 1));
    assert!(server::wait(&mut child).success());
    let server = child.id().to_string();
    let is_end = |line: &str| line.starts_with(&server) && line.contains("+++ exited with 0");
    let trace = wait_for("the trace", || {
        let trace = fs::read_to_string(&trace).ok()?;
        trace.lines().any(is_end).then_some(trace)
    });
    // Every service may make the dynamic loader's calls.
    let calls = trace
        .lines()
        .filter_map(|line| line.split_whitespace().nth(1)?.split_once('('));
    let refused: BTreeSet<&str> = calls
        .map(|(name, _)| name)
        .filter(|name| {
            name.starts_with(|c: char| c.is_ascii_lowercase()) && !allowed.contains(*name)
        })
        .collect();
    assert_eq!(refused, BTreeSet::new());
    assert!(
        ["seccomp(", "landlock_restrict_self(", "setpriority("]
            .iter()
            .all(|call| trace.contains(call)),
        "{trace}"
    );
}
