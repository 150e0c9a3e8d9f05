//! All ways of reading the file return the disk's bytes.

use std::fs::{self, File, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::process::Command;

use proptest::prelude::*;

use super::serve_tree;
use crate::common::direct::aligned;
use crate::common::fuse::{Server, run};
use crate::common::process::{end_strace, strace};
use crate::common::{cases, nar, tool, tree_image};

const MIB: usize = 1 << 20;
/// Start of the file data.
const DATA: u64 = 128 << 30;
/// The byte that one file consists of.
const PATTERN: u8 = 7;

/// A store with a list and a registration, whose ranges are therefore upper bounds.
fn small() -> (tempfile::TempDir, Server) {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("nix/store");
    fs::create_dir_all(store.join("aaa-one/sub")).unwrap();
    fs::write(store.join("aaa-one/pattern"), vec![PATTERN; 4 * MIB]).unwrap();
    fs::write(
        store.join("aaa-one/sub/random"),
        crate::common::tree::contents(3, 3 * MIB + 5),
    )
    .unwrap();
    fs::write(store.join("bbb-two"), "two").unwrap();
    let record = |name: &str| {
        let size = nar::size_bytes(&store.join(name));
        format!(
            "/nix/store/{name}\nsha256:{}\n{size}\n\n0\n",
            "0".repeat(64)
        )
    };
    fs::write(
        dir.path().join("registration"),
        record("aaa-one") + &record("bbb-two"),
    )
    .unwrap();
    fs::write(
        dir.path().join("store-paths"),
        "/nix/store/aaa-one\n/nix/store/bbb-two\n",
    )
    .unwrap();
    let args =
        ["--store-root", "--closure-info"].map(|flag| [flag.as_ref(), dir.path().as_os_str()]);
    let server = Server::start(&args.concat());
    (dir, server)
}

#[test]
#[ignore = "needs root, /dev/fuse and tools"]
fn random_reads_return_the_images_bytes() {
    let tree = tempfile::tempdir().unwrap();
    for (name, len) in [("a", 5 * MIB), ("b", 100), ("c", 70_000)] {
        fs::write(
            tree.path().join(name),
            crate::common::tree::contents(len, len),
        )
        .unwrap();
    }
    let server = serve_tree(tree.path());
    let (file, image) = (File::open(server.image()).unwrap(), tree_image(tree.path()));
    let starts = [
        0,
        DATA,
        DATA + 5 * MIB as u64,
        image.len_bytes() - 2 * MIB as u64,
    ];
    let places = (0..starts.len(), 0..MIB as u64, 0..=MIB);
    proptest!(cases(200), |((start, offset, len) in places)| {
        let at = starts[start] + offset;
        let (mut theirs, mut ours) = (vec![1; len], vec![2; len]);
        image.read_exact_at(&mut theirs, at).unwrap();
        file.read_exact_at(&mut ours, at).unwrap();
        prop_assert!(theirs == ours);
    });
    assert_eq!(file.metadata().unwrap().len(), image.len_bytes());
    assert_eq!(file.read_at(&mut [0; 10], image.len_bytes()).unwrap(), 0);
}

#[test]
#[ignore = "needs root, /dev/fuse and tools"]
fn a_mebibyte_arrives_as_one_request() {
    let (_dir, server) = small();
    let bdi = fs::metadata(server.image()).unwrap().dev();
    let (major, minor) = (rustix::fs::major(bdi), rustix::fs::minor(bdi));
    let ahead =
        fs::read_to_string(format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb")).unwrap();
    assert_eq!(ahead.trim(), "1024");
    let trace = tempfile::NamedTempFile::new().unwrap();
    let worker = nix::unistd::Pid::from_raw(server.worker().unwrap().as_raw_pid());
    let path = trace.path().to_str().unwrap();
    let strace = strace(worker, &["-e", "trace=writev", "-o", path]);
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECT)
        .open(server.image())
        .unwrap();
    file.read_exact_at(aligned(&mut vec![0; MIB + 4096], MIB), DATA)
        .unwrap();
    let buffered = File::open(server.image()).unwrap();
    buffered
        .read_exact_at(&mut vec![0; MIB], DATA + MIB as u64)
        .unwrap();
    end_strace(strace);
    drop(server);
    let trace = fs::read_to_string(trace.path()).unwrap();
    // The length of each reply's data. The last line of the trace may be written after the reader has continued.
    let whole = trace.matches(&format!("iov_len={MIB}}}]")).count();
    assert!(whole >= 2, "{trace}");
}

#[test]
#[ignore = "needs root, /dev/fuse and tools"]
fn direct_reads_and_shared_mappings_work() {
    let (_dir, server) = small();
    let direct = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECT)
        .open(server.image())
        .unwrap();
    let mut buffer = vec![0; MIB + 4096];
    let got = aligned(&mut buffer, MIB);
    direct.read_exact_at(got, DATA).unwrap();
    assert!(got.iter().all(|byte| *byte == PATTERN));
    assert!(mapped_bytes(&direct).iter().all(|byte| *byte == PATTERN));
}

/// The first bytes of data, through a shared mapping.
#[allow(unsafe_code)]
fn mapped_bytes(file: &File) -> Vec<u8> {
    let (null, fd, at) = (
        std::ptr::null_mut(),
        file.as_raw_fd(),
        libc::off_t::try_from(DATA).unwrap(),
    );
    // SAFETY: the kernel chooses the address. The mapping is only read as bytes, and unmapped before this returns.
    unsafe {
        let place = libc::mmap(null, MIB, libc::PROT_READ, libc::MAP_SHARED, fd, at);
        assert_ne!(place, libc::MAP_FAILED);
        let bytes = std::slice::from_raw_parts(place.cast::<u8>(), MIB).to_vec();
        assert_eq!(libc::munmap(place, MIB), 0);
        bytes
    }
}

#[test]
#[ignore = "needs root, /dev/fuse and tools"]
fn seek_finds_holes() {
    let tree = tempfile::tempdir().unwrap();
    fs::write(tree.path().join("a"), vec![PATTERN; MIB]).unwrap();
    let server = serve_tree(tree.path());
    let file = File::open(server.image()).unwrap();
    let len = file.metadata().unwrap().len();
    assert!(len > 15 << 40, "{len}");
    let seek = |at: SeekFrom| (&file).seek(at);
    assert_eq!(seek(SeekFrom::End(0)).unwrap(), len);
    let find = |at, hole| {
        let at = if hole {
            rustix::fs::SeekFrom::Hole(at)
        } else {
            rustix::fs::SeekFrom::Data(at)
        };
        rustix::fs::seek(&file, at)
    };
    let hole = find(0, true).unwrap();
    assert!(hole < MIB as u64);
    assert_eq!(find(hole, false), Ok(DATA));
    assert_eq!(find(DATA, true), Ok(DATA + MIB as u64));
    assert_eq!(find(DATA + MIB as u64, false), Err(rustix::io::Errno::NXIO));
}

fn same_as_the_disk(copy: &Path, original: &Path) {
    let (copy, original) = (File::open(copy).unwrap(), File::open(original).unwrap());
    let len = original.metadata().unwrap().len();
    assert_eq!(copy.metadata().unwrap().len(), len);
    for at in [
        0,
        MIB as u64,
        DATA,
        DATA + 7 * MIB as u64,
        len - 2 * MIB as u64,
    ] {
        let size = usize::try_from((len - at).min(7 * MIB as u64)).unwrap();
        let (mut ours, mut theirs) = (vec![1; size], vec![2; size]);
        copy.read_exact_at(&mut ours, at).unwrap();
        original.read_exact_at(&mut theirs, at).unwrap();
        assert!(ours == theirs, "differs after {at}");
    }
}

#[test]
#[ignore = "needs root, /dev/fuse and tools"]
fn sparse_copies_are_normal_images() {
    let (_dir, server) = small();
    let out = tempfile::tempdir().unwrap();
    let (copied, converted) = (out.path().join("copied"), out.path().join("converted"));
    run(Command::new(tool("cp", "coreutils"))
        .arg("--sparse=always")
        .arg(server.image())
        .arg(&copied));
    let qemu_img = tool("qemu-img", "qemu-utils");
    run(Command::new(&qemu_img)
        .args(["convert", "-f", "raw", "-O", "raw"])
        .arg(server.image())
        .arg(&converted));
    let text = run(Command::new(&qemu_img)
        .args(["info", "-f", "raw"])
        .arg(server.image()));
    assert!(String::from_utf8(text).unwrap().contains("virtual size"));
    for copy in [&copied, &converted] {
        // Reading the holes, 16 TiB, would take far longer.
        let allocated_bytes = 512 * fs::metadata(copy).unwrap().blocks();
        assert!(allocated_bytes < 32 * MIB as u64, "{allocated_bytes}");
        same_as_the_disk(copy, &server.image());
        run(Command::new(tool("fsck.erofs", "erofs-utils")).arg(copy));
    }
}

#[test]
#[ignore = "needs root, /dev/fuse and tools"]
fn qemu_reads_with_every_aio_mode() {
    let (_dir, server) = small();
    let read = format!("read -P {PATTERN} {DATA} 4M");
    for how in [
        &["-t", "writeback", "-i", "threads"],
        &["-t", "none", "-i", "native"],
        &["-t", "none", "-i", "io_uring"],
    ] {
        let qemu_io = tool("qemu-io", "qemu-utils");
        let text = run(Command::new(qemu_io)
            .args(["-r", "-f", "raw"])
            .args(how)
            .args(["-c", &read])
            .arg(server.image()));
        let text = String::from_utf8(text).unwrap();
        assert!(
            text.contains("read 4194304/4194304") && !text.contains("verification failed"),
            "{how:?}: {text}"
        );
    }
}
