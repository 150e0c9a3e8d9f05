//! Nix stores that `nix-store` creates.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{Seek, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// Settings with which nix-bin can copy files into a store without a daemon's users and a sandbox.
pub const NIX_CONFIG: &str = "build-users-group =\nsandbox = false";

/// A separate store in `DIR/root`.
pub struct ChrootStore {
    dir: tempfile::TempDir,
}

impl ChrootStore {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("home")).unwrap();
        Self { dir }
    }

    /// A path in the temporary directory, outside the store.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The value for `--store` and `--store-root`.
    pub fn root(&self) -> PathBuf {
        self.path("root")
    }

    /// The path on the host of a logical store path.
    pub fn physical(&self, store_path: &str) -> PathBuf {
        self.root().join(store_path.trim_start_matches('/'))
    }

    /// The command `nix-store ARGS` for this store.
    pub fn command<A: AsRef<OsStr>>(&self, args: &[A]) -> Command {
        nix_store(&self.root(), &self.path("home"), args)
    }

    /// Output of `nix-store` on this store, with `args` and the file `stdin`.
    pub fn nix_store(&self, args: &[&str], stdin: Stdio) -> Vec<u8> {
        succeed(self.command(args).stdin(stdin)).stdout
    }

    /// Output lines of `nix-store ARGS`.
    pub fn lines(&self, args: &[&str]) -> Vec<String> {
        let text = String::from_utf8(self.nix_store(args, Stdio::null())).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    /// Adds a file with `text` to the store. Returns its logical store path.
    pub fn add(&self, name: &str, text: &str) -> String {
        fs::write(self.path(name), text).unwrap();
        self.add_file(&self.path(name))
    }

    /// Adds the file or directory at `path` on the host.
    pub fn add_file(&self, path: &Path) -> String {
        let added = self.nix_store(&["--add", path.to_str().unwrap()], Stdio::null());
        String::from_utf8(added).unwrap().trim_end().to_owned()
    }

    /// Adds `count` small files.
    pub fn add_many(&self, count: usize) -> Vec<String> {
        let files: Vec<PathBuf> = (0..count)
            .map(|n| self.path(&format!("file-{n}")))
            .collect();
        for file in &files {
            fs::write(file, file.as_os_str().as_encoded_bytes()).unwrap();
        }
        if files.is_empty() {
            return Vec::new();
        }
        let files = files.iter().map(|file| file.to_str().unwrap());
        self.lines(&["--add"].into_iter().chain(files).collect::<Vec<_>>())
    }

    /// Adds a directory with a few files that refers to `references`, and to itself.
    pub fn add_dir(&self, name: &str, references: &[&str]) -> String {
        let dir = self.path(name);
        fs::create_dir_all(dir.join("bin")).unwrap();
        fs::write(dir.join("bin/tool"), name.repeat(2000)).unwrap();
        fs::write(dir.join("references"), references.join("\n")).unwrap();
        // Use a unique name: a garbage collector checks all processes of the machine, including those of other tests.
        fs::write(
            dir.join("unique"),
            self.dir.path().as_os_str().as_encoded_bytes(),
        )
        .unwrap();
        let added = self.add_file(&dir);
        // `--add` records no references, so the record is removed from the database and loaded with references.
        let mut record: Vec<String> = self.lines(&["--dump-db", &added])[..4].to_vec();
        record.push((references.len() + 1).to_string());
        record.extend(
            references
                .iter()
                .chain([&&*added])
                .map(|path| (*path).to_owned()),
        );
        self.load_db(&(record.join("\n") + "\n"));
        added
    }

    /// Loads a registration.
    pub fn load_db(&self, registration: &str) {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(registration.as_bytes()).unwrap();
        file.rewind().unwrap();
        self.nix_store(&["--load-db"], file.into());
    }

    /// Output of `nix-store --dump-db` for `paths`.
    pub fn dump_db(&self, paths: &[String]) -> Vec<u8> {
        let args = ["--dump-db".to_owned()];
        let args: Vec<&String> = args.iter().chain(paths).collect();
        succeed(&mut self.command(&args)).stdout
    }

    /// Writes `store-paths` and `registration` of the closure of `roots`. Returns the paths of both files.
    pub fn write_lists(&self, roots: &[&str]) -> (PathBuf, PathBuf) {
        let paths = self.lines(&[&["-qR"], roots].concat());
        let (list, registration) = (self.path("store-paths"), self.path("registration"));
        fs::write(&list, paths.join("\n")).unwrap();
        fs::write(&registration, self.dump_db(&paths)).unwrap();
        (list, registration)
    }

    /// Collects garbage.
    pub fn collect_garbage(&self) {
        self.nix_store(&["--gc"], Stdio::null());
    }

    /// All files in the database's directory.
    pub fn database_files(&self) -> Vec<OsString> {
        let dir = fs::read_dir(self.root().join("nix/var/nix/db")).unwrap();
        let mut names: Vec<_> = dir.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    }
}

/// The command `nix-store ARGS` for the store below `root`.
pub fn nix_store<A: AsRef<OsStr>>(root: &Path, home: &Path, args: &[A]) -> Command {
    let mut command = Command::new("nix-store");
    command.arg("--store").arg(root).args(args);
    command.env_remove("NIX_REMOTE");
    command.env("HOME", home).env("NIX_CONFIG", NIX_CONFIG);
    command.stdin(Stdio::null());
    command
}

/// Runs a command that must succeed.
pub fn succeed(command: &mut Command) -> Output {
    let output = command
        .output()
        .expect("nix-store cannot be run: install the Debian package nix-bin");
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// An open file of a path, for stdin.
pub fn stdin(path: &Path) -> Stdio {
    File::open(path).unwrap().into()
}
