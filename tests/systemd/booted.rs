//! The Debian package and its units in a Debian container with a booted systemd.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::unistd::Pid;

use crate::common::client::Client;
use crate::common::proc::children;
use crate::common::process::wait_for;
use crate::common::{from_env, tool};
use crate::packaging::debian_package;

/// A running container. Its changes are in memory and are lost at its end.
struct Container {
    nspawn: Child,
    /// Its init process.
    init: Pid,
}

impl Container {
    fn boot() -> Self {
        let mut nspawn = Command::new(tool("systemd-nspawn", "systemd-container"));
        nspawn.args(["--quiet", "--boot", "--volatile=overlay"]);
        // This machine may not run systemd, which could register the container.
        nspawn.args(["--register=no", "--keep-unit", "--console=read-only"]);
        nspawn.arg(format!("--machine=lazystore-{}", std::process::id()));
        nspawn.arg(format!("--directory={}", from_env("LAZYSTORE_TEST_DEBIAN")));
        let nspawn = nspawn
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let parent = Pid::from_raw(i32::try_from(nspawn.id()).unwrap());
        let mut container = Self {
            nspawn,
            init: parent,
        };
        wait_for("the container's systemd", || {
            container.init = *children(parent).first()?;
            let state = container.try_run("systemctl is-system-running")?;
            matches!(state.trim(), "running" | "degraded").then_some(())
        });
        container
    }

    /// The path on the host of `path` in the container.
    fn path(&self, path: &str) -> PathBuf {
        Path::new("/proc")
            .join(self.init.to_string())
            .join("root")
            .join(path)
    }

    fn shell(&self, script: &str) -> std::process::Output {
        let mut enter = Command::new(tool("nsenter", "util-linux"));
        enter.args(["--all", "--target", &self.init.to_string(), "sh", "-c"]);
        enter.arg(script).stdin(Stdio::null());
        enter.output().unwrap()
    }

    fn try_run(&self, script: &str) -> Option<String> {
        String::from_utf8(self.shell(script).stdout).ok()
    }

    /// Runs a script that must succeed. Returns its output.
    fn run(&self, script: &str) -> String {
        let output = self.shell(script);
        assert!(output.status.success(), "{script}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// The main process of the service, in the container's PID namespace.
    fn main_pid(&self) -> String {
        let pid = self.run("systemctl show --value --property=MainPID lazystore@web");
        pid.trim().to_owned()
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // Its processes end with its init process.
        let _ = self.nspawn.kill();
        let _ = self.nspawn.wait();
    }
}

fn install(container: &Container) {
    let dir = tempfile::tempdir().unwrap();
    let package = debian_package(dir.path());
    fs::copy(package, container.path("tmp/lazystore.deb")).unwrap();
    container.run("dpkg -i /tmp/lazystore.deb");
    // A store, because plans of other directories are not kept. Nothing in it is opened, because the container does not
    // allow openat2(2).
    container.run("mkdir -p /nix/store/aaa-empty /etc/lazystore");
    container.run("echo /nix/store/aaa-empty >/nix/store-paths");
    let hash = "0".repeat(64);
    container.run(&format!(
        "printf '%s\\n' /nix/store/aaa-empty sha256:{hash} 10000 '' 0 >/nix/registration"
    ));
    let closure = "--store-paths /nix/store-paths --registration /nix/registration";
    container.run(&format!(
        "echo 'CLOSURE={closure}' >/etc/lazystore/web.conf"
    ));
    container.run("systemctl daemon-reload && systemctl enable --now lazystore@web.socket");
}

/// Reads the superblock through the container's socket.
fn assert_serves(socket: &Path) {
    /// `EROFS_SUPER_MAGIC_V1` at `EROFS_SUPER_OFFSET` (Linux, fs/erofs/erofs_fs.h).
    const MAGIC: [u8; 4] = 0xE0F5_E1E2_u32.to_le_bytes();
    let mut client = Client::start(socket, 1);
    let block = client.read(0, &[(0, 4096)]).remove(0).unwrap();
    assert_eq!(block[1024..1028], MAGIC);
}

#[test]
#[ignore = "needs root, systemd-nspawn and a Debian root"]
fn the_package_serves_a_disk_on_a_booted_system_and_can_be_removed() {
    let container = Container::boot();
    install(&container);
    let socket = container.path("run/lazystore/web.sock");
    assert_eq!(container.main_pid(), "0", "it starts when a VM comes");
    assert_eq!(
        container.run("stat -c %a:%G /run/lazystore/web.sock"),
        "660:kvm\n"
    );
    assert_serves(&socket);

    let pid = container.main_pid();
    let status = container.run(&format!("cat /proc/{pid}/status"));
    assert!(!status.contains("Uid:\t0"), "{status}");
    for line in ["CapEff:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"] {
        assert!(status.contains(line), "{line} is not in {status}");
    }

    let planner = container.run("grep -lx planner /proc/[0-9]*/comm");
    let open = planner.trim().replace("/comm", "/fd");
    let open = container.run(&format!("ls -l {open}"));
    assert!(open.contains("/var/cache/"), "it keeps plans: {open}");

    // systemd restarts a killed server.
    container.run(&format!("kill -KILL {pid}"));
    assert_serves(&socket);
    assert_ne!(container.main_pid(), pid);
    let log = container.run("journalctl --unit=lazystore@web --output=cat");
    assert!(log.contains("a VM has connected"), "{log}");

    container.run("systemctl disable --now lazystore@web.socket && systemctl stop lazystore@web");
    assert_eq!(
        container.run("systemctl show --value --property=Result lazystore@web"),
        "success\n"
    );
    assert_eq!(container.run("ls /run/lazystore"), "");
    assert_eq!(
        container.run("grep -x lazystore /proc/[0-9]*/comm || true"),
        ""
    );
    container.run("systemctl clean --what=cache lazystore@web");
    assert_eq!(container.run("ls /var/cache/private/lazystore"), "");
    container.run("rm /etc/lazystore/web.conf && dpkg --purge lazystore");
    assert_eq!(
        container.run("find /etc /usr /var/lib/systemd -name '*lazystore*'"),
        ""
    );
}
