//! The units in scripts/systemd, as systemd-analyze sees them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::tool;

/// Tenths of systemd's exposure level, of 100: what the hardening of the service has come down to.
const EXPOSURE_MAX: &str = "2";

/// The units for a VM called `web`, starting the program under test.
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
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert_eq!(said, "");
}

#[test]
#[ignore = "needs systemd"]
fn the_service_is_as_confined_as_it_was() {
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
