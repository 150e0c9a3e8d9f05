//! The disk as a file: how the kernel and other programs read it, and its lifetime.

mod lifetime;
mod reads;

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::common::fuse::{Server, mount_file, mount_loop, run};
use crate::common::nasty;
use crate::common::reader::Expect;
use crate::common::tool;

/// Serves some paths of the nasty store.
fn serve_paths(names: &[&str]) -> Server {
    let dir = tempfile::tempdir().unwrap();
    let list: String = names
        .iter()
        .map(|name| format!("/nix/store/{name}\n"))
        .collect();
    fs::write(dir.path().join("list"), list).unwrap();
    // A chroot store has its paths in nix/store.
    fs::create_dir(dir.path().join("nix")).unwrap();
    std::os::unix::fs::symlink(nasty::store(), dir.path().join("nix/store")).unwrap();
    let list = dir.path().join("list");
    let args = [
        "--store-root".as_ref(),
        dir.path().as_os_str(),
        "--store-paths".as_ref(),
        list.as_os_str(),
    ];
    Server::start(&args)
}

fn serve_tree(dir: &Path) -> Server {
    Server::start(&["--tree".as_ref(), dir.as_os_str()])
}

fn diff(theirs: &Path, ours: &Path) {
    let diff = tool("diff", "diffutils");
    run(Command::new(diff)
        .args(["-r", "--no-dereference"])
        .args([theirs, ours]));
}

#[test]
#[ignore = "needs root, /dev/fuse and tools"]
fn the_kernel_finds_every_name_through_a_loop_device() {
    let server = serve_paths(&[&nasty::PATHS[..], &[nasty::HUGE]].concat());
    let mounted = mount_loop(&server.image());
    let names = [&nasty::PATHS[..], &[nasty::HUGE]].concat();
    let count =
        crate::common::compare::entries(nasty::store(), mounted.path(), &names, Expect::Nar);
    assert!(count > nasty::MANY + 500, "{count}");
}

#[test]
#[ignore = "needs root, /dev/fuse and tools"]
fn the_kernel_finds_every_name_in_a_file_without_a_device() {
    let server = serve_tree(nasty::store());
    let mounted = mount_file(&server.image());
    let names = [&nasty::PATHS[..], &[nasty::HUGE, nasty::SPECIAL]].concat();
    let count =
        crate::common::compare::entries(nasty::store(), mounted.path(), &names, Expect::Host);
    assert!(count > nasty::MANY + 500, "{count}");
}

#[test]
#[ignore = "needs root, /dev/fuse and tools"]
fn diff_finds_no_difference() {
    let server = serve_paths(&nasty::PATHS);
    let mounted = mount_file(&server.image());
    for name in nasty::PATHS {
        diff(&nasty::store().join(name), &mounted.path().join(name));
    }
}

#[test]
#[ignore = "needs root, /dev/fuse and tools"]
fn fsck_and_dump_read_the_file() {
    let server = serve_paths(&nasty::PATHS);
    let out = tempfile::tempdir().unwrap();
    let out = out.path().join("extracted");
    run(Command::new(tool("fsck.erofs", "erofs-utils"))
        .arg(format!("--extract={}", out.display()))
        .arg(server.image()));
    for name in nasty::PATHS {
        diff(&nasty::store().join(name), &out.join(name));
    }
    let text = run(Command::new(tool("dump.erofs", "erofs-utils"))
        .arg("-s")
        .arg(server.image()));
    let text = String::from_utf8(text).unwrap();
    assert!(
        text.contains("eb176051-bd15-49b7-9e6b-462e0b467019"),
        "{text}"
    );
}

/// Everything that `find` can print about a tree, except for times. Sorted.
fn found(dir: &Path) -> Vec<Vec<u8>> {
    let format = "%P %y %m %U %G %s %l\\0";
    let find = tool("find", "findutils");
    let text = run(Command::new(find).arg(dir).args(["-printf", format]));
    let mut lines: Vec<Vec<u8>> = text.split(|byte| *byte == 0).map(<[u8]>::to_vec).collect();
    lines.sort();
    lines
}

#[test]
#[ignore = "needs root, /dev/fuse and tools"]
fn mkfs_erofs_writes_an_equal_tree() {
    let theirs = tempfile::tempdir().unwrap();
    let theirs = theirs.path().join("theirs.img");
    // mkfs.erofs 1.5 truncates names of 255 bytes, and then cannot find the files.
    let exclude = format!("--exclude-regex=^({}|{})", nasty::HUGE, nasty::LONGEST);
    run(Command::new(tool("mkfs.erofs", "erofs-utils"))
        .args(["-x-1", &exclude])
        .arg(&theirs)
        .arg(nasty::store()));
    let server = serve_tree(nasty::store());
    let (theirs, ours) = (mount_loop(&theirs), mount_loop(&server.image()));
    let short = nasty::PATHS
        .into_iter()
        .filter(|name| *name != nasty::LONGEST);
    for name in short.chain([nasty::SPECIAL]) {
        let (theirs, ours) = (theirs.path().join(name), ours.path().join(name));
        if name != nasty::SPECIAL {
            // diff(1) reports device nodes as different.
            diff(&theirs, &ours);
        }
        let (theirs, ours) = (found(&theirs), found(&ours));
        assert_eq!(theirs.len(), ours.len(), "{name}");
        for (theirs, ours) in theirs.iter().zip(&ours) {
            assert_eq!(
                String::from_utf8_lossy(theirs),
                String::from_utf8_lossy(ours)
            );
        }
    }
}

/// SHA-256 of a path's NAR, computed by Nix.
fn nar_hash(path: &Path) -> Vec<u8> {
    tool("nix-store", "nix-bin");
    let script = "set -o pipefail; nix-store --dump \"$1\" | sha256sum";
    run(Command::new("bash").args(["-c", script, "-"]).arg(path))
}

#[test]
#[ignore = "needs root, /dev/fuse and tools"]
fn nix_hashes_the_mounted_paths_as_on_the_host() {
    let server = serve_paths(&nasty::PATHS);
    let mounted = mount_loop(&server.image());
    for name in nasty::PATHS {
        assert_eq!(
            nar_hash(&mounted.path().join(name)),
            nar_hash(&nasty::store().join(name)),
            "{name}"
        );
    }
}
