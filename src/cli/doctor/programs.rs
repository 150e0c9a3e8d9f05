//! Checks which VMMs are installed.

use std::process::{Command, Stdio};

use super::Finding;

/// QEMU for this machine's architecture.
pub fn qemu() -> String {
    format!("qemu-system-{}", std::env::consts::ARCH)
}

/// Checks that there is a VMM, and that QEMU supports vhost-user-blk.
pub fn vmm() -> Finding {
    let qemu = qemu();
    if let Some(version) = version(&qemu) {
        let device = ["-device", "vhost-user-blk-pci,help"];
        return match succeeds(&qemu, &device) {
            true => Finding::ok("QEMU", format!("{version}, with vhost-user-blk")),
            false => Finding::note(
                "QEMU",
                format!("{version}, without vhost-user-blk"),
                "install a QEMU that has it (Debian's and nixpkgs' do), or give it the file: --fuse",
            ),
        };
    }
    let others = ["cloud-hypervisor", "crosvm"];
    match others.into_iter().find_map(version) {
        Some(version) => Finding::ok("VMM", version),
        None => Finding::missing(
            "QEMU",
            format!("neither {qemu} nor cloud-hypervisor nor crosvm is in PATH"),
            "install QEMU (Debian: qemu-system-x86, nixpkgs: qemu)",
        ),
    }
}

/// Returns the first line of the output of `--version`.
fn version(program: &str) -> Option<String> {
    let output = Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().next().map(str::to_owned)
}

fn succeeds(program: &str, args: &[&str]) -> bool {
    let output = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output();
    output.is_ok_and(|output| output.status.success())
}
