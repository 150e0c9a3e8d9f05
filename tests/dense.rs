//! `--dense`: a disk as small as its closure, which guests can map.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use lazystore::erofs::format::BLOCK_LEN_BYTES;
use lazystore::image::{Image, ImageError, ImageOptions, ReadError, Seek};
use proptest::prelude::*;
use rustix::process::Signal;

use crate::common::fuse::{Server, mount_loop, run};
use crate::common::process::wait_for;
use crate::common::reader::{Expect, compare};
use crate::common::tree::{any_dir, contents};
use crate::common::vm::{fact, lock_guest, script};
use crate::common::{cases, from_env, memory_dir, nar, nasty, store_closure, store_image, tool};

/// A disk's length is a multiple of this.
const LEN_UNIT_BYTES: u64 = 2 << 20;

fn options() -> ImageOptions {
    ImageOptions {
        dense: true,
        ..ImageOptions::default()
    }
}

fn dense_image(dir: &Path, sizes: impl Fn(&Path) -> Option<u64>) -> Result<Image, ImageError> {
    Image::new(&store_closure(dir, sizes), &options())
}

/// The bytes that something is in, and how many blocks of files there must be at least.
fn used_bytes(image: &Image) -> u64 {
    let regions = image.space().regions();
    let each = (0..).zip(regions).map(|(region, here)| {
        let used = image.usage(region).unwrap();
        let limits = here.limits();
        assert_eq!(
            (used.meta_blocks, used.data_blocks),
            (limits.meta_blocks, limits.data_blocks)
        );
        u64::from(used.meta_blocks) + u64::from(used.data_blocks)
    });
    let root_blocks = u64::from(regions[0].meta.start);
    (root_blocks + each.sum::<u64>()) * BLOCK_LEN_BYTES
}

proptest! {
    #![proptest_config(cases(32))]

    #[test]
    fn a_dense_disk_reads_back_and_has_no_gap(tree in any_dir()) {
        let dir = memory_dir();
        tree.write(dir.path());
        let image = Arc::new(dense_image(dir.path(), |path| Some(nar::size_bytes(path))).unwrap());
        let files = compare(&image, dir.path(), Expect::Nar);
        let used = used_bytes(&image);
        prop_assert_eq!(image.len_bytes(), used.next_multiple_of(LEN_UNIT_BYTES));
        prop_assert_eq!(image.seek(0, Seek::Hole), Some(used.min(image.len_bytes())));
        let sparse = Arc::new(store_image(dir.path(), |path| Some(nar::size_bytes(path))));
        prop_assert_eq!(compare(&sparse, dir.path(), Expect::Nar), files);
        prop_assert_eq!(sparse.fingerprint() == image.fingerprint(), false);
    }

    /// It depends on the contents alone: neither on registered sizes nor on what was read before.
    #[test]
    fn a_dense_disk_is_the_same_without_registered_sizes(tree in any_dir()) {
        let dir = memory_dir();
        tree.write(dir.path());
        let one = dense_image(dir.path(), |path| Some(nar::size_bytes(path))).unwrap();
        let other = dense_image(dir.path(), |_| None).unwrap();
        prop_assert_eq!(one.fingerprint(), other.fingerprint());
        let (mut a, mut b) = ([0; 4096], [0; 4096]);
        let used = used_bytes(&one);
        for at in (0..used).step_by(4096) {
            one.read_exact_at(&mut a, at).unwrap();
            let other_at = used - 4096 - at;
            other.read_exact_at(&mut b, other_at).unwrap();
            other.read_exact_at(&mut b, at).unwrap();
            prop_assert!(a == b, "block at {} differs", at);
        }
    }
}

/// A store of four paths with files around every limit of the format.
fn store() -> tempfile::TempDir {
    let dir = memory_dir();
    for (path, name) in ["aaa-one", "bbb-two", "ccc-three"].into_iter().enumerate() {
        let path_dir = dir.path().join(name);
        fs::create_dir(&path_dir).unwrap();
        for (seed, len) in [0, 1, 2047, 4095, 4096, 4097, 300_000]
            .into_iter()
            .enumerate()
        {
            fs::write(path_dir.join(len.to_string()), contents(seed + path, len)).unwrap();
        }
        std::os::unix::fs::symlink("4097", path_dir.join("link")).unwrap();
    }
    fs::write(dir.path().join("ddd-file"), contents(9, 5000)).unwrap();
    dir
}

/// DAX maps whole pages of the disk: every file that is not empty must have blocks of its own.
#[test]
fn every_file_has_blocks_of_its_own() {
    let dir = store();
    let image = dense_image(dir.path(), |_| None).unwrap();
    let blocks = |len: u64| len.div_ceil(BLOCK_LEN_BYTES);
    let in_path = [1, 2047, 4095, 4096, 4097, 300_000]
        .map(blocks)
        .iter()
        .sum::<u64>();
    let used = (0..4).map(|region| image.usage(region).unwrap().data_blocks);
    let expected = [in_path, in_path, in_path, blocks(5000)];
    assert_eq!(used.map(u64::from).collect::<Vec<_>>(), expected);
}

#[test]
fn a_path_that_differs_from_its_registration_is_refused() {
    let dir = store();
    let size = |path: &Path| Some(nar::size_bytes(path) + u64::from(path.ends_with("bbb-two")) * 8);
    let error = dense_image(dir.path(), size).unwrap_err();
    assert!(
        matches!(&error, ImageError::Plan(ReadError::NarSize { path, .. }) if path.ends_with("bbb-two")),
        "{error}"
    );
}

/// Writes the lists for the entries of `store` and returns the arguments for them.
fn lists(dir: &Path, store: &Path, size: impl Fn(&Path) -> u64) -> [String; 6] {
    let mut names: Vec<_> = fs::read_dir(store)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    names.sort();
    let path = |path: &PathBuf| {
        format!(
            "/nix/store/{}\n",
            path.file_name().unwrap().to_str().unwrap()
        )
    };
    let list: String = names.iter().map(path).collect();
    let record = |at: &PathBuf| format!("{}{}\n{}\n\n0\n", path(at), "0".repeat(64), size(at));
    let registration: String = names.iter().map(record).collect();
    fs::write(dir.join("list"), list).unwrap();
    fs::write(dir.join("registration"), registration).unwrap();
    fs::create_dir_all(dir.join("nix")).unwrap();
    let _ = fs::remove_file(dir.join("nix/store"));
    std::os::unix::fs::symlink(store, dir.join("nix/store")).unwrap();
    let text = |path: PathBuf| path.to_str().unwrap().to_owned();
    [
        "--store-root".to_owned(),
        text(dir.to_owned()),
        "--store-paths".to_owned(),
        text(dir.join("list")),
        "--registration".to_owned(),
        text(dir.join("registration")),
    ]
}

fn lazystore(args: &[&str], more: &[String]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lazystore"));
    command.args(args).args(more).output().unwrap()
}

#[test]
fn verify_accepts_it_and_a_wrong_size_is_one_sentence() {
    let (store, dir) = (store(), memory_dir());
    let args = lists(dir.path(), store.path(), nar::size_bytes);
    let output = lazystore(&["verify", "--dense", "--no-hash"], &args);
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success() && stdout.contains("no differences"),
        "{stdout}"
    );
    let args = lists(dir.path(), store.path(), |path| nar::size_bytes(path) + 8);
    let output = lazystore(&["inspect", "--dense"], &args);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(
        (output.status.code(), stderr.lines().count()),
        (Some(1), 1),
        "{stderr}"
    );
    assert!(
        stderr.contains("aaa-one: its files make a NAR of"),
        "{stderr}"
    );
}

/// Their sizes are not known for good, or not yet.
#[test]
fn trees_and_binary_caches_are_refused() {
    for other in [
        &["--tree", "/"][..],
        &["/nix/store/x", "--from", "https://cache.example.org"],
    ] {
        let output = lazystore(&[&["fingerprint", "--dense"], other].concat(), &[]);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        for part in ["--dense", "cannot be used with"] {
            assert!(stderr.contains(part), "{stderr}");
        }
    }
}

/// The paths of the nasty store that can be read whole, served as a file.
fn serve_nasty(dir: &Path) -> Server {
    fs::create_dir(dir.join("nix")).unwrap();
    std::os::unix::fs::symlink(nasty::store(), dir.join("nix/store")).unwrap();
    let list: String = nasty::PATHS
        .iter()
        .map(|name| format!("/nix/store/{name}\n"))
        .collect();
    fs::write(dir.join("list"), list).unwrap();
    let list = dir.join("list");
    let args = [
        "--store-root".as_ref(),
        dir.as_os_str(),
        "--store-paths".as_ref(),
        list.as_os_str(),
        "--dense".as_ref(),
    ];
    Server::start(&args)
}

#[test]
#[ignore = "needs root, /dev/fuse and tools"]
fn the_kernel_and_fsck_read_the_whole_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve_nasty(dir.path());
    run(Command::new(tool("fsck.erofs", "erofs-utils")).arg(server.image()));
    // A copy as a program makes it that knows nothing of holes: the disk is no larger than its closure.
    let copy = dir.path().join("copy");
    run(Command::new("dd")
        .arg(format!("if={}", server.image().display()))
        .arg(format!("of={}", copy.display()))
        .arg("bs=1M"));
    for image in [server.image(), copy] {
        let mounted = mount_loop(&image);
        let count = crate::common::compare::entries(
            nasty::store(),
            mounted.path(),
            &nasty::PATHS,
            Expect::Nar,
        );
        assert!(count > nasty::MANY + 500, "{count}");
    }
}

/// A program that maps the file as a VMM does, and prints the sum of the byte ranges that its input names.
const MAPPER: &str = "
import mmap, sys, zlib
file = open(sys.argv[1], 'rb')
memory = mmap.mmap(file.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ)
memory.madvise(mmap.MADV_RANDOM)
for line in sys.stdin:
    start, end = map(int, line.split())
    print(zlib.crc32(memory[start:end]), flush=True)
";

/// A process that has mapped the disk.
struct Mapper {
    child: std::process::Child,
    answers: std::io::BufReader<std::process::ChildStdout>,
}

impl Mapper {
    fn start(image: &Path) -> Self {
        let mut child = Command::new(tool("python3", "python3"))
            .args(["-c", MAPPER])
            .arg(image)
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let answers = std::io::BufReader::new(child.stdout.take().unwrap());
        Self { child, answers }
    }

    /// The checksum of a range, or nothing if reading it has ended the process.
    fn sum(&mut self, range: std::ops::Range<u64>) -> Option<u32> {
        use std::io::{BufRead, Write};
        writeln!(
            self.child.stdin.as_mut().unwrap(),
            "{} {}",
            range.start,
            range.end
        )
        .unwrap();
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        line.trim().parse().ok()
    }

    /// The signal that ended the process.
    fn signal(mut self) -> Option<i32> {
        std::os::unix::process::ExitStatusExt::signal(&self.child.wait().unwrap())
    }
}

/// What a VMM sees that has mapped the file: right bytes, and SIGBUS for what is not in memory once the server is gone.
#[test]
#[ignore = "needs root, /dev/fuse and tools"]
fn a_mapping_outlives_its_server_only_for_pages_in_memory() {
    use std::os::unix::fs::FileExt;
    let (store, dir) = (store(), memory_dir());
    fs::write(store.path().join("zzz-large"), contents(1, 4 << 20)).unwrap();
    let args = lists(dir.path(), store.path(), nar::size_bytes);
    let args: Vec<&str> = args.iter().map(String::as_str).chain(["--dense"]).collect();
    let mut server = Server::start(&args);
    let image = dense_image(store.path(), |path| Some(nar::size_bytes(path))).unwrap();
    let large = &image.space().regions().last().unwrap().data;
    let start = u64::from(large.start) * BLOCK_LEN_BYTES;
    let mut page = [0; 4096];
    let mut mapper = Mapper::start(&server.image());
    image.read_exact_at(&mut page, start).unwrap();
    let mut crc = flate2::Crc::new();
    crc.update(&page);
    assert_eq!(mapper.sum(start..start + 4096), Some(crc.sum()));
    assert_eq!(
        File::open(server.image())
            .unwrap()
            .read_at(&mut page, start)
            .unwrap(),
        4096
    );
    server.signal(Signal::KILL);
    server.wait();
    wait_for("a dead mount", || {
        File::open(server.image()).is_err().then_some(())
    });
    assert_eq!(mapper.sum(start..start + 4096), Some(crc.sum()));
    let far = start + (3 << 20);
    assert_eq!(mapper.sum(far..far + 4096), None);
    assert_eq!(mapper.signal(), Some(libc::SIGBUS));
}

/// A host file that has changed is an I/O error, which a mapping tells by SIGBUS. Other files are not affected.
#[test]
#[ignore = "needs root, /dev/fuse and tools"]
fn a_changed_file_ends_only_who_maps_it() {
    let (store, dir) = (store(), memory_dir());
    let args = lists(dir.path(), store.path(), nar::size_bytes);
    let args: Vec<&str> = args.iter().map(String::as_str).chain(["--dense"]).collect();
    let server = Server::start(&args);
    let image = dense_image(store.path(), |path| Some(nar::size_bytes(path))).unwrap();
    let [first, second] =
        [0, 1].map(|region| u64::from(image.space().region(region).data.start) * BLOCK_LEN_BYTES);
    fs::remove_dir_all(store.path().join("bbb-two")).unwrap();
    fs::create_dir(store.path().join("bbb-two")).unwrap();
    let (mut one, mut other) = (
        Mapper::start(&server.image()),
        Mapper::start(&server.image()),
    );
    assert!(one.sum(first..first + 4096).is_some());
    assert_eq!(other.sum(second..second + 4096), None);
    assert_eq!(other.signal(), Some(libc::SIGBUS));
    assert!(one.sum(first..first + 8192).is_some());
}

#[test]
#[ignore = "boots a VM"]
fn a_guest_maps_the_store_and_sees_what_the_host_has() {
    let closure = [
        "--closure-info".to_owned(),
        from_env("LAZYSTORE_TEST_CLOSURE_INFO"),
        "--store-root".to_owned(),
        from_env("LAZYSTORE_TEST_STORE"),
    ];
    let args: Vec<&str> = closure
        .iter()
        .map(String::as_str)
        .chain(["--dense"])
        .collect();
    let server = Server::start(&args);
    let out = tempfile::tempdir().unwrap();
    let turn = lock_guest();
    let mut vm = script("vm");
    vm.arg("--pmem")
        .arg(server.image())
        .arg("--out")
        .arg(out.path());
    assert!(vm.status().unwrap().success());
    drop(turn);
    assert_eq!(fact(out.path(), "dax"), "yes");
    assert_eq!(fact(out.path(), "io_errors"), "0");
    let compared = script("compare")
        .arg(out.path())
        .args(&closure)
        .output()
        .unwrap();
    assert!(
        compared.status.success(),
        "{}",
        String::from_utf8_lossy(&compared.stdout)
    );
}
