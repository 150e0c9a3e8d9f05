//! Independent clients.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Output};

use super::server::Server;
use crate::common::tool;

/// Runs a command that must succeed within two minutes. Returns its stdout.
fn run(command: &mut Command) -> String {
    let output = output(command);
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn output(command: &mut Command) -> Output {
    Command::new(tool("timeout", "coreutils"))
        .args(["-k", "5", "120"])
        .arg(command.get_program())
        .args(command.get_args())
        .output()
        .unwrap()
}

#[test]
#[ignore = "needs libnbd and QEMU"]
fn nbdinfo_describes_the_export() {
    let server = Server::start();
    let nbdinfo = tool("nbdinfo", "libnbd-bin");
    let text = run(Command::new(&nbdinfo).args(["--list", &server.uri("")]));
    for part in [
        "protocol: newstyle-fixed without TLS, using structured packets",
        "export=\"store\"",
        "export=\"other\"",
        "description: the disk store",
        "base:allocation",
        "is_read_only: true",
        "can_multi_conn: true",
        "can_df: true",
        "can_flush: true",
        "can_trim: false",
        "block_size_minimum: 1",
        "block_size_preferred: 4096",
        "block_size_maximum: 33554432",
    ] {
        assert!(text.contains(part), "{part} is missing in {text}");
    }
    let size = run(Command::new(&nbdinfo).args(["--size", &server.uri("store")]));
    assert_eq!(size.trim(), server.image.len_bytes().to_string());
    let no_such = output(Command::new(&nbdinfo).arg(server.uri("nowhere")));
    assert!(!no_such.status.success());
}

#[test]
#[ignore = "needs libnbd and QEMU"]
fn nbdinfo_and_qemu_img_agree_about_the_map() {
    let server = Server::start();
    let totals = run(Command::new(tool("nbdinfo", "libnbd-bin"))
        .args(["--map", "--totals"])
        .arg(server.uri("store")));
    let data: u64 = totals
        .lines()
        .find(|line| line.ends_with("data"))
        .and_then(|line| line.split_whitespace().next()?.parse().ok())
        .unwrap();
    let map = run(Command::new(tool("qemu-img", "qemu-utils"))
        .args(["map", "-f", "raw", "--output=json"])
        .arg(server.uri("store")));
    let map: serde_json::Value = serde_json::from_str(&map).unwrap();
    let extents = map.as_array().unwrap();
    let of = |extent: &serde_json::Value, name: &str| extent[name].as_u64().unwrap();
    let in_use = extents.iter().filter(|extent| extent["data"] == true);
    assert_eq!(in_use.map(|extent| of(extent, "length")).sum::<u64>(), data);
    let last = extents.last().unwrap();
    assert_eq!(
        of(last, "start") + of(last, "length"),
        server.image.len_bytes()
    );
}

/// Compares a copy of the disk with the disk: the used parts completely, the rest by samples.
fn assert_same(server: &Server, copy: &Path) {
    let copy = File::open(copy).unwrap();
    assert_eq!(copy.metadata().unwrap().len(), server.image.len_bytes());
    let (mut ours, mut theirs) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let dense = [0, 128 << 30].map(|start: u64| (start..start + (16 << 20)).step_by(1 << 20));
    let sparse = (0..server.image.len_bytes() - (1 << 20)).step_by(1 << 38);
    for offset in dense.into_iter().flatten().chain(sparse) {
        copy.read_exact_at(&mut theirs, offset).unwrap();
        server.image.read_exact_at(&mut ours, offset).unwrap();
        assert!(ours == theirs, "{offset}");
    }
}

#[test]
#[ignore = "needs libnbd and QEMU"]
fn nbdcopy_copies_the_disk() {
    let server = Server::start();
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("copy");
    run(Command::new(tool("nbdcopy", "libnbd-bin"))
        .arg(server.uri("store"))
        .arg(&copy));
    assert_same(&server, &copy);
}

#[test]
#[ignore = "needs libnbd and QEMU"]
fn qemu_img_copies_the_disk() {
    let server = Server::start();
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("copy");
    let qemu_img = tool("qemu-img", "qemu-utils");
    run(Command::new(&qemu_img)
        .args(["convert", "-f", "raw", "-O", "raw"])
        .arg(server.uri("store"))
        .arg(&copy));
    assert_same(&server, &copy);
    run(Command::new(&qemu_img)
        .args(["compare", "-f", "raw", "-F", "raw"])
        .arg(server.uri("store"))
        .arg(&copy));
}

/// A Python script for libnbd's shell.
const SCRIPT: &str = r#"
assert h.is_read_only() and h.can_df() and h.can_multi_conn()
assert h.pread(4, 1024) == b"\xe2\xe1\xf5\xe0"
whole = h.pread(1 << 20, 128 << 30)
pieces = bytearray(1 << 20)
def chunk(data, offset, status, error):
    at = offset - (128 << 30)
    pieces[at:at + len(data)] = data
assert h.pread_structured(1 << 20, 128 << 30, chunk) == whole and bytes(pieces) == whole
assert h.pread_structured(1 << 20, 128 << 30, chunk, nbd.CMD_FLAG_DF) == whole
cookies = [h.aio_pread(nbd.Buffer(65536), (128 << 30) + n * 65536) for n in range(64)]
while h.aio_in_flight() > 0: h.poll(-1)
h.flush()
h.set_strict_mode(0)
for call in [lambda: h.pwrite(b"x" * 4096, 0), lambda: h.trim(512, 0), lambda: h.zero(512, 0), lambda: h.cache(512, 0), lambda: h.pread(1, h.get_size())]:
    try:
        call()
        assert False
    except nbd.Error as error:
        assert error.errno in ("EPERM", "EINVAL"), error
assert h.pread(1 << 20, 128 << 30) == whole
print("fine", h.get_protocol(), h.get_structured_replies_negotiated())
"#;

#[test]
#[ignore = "needs libnbd and QEMU"]
fn nbdsh_reads_with_all_flags_and_cannot_write() {
    let server = Server::start();
    // Debian's Python, which has Debian's packages. There may be others in PATH.
    let text = run(Command::new("env")
        .arg("PATH=/usr/bin:/bin")
        .arg(tool("nbdsh", "python3-libnbd"))
        .args(["-u", &server.uri("store"), "-c", SCRIPT]));
    assert_eq!(text.trim(), "fine newstyle-fixed True");
}

#[test]
#[ignore = "needs libnbd and QEMU"]
fn the_file_system_is_found_in_a_copy() {
    let server = Server::start();
    let dir = tempfile::tempdir().unwrap();
    let (copy, out) = (dir.path().join("copy"), dir.path().join("out"));
    run(Command::new(tool("nbdcopy", "libnbd-bin"))
        .arg(server.uri("store"))
        .arg(&copy));
    run(Command::new(tool("fsck.erofs", "erofs-utils"))
        .arg(format!("--extract={}", out.display()))
        .arg(&copy));
    let mut theirs = Vec::new();
    File::open(out.join("two/three/file3000001"))
        .unwrap()
        .read_to_end(&mut theirs)
        .unwrap();
    assert!(fs::read(server.tree().join("two/three/file3000001")).unwrap() == theirs);
}
