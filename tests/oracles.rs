//! Independent readers on a realistic store: the kernel, erofs-utils, erofs-rs, Nix. `tests/fuse.rs` tests them on a store
//! of difficult cases.
//!
//! `scripts/test` prepares the store and sets a variable with its path.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use crate::common::fuse::{Server, mount_file, mount_loop, run};
use crate::common::reader::Expect;
use crate::common::{nasty, tool};
use lazystore::closure::{Closure, Contents, Source, StoreLocation, StorePath};
use proptest::prelude::*;

/// The store that `scripts/test` has prepared, and its closure.
struct Realistic {
    closure: Closure,
    args: Vec<OsString>,
}

impl Realistic {
    fn new() -> Self {
        let [info, root] = ["LAZYSTORE_TEST_CLOSURE_INFO", "LAZYSTORE_TEST_STORE"].map(|name| {
            let value = std::env::var_os(name);
            PathBuf::from(value.unwrap_or_else(|| {
                panic!("{name} is not set: run scripts/test, which makes the store")
            }))
        });
        let location = StoreLocation {
            store_root: Some(root.clone()),
            ..StoreLocation::default()
        };
        let closure = Closure::load(&Source::ClosureInfo(info.clone()), &location).unwrap();
        let args = [
            "--closure-info".into(),
            info.into(),
            "--store-root".into(),
            root.into(),
        ];
        Self {
            closure,
            args: args.into(),
        }
    }

    fn serve(&self) -> Server {
        Server::start(&self.args)
    }

    fn store(&self) -> &Path {
        &self.closure.dir
    }

    fn paths(&self) -> &[StorePath] {
        match &self.closure.contents {
            Contents::StorePaths(paths) => paths,
            Contents::Tree => panic!("a closure is no tree"),
        }
    }

    fn names(&self) -> Vec<&str> {
        self.paths()
            .iter()
            .map(|path| std::str::from_utf8(&path.name).unwrap())
            .collect()
    }
}

fn diff(theirs: &Path, ours: &Path) {
    run(Command::new(tool("diff", "diffutils"))
        .args(["-r", "--no-dereference"])
        .args([theirs, ours]));
}

#[test]
#[ignore = "needs the store of scripts/test"]
fn the_kernel_finds_every_name_with_and_without_a_loop_device() {
    let realistic = Realistic::new();
    let server = realistic.serve();
    for mounted in [mount_loop(&server.image()), mount_file(&server.image())] {
        let count = crate::common::compare::entries(
            realistic.store(),
            mounted.path(),
            &realistic.names(),
            Expect::Nar,
        );
        assert!(count > 500, "{count}");
        let mut listed: Vec<_> = fs::read_dir(mounted.path())
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        listed.sort();
        assert_eq!(listed, realistic.names(), "the closure and nothing else");
    }
}

#[test]
#[ignore = "needs the store of scripts/test"]
fn fsck_extracts_the_store() {
    let realistic = Realistic::new();
    let server = realistic.serve();
    let out = tempfile::tempdir().unwrap();
    let out = out.path().join("extracted");
    let extract = format!("--extract={}", out.display());
    run(Command::new(tool("fsck.erofs", "erofs-utils"))
        .arg(extract)
        .arg(server.image()));
    for name in realistic.names() {
        diff(&realistic.store().join(name), &out.join(name));
    }
    run(Command::new(tool("dump.erofs", "erofs-utils"))
        .arg("-s")
        .arg(server.image()));
}

#[test]
#[ignore = "needs the store of scripts/test"]
fn erofs_rs_reads_both_stores() {
    let realistic = Realistic::new();
    let verify = |args: &[OsString]| {
        run(Command::new(env!("CARGO_BIN_EXE_lazystore"))
            .arg("verify")
            .args(args))
    };
    let text = String::from_utf8(verify(&realistic.args)).unwrap();
    let hashes = format!("{} NAR hashes as registered", realistic.paths().len());
    assert!(text.contains(&hashes), "{text}");
    let text = String::from_utf8(verify(&["--tree".into(), nasty::store().into()])).unwrap();
    assert!(text.contains("no differences"), "{text}");
}

#[test]
#[ignore = "needs the store of scripts/test"]
fn nix_hashes_the_mounted_paths_as_registered() {
    let realistic = Realistic::new();
    let server = realistic.serve();
    let mounted = mount_loop(&server.image());
    tool("nix-store", "nix-bin");
    for path in realistic.paths() {
        let name = std::str::from_utf8(&path.name).unwrap();
        let script = "set -o pipefail; nix-store --dump \"$1\" | sha256sum";
        let text = run(Command::new("bash")
            .args(["-c", script, "-"])
            .arg(mounted.path().join(name)));
        let registered: String = path
            .nar_hash
            .unwrap()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        assert_eq!(
            String::from_utf8(text).unwrap().split(' ').next(),
            Some(registered.as_str()),
            "{name}"
        );
    }
}

/// Everything that `find` can print about a tree, except for times. Sorted.
fn found(dir: &Path) -> Vec<String> {
    let format = "%P %y %m %U %G %s %l\\n";
    let text = run(Command::new(tool("find", "findutils"))
        .arg(dir)
        .args(["-printf", format]));
    let mut lines: Vec<String> = String::from_utf8(text)
        .unwrap()
        .lines()
        .map(str::to_owned)
        .collect();
    lines.sort();
    lines
}

#[test]
#[ignore = "needs the store of scripts/test"]
fn mkfs_erofs_writes_an_equal_tree() {
    /// Contains names of 255 bytes, which mkfs.erofs 1.5 truncates and then cannot find.
    const CORNERS: &str = "-corners";
    let realistic = Realistic::new();
    let dir = tempfile::tempdir().unwrap();
    let theirs = dir.path().join("theirs.img");
    let exclude = format!("--exclude-regex=^[^/]*{CORNERS}$");
    let mkfs = tool("mkfs.erofs", "erofs-utils");
    run(Command::new(mkfs)
        .args(["--quiet", "-x-1", &exclude])
        .arg(&theirs)
        .arg(realistic.store()));
    let server = Server::start(&["--tree".as_ref(), realistic.store().as_os_str()]);
    let (theirs, ours) = (mount_loop(&theirs), mount_loop(&server.image()));
    let names = realistic.names();
    let compared: Vec<_> = names
        .iter()
        .filter(|name| !name.ends_with(CORNERS))
        .collect();
    assert_eq!(compared.len(), names.len() - 1);
    for name in compared {
        let (theirs, ours) = (theirs.path().join(name), ours.path().join(name));
        diff(&theirs, &ours);
        assert_eq!(found(&theirs), found(&ours));
    }
}

/// The used parts of the disk as plain bytes, with their addresses.
fn model(dir: &Path) -> (Arc<lazystore::image::Image>, Vec<(u64, Vec<u8>)>) {
    let image = Arc::new(crate::common::tree_image(dir));
    let used = image.usage(0).unwrap();
    let region = image.space().region(0);
    let parts = [
        (0, 1 + used.meta_blocks),
        (region.data.start, used.data_blocks),
    ];
    let read = |(start, blocks): (u32, u32)| {
        let at = u64::from(start) * 4096;
        // The model also contains some zeros after it.
        let mut bytes = vec![0; (blocks as usize + 8) * 4096];
        image.read_exact_at(&mut bytes, at).unwrap();
        (at, bytes)
    };
    (image.clone(), parts.map(read).into())
}

#[test]
#[ignore = "needs the store of scripts/test"]
fn all_read_functions_return_the_same_bytes() {
    let tree = tempfile::tempdir().unwrap();
    for (index, len) in crate::common::tree::SIZES
        .into_iter()
        .chain([300_000, 70_001])
        .enumerate()
    {
        fs::create_dir_all(tree.path().join(format!("d{}", index % 3))).unwrap();
        let path = tree.path().join(format!("d{}/f{index}", index % 3));
        fs::write(path, crate::common::tree::contents(index, len)).unwrap();
    }
    let (image, parts) = model(tree.path());
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("socket");
    let args = [
        "--tree".as_ref(),
        tree.path().as_os_str(),
        "--vhost-user".as_ref(),
        socket.as_os_str(),
    ];
    let server = Server::start(&args);
    let file = File::open(server.image()).unwrap();
    let client = std::cell::RefCell::new(crate::common::client::Client::start(&socket, 2));
    proptest!(crate::common::cases(300), |(part in 0..2_usize, at in 0..1_000_000_usize, len in 1..100_000_usize, queue in 0..2_usize)| {
        let (start, bytes) = &parts[part];
        let at = at % bytes.len();
        let end = (at + len).min(bytes.len());
        let mut seen = vec![0; end - at];
        image.read_exact_at(&mut seen, start + at as u64).unwrap();
        prop_assert!(seen == bytes[at..end], "the core at {}+{}", start, at);
        file.read_exact_at(&mut seen, start + at as u64).unwrap();
        prop_assert!(seen == bytes[at..end], "FUSE at {}+{}", start, at);
        // Reads of a block device are whole sectors.
        let (at, end) = (at / 512 * 512, end.div_ceil(512) * 512);
        let read = client.borrow_mut().read(queue, &[(start + at as u64, end - at)]).remove(0);
        prop_assert!(read.as_deref() == Ok(&bytes[at..end]), "vhost-user at {}+{}", start, at);
    });
}
