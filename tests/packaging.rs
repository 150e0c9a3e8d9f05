//! What users get: an installed tree, the archive and the Debian package, made from the program under test.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::common::tool;

const LAZYSTORE: &str = env!("CARGO_BIN_EXE_lazystore");

/// Beneath the prefix, among others.
const INSTALLED: [&str; 8] = [
    "bin/lazystore",
    "lib/systemd/system/lazystore@.service",
    "lib/systemd/system/lazystore@.socket",
    "share/man/man1/lazystore.1",
    "share/man/man1/lazystore-run.1",
    "share/bash-completion/completions/lazystore",
    "share/zsh/site-functions/_lazystore",
    "share/fish/vendor_completions.d/lazystore.fish",
];

fn script(name: &str) -> Command {
    Command::new(
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("scripts")
            .join(name),
    )
}

fn done(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    output
}

/// All files beneath `dir`.
fn files(dir: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(one) = dirs.pop() {
        for entry in fs::read_dir(&one).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => dirs.push(path),
                false => _ = found.insert(path.strip_prefix(dir).unwrap().to_owned()),
            }
        }
    }
    found
}

#[test]
#[ignore = "needs systemd"]
fn what_is_installed_works_and_can_be_removed() {
    let prefix = tempfile::tempdir().unwrap();
    let install = || {
        let mut install = script("install");
        install
            .env("PREFIX", prefix.path())
            .env("BINARY", LAZYSTORE);
        install.env_remove("DESTDIR");
        install
    };
    done(&mut install());
    for file in INSTALLED {
        assert!(prefix.path().join(file).is_file(), "{file}");
    }
    let unit = |kind: &str| {
        prefix
            .path()
            .join(format!("lib/systemd/system/lazystore@.{kind}"))
    };
    let service = fs::read_to_string(unit("service")).unwrap();
    let start = format!("ExecStart={}/bin/lazystore serve ", prefix.path().display());
    assert!(service.contains(&start), "{service}");
    let mut verify = Command::new(tool("systemd-analyze", "systemd"));
    let output = done(verify.arg("verify").args([unit("service"), unit("socket")]));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    let installed = prefix.path().join("bin/lazystore");
    done(Command::new(installed).arg("--version"));

    done(install().arg("--uninstall"));
    assert_eq!(files(prefix.path()), BTreeSet::new());
}

/// Makes the release files in `out`; returns their sums.
fn release(out: &Path) -> String {
    let mut release = script("release");
    release
        .arg("--dirty")
        .arg(out)
        .env("LAZYSTORE_BIN", LAZYSTORE);
    done(&mut release);
    fs::read_to_string(out.join("SHA256SUMS")).unwrap()
}

#[test]
#[ignore = "needs root and dpkg"]
fn a_release_is_the_same_each_time_and_its_package_can_be_installed_and_removed() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let sums = release(&out);
    assert!(sums.contains("-linux.tar.gz\n"), "{sums}");
    assert_eq!(sums, release(&dir.path().join("again")));

    let package = files(&out).into_iter().map(|file| out.join(file));
    let mut package = package.filter(|file| file.extension() == Some("deb".as_ref()));
    let package = package.next().expect("no Debian package");
    let root = dir.path().join("root");
    fs::create_dir_all(root.join("var/lib/dpkg/info")).unwrap();
    fs::create_dir_all(root.join("var/lib/dpkg/updates")).unwrap();
    fs::write(root.join("var/lib/dpkg/status"), "").unwrap();
    let dpkg = || {
        let mut dpkg = Command::new(tool("dpkg", "dpkg"));
        dpkg.arg(format!("--root={}", root.display()));
        // The empty root has neither a C library nor a log.
        dpkg.args(["--force-depends", "--force-not-root", "--log=/dev/null"]);
        dpkg
    };
    done(dpkg().arg("-i").arg(&package));
    assert!(root.join("usr/bin/lazystore").is_file());
    let unit = root.join("usr/lib/systemd/system/lazystore@.socket");
    assert!(unit.is_file());
    assert!(
        root.join("usr/share/man/man1/lazystore-serve.1.gz")
            .is_file()
    );
    done(dpkg().args(["--purge", "lazystore"]));
    let left = files(&root).into_iter();
    let left: Vec<_> = left
        .filter(|file| !file.starts_with("var/lib/dpkg"))
        .collect();
    assert_eq!(left, Vec::<PathBuf>::new());
}
