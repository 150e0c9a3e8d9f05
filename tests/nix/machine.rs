//! Executes start scripts: real boots, and a fake QEMU that records how it was started.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::unistd::Pid;

use super::evaluator::{built, store};
use crate::common::vm::{CONSOLE_ARGS, lock_guest};
use crate::common::{from_env, tool};

/// A directory to start a VM in, for NixOS's scripts.
pub struct Machine {
    dir: tempfile::TempDir,
}

/// A guest's results: names on its disk, output of the program on it, and facts.
pub struct Seen {
    pub names: Vec<String>,
    pub program: String,
    facts: String,
}

impl Machine {
    pub fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The command of a start script for a VM in this directory, or in one below it.
    pub fn command(&self, script: &Path, below: &str) -> Command {
        let dir = self.path(below);
        fs::create_dir_all(&dir).unwrap();
        let mut command = Command::new(script);
        command.env("TMPDIR", &dir).env("USE_TMPDIR", "1");
        command
            .env_remove("XDG_RUNTIME_DIR")
            .env_remove("QEMU_OPTS");
        command.env("SEEN", self.dir.path());
        command.current_dir(self.dir.path()).stdin(Stdio::null());
        command
    }

    /// Boots the test guest with a start script. Returns its results.
    pub fn boot(&self, script: &Path, guest: &Guest) -> Seen {
        self.boot_and(script, guest, |_| {})
    }

    /// The same. Calls a function with the VM's first process while it runs.
    pub fn boot_and(&self, script: &Path, guest: &Guest, meanwhile: impl FnOnce(Pid)) -> Seen {
        let _turn = lock_guest();
        let results = fs::File::create(self.path("results.raw")).unwrap();
        results.set_len(64 << 20).unwrap();
        let mut vm = self.command(Path::new("timeout"), ".");
        vm.args(["--kill-after=5", "300"]).arg(script);
        vm.args(self.guest_options(guest.disk));
        vm.env("QEMU_KERNEL_PARAMS", guest.kernel_command_line());
        vm.env("VIRTIOFS", "1");
        if let Some(options) = guest.qemu_options {
            vm.env("QEMU_OPTS", options);
        }
        // Not a pipe: its end would come only after a server that outlives the VM.
        let console = fs::File::create(self.path("console")).unwrap();
        vm.stdout(console.try_clone().unwrap()).stderr(console);
        let mut vm = vm.spawn().unwrap();
        meanwhile(Pid::from_raw(i32::try_from(vm.id()).unwrap()));
        let status = vm.wait().unwrap();
        let console = self.console();
        assert!(status.success(), "{console}");
        assert!(console.contains("lazystore: done"), "{console}");
        self.seen()
    }

    /// Output of the script and the guest so far.
    pub fn console(&self) -> String {
        let console = fs::read(self.path("console")).unwrap();
        String::from_utf8_lossy(&console).into_owned()
    }

    /// Additional options for QEMU: a kernel, and a disk for the guest's results (see tests/vm/init).
    fn guest_options(&self, disk: &str) -> Vec<String> {
        let accel = from_env("LAZYSTORE_ACCEL");
        let accel = accel.split(',').next().unwrap();
        let cpu = if accel == "kvm" { "host" } else { "max" };
        let results = self.path("results.raw");
        let options = format!(
            "-machine accel={accel} -cpu {cpu} -nodefaults -no-user-config -display none -serial stdio -no-reboot \
             -kernel {} -initrd {} -drive file={},format=raw,if=none,id=out -device {disk},drive=out,serial=lazystore-out",
            from_env("LAZYSTORE_TEST_KERNEL"),
            from_env("LAZYSTORE_TEST_INITRD"),
            results.display(),
        );
        options.split_whitespace().map(str::to_owned).collect()
    }

    fn seen(&self) -> Seen {
        let member = |name: &str| {
            let tar = Command::new(tool("tar", "tar"))
                .args(["--extract", "--to-stdout", "--file"])
                .arg(self.path("results.raw"))
                .arg(name)
                .output()
                .unwrap();
            String::from_utf8(tar.stdout).unwrap()
        };
        let names = member("./order");
        Seen {
            names: names.split_terminator('\0').map(str::to_owned).collect(),
            program: member("./program"),
            facts: member("./facts"),
        }
    }
}

impl Seen {
    pub fn fact(&self, name: &str) -> &str {
        let mut facts = self.facts.lines().filter_map(|line| line.split_once('='));
        let found = facts.find(|(key, _)| *key == name);
        found
            .unwrap_or_else(|| panic!("no {name} in {}", self.facts))
            .1
    }
}

/// Settings of a guest.
pub struct Guest {
    /// The mount point of the disk.
    pub mount_dir: &'static str,
    pub fs_type: &'static str,
    /// The device for its results.
    pub disk: &'static str,
    /// The share that it mounts.
    pub share: Option<&'static str>,
    /// Options for QEMU from the script's user.
    pub qemu_options: Option<&'static str>,
    /// How long it repeatedly reads everything.
    pub hash_s: u32,
}

impl Guest {
    /// The guest's program is busybox from the disk, which also stands for Nix. Options for microvms are explained in
    /// scripts/vm. The kernel's check of the timer fails if an emulated guest gets too little CPU time.
    fn kernel_command_line(&self) -> String {
        let (mount_dir, fs_type) = (self.mount_dir, self.fs_type);
        let guest = built("guest", Path::new("/nowhere"), &[]);
        let absent = built("pv", Path::new("/nowhere"), &[]);
        let name = guest.file_name().unwrap().to_str().unwrap();
        let cpus = fs::read_to_string("/proc/cpuinfo").unwrap();
        let mhz = cpus
            .lines()
            .find_map(|line| line.strip_prefix("cpu MHz")?.split(": ").nth(1));
        let khz = mhz.unwrap().parse::<f64>().unwrap() * 1e3;
        let share = self
            .share
            .map_or(String::new(), |tag| format!(" lazystore.xchg={tag}"));
        format!(
            "{CONSOLE_ARGS} mitigations=off no_timer_check reboot=t tsc_early_khz={khz:.0} \
             lazystore.mount={mount_dir} lazystore.type={fs_type} \
             lazystore.run={mount_dir}/{name}/bin/busybox,ls,{mount_dir}/{name} \
             lazystore.nix={}:{} lazystore.absent={} lazystore.hash_s={}{share}",
            store().display(),
            guest.display(),
            absent.display(),
            self.hash_s,
        )
    }
}
