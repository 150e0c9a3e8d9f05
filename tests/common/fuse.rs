//! `lazystore serve --fuse`, and mounts of its file. All are removed when the test ends.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::proc::children;
use super::process::{first_line, stderr_of, wait_for};
use super::tool;

/// A directory to mount on. Dropping it unmounts everything there.
pub struct Place(TempDir);

impl Place {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Lines of the mount table with this directory.
    pub fn mounts(&self) -> usize {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let dir = self.path().to_str().unwrap();
        table
            .lines()
            .filter(|line| line.split(' ').nth(4) == Some(dir))
            .count()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        while unmount(self.path(), UnmountFlags::DETACH).is_ok() {}
    }
}

/// The disk, mounted through a loop device.
pub fn mount_loop(image: &Path) -> Place {
    let place = Place::new();
    run(Command::new(tool("mount", "mount"))
        .args(["-t", "erofs", "-o", "loop,ro"])
        .arg(image)
        .arg(place.path()));
    place
}

/// The disk, mounted without any block device (Linux 6.12).
pub fn mount_file(image: &Path) -> Place {
    let place = Place::new();
    mount(image, place.path(), "erofs", MountFlags::RDONLY, None)
        .expect("EROFS on a file needs Linux 6.12 with CONFIG_EROFS_FS_BACKED_BY_FILE");
    place
}

/// Runs a command that must succeed within some minutes, and returns its stdout.
pub fn run(command: &mut Command) -> Vec<u8> {
    let output = Command::new(tool("timeout", "coreutils"))
        .args(["-k", "5", "300"])
        .arg(command.get_program())
        .args(command.get_args())
        .output()
        .unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
    output.stdout
}

/// A running server.
pub struct Server {
    child: Child,
    pub ready: String,
    place: Option<Place>,
    dir: PathBuf,
}

impl Server {
    /// Serves at its own directory.
    pub fn start<A: AsRef<OsStr>>(args: &[A]) -> Self {
        let place = Place::new();
        let mut server = Self::start_at(place.path(), args);
        server.place = Some(place);
        server
    }

    pub fn start_at<A: AsRef<OsStr>>(dir: &Path, args: &[A]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_lazystore"))
            .arg("serve")
            .args(args)
            .arg("--fuse")
            .arg(dir)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let ready = first_line(&mut child);
        let mut server = Self {
            child,
            ready,
            place: None,
            dir: dir.into(),
        };
        if !server.ready.starts_with("ready ") {
            panic!("{}", server.log());
        }
        server
    }

    pub fn image(&self) -> PathBuf {
        self.dir.join("nix-store.img")
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// The process that answers FUSE requests.
    pub fn worker(&self) -> Option<Pid> {
        let server = nix::unistd::Pid::from_raw(self.child.id().cast_signed());
        let worker = children(server).first().copied()?;
        Pid::from_raw(worker.as_raw())
    }

    pub fn wait(&mut self) -> ExitStatus {
        wait_for("the server to end", || self.child.try_wait().unwrap())
    }

    /// Its stderr, after it has ended.
    pub fn log(&mut self) -> String {
        stderr_of(&mut self.child)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
