//! QEMU with the test guest (`tests/vm/init`), controlled over QMP.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use super::from_env;
use super::process::{wait_for, wait_long_for};
use super::vm::CONSOLE_ARGS;

/// Timeout for progress of a guest.
pub const PATIENCE: Duration = Duration::from_secs(240);

/// A guest's machine, which several processes can run one after the other. Its directory has the console, the results
/// disk, and a control socket for each process.
pub struct Machine {
    pub dir: PathBuf,
    /// Arguments for the kernel's command line.
    pub words: String,
    pub cpus: u32,
    /// The store as QEMU's block device `store`, instead of over vhost-user. The guest's memory is not shared then.
    pub node: Option<String>,
    processes: u32,
}

/// A process that runs a machine.
pub struct Qemu {
    child: Child,
    replies: BufReader<UnixStream>,
}

impl Machine {
    /// The results disk is qcow2, so that savevm can save the guest's state in it.
    pub fn new(dir: &Path, words: &str) -> Self {
        let made = Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2"])
            .arg(dir.join("results.qcow2"))
            .arg("1G")
            .status();
        assert!(made.unwrap().success());
        Self {
            dir: dir.to_owned(),
            words: words.to_owned(),
            cpus: 2,
            node: None,
            processes: 0,
        }
    }

    /// Starts a process with the store at `socket`. `more` are further options.
    pub fn start(&mut self, socket: &Path, more: &[&str]) -> Qemu {
        self.processes += 1;
        let control = self.dir.join(format!("qmp{}", self.processes));
        let mut command = self.command(socket, &control);
        let errors = fs::File::create(self.dir.join(format!("qemu{}.log", self.processes)));
        command
            .args(more)
            .stdin(Stdio::null())
            .stderr(errors.unwrap());
        let mut child = command.spawn().unwrap();
        let stream = wait_for("QEMU's control socket", || {
            assert_eq!(
                child.try_wait().unwrap(),
                None,
                "QEMU has ended: {}",
                self.dir.display()
            );
            UnixStream::connect(&control).ok()
        });
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut qemu = Qemu {
            child,
            replies: BufReader::new(stream),
        };
        qemu.read_line();
        qemu.run("qmp_capabilities", json!({}));
        qemu
    }

    fn command(&self, socket: &Path, control: &Path) -> Command {
        let shown = |path: &Path| path.to_str().unwrap().to_owned();
        let file = |name: &str| shown(&self.dir.join(name));
        let mut command = Command::new("qemu-system-x86_64");
        command.args([
            "-accel",
            &from_env("LAZYSTORE_ACCEL"),
            "-cpu",
            "max",
            "-smp",
            &self.cpus.to_string(),
            "-m",
            "256M",
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-no-reboot",
            "-kernel",
            &from_env("LAZYSTORE_TEST_KERNEL"),
            "-initrd",
            &from_env("LAZYSTORE_TEST_INITRD"),
            "-append",
            &format!(
                "{CONSOLE_ARGS} mitigations=off cryptomgr.notests {}",
                self.words
            ),
            "-chardev",
            &format!("file,id=console,append=on,path={}", file("console.log")),
            "-serial",
            "chardev:console",
            "-drive",
            &format!(
                "file={},format=qcow2,if=none,id=out,cache=unsafe",
                file("results.qcow2")
            ),
            "-device",
            "virtio-blk-pci,drive=out,serial=lazystore-out",
            "-qmp",
            &format!("unix:{},server=on,wait=off", shown(control)),
        ]);
        self.add_store(&mut command, &shown(socket));
        command
    }

    fn add_store(&self, command: &mut Command, socket: &str) {
        match &self.node {
            None => command.args([
                "-object",
                "memory-backend-memfd,id=mem,size=256M,share=on",
                "-M",
                "q35,memory-backend=mem",
                "-chardev",
                &format!("socket,id=store,reconnect=1,path={socket}"),
                "-device",
                "vhost-user-blk-pci,chardev=store",
            ]),
            Some(node) => command.args([
                "-M",
                "q35",
                "-blockdev",
                node,
                "-device",
                "virtio-blk-pci,drive=store",
            ]),
        };
    }

    fn console(&self) -> String {
        let bytes = fs::read(self.dir.join("console.log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Number of rounds of hashing that the guest has reported.
    pub fn rounds(&self) -> usize {
        self.console().matches("lazystore: hashed ").count()
    }

    /// Waits until the guest writes `words` to its console.
    pub fn wait_for_words(&self, words: &str) {
        wait_long_for(words, PATIENCE, || {
            let console = self.console();
            assert!(!console.contains("lazystore: failed"), "{console}");
            console.contains(words).then_some(())
        });
    }

    /// Extracts what the guest wrote to its results disk, `facts`, `manifest` and so on, into the directory.
    pub fn unpack_results(&self) {
        let raw = self.dir.join("results.raw");
        let converted = Command::new("qemu-img")
            .args(["convert", "-O", "raw"])
            .args([&self.dir.join("results.qcow2"), &raw])
            .status();
        assert!(converted.unwrap().success());
        let unpacked = Command::new("tar")
            .arg("-xf")
            .arg(raw)
            .arg("-C")
            .arg(&self.dir)
            .status();
        assert!(unpacked.unwrap().success());
    }
}

impl Qemu {
    fn read_line(&mut self) -> Value {
        let mut line = String::new();
        self.replies.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|_| panic!("QEMU has ended: {line:?}"))
    }

    /// Runs a QMP command and returns its result. Skips events.
    pub fn run(&mut self, command: &str, arguments: Value) -> Value {
        let line = json!({"execute": command, "arguments": arguments}).to_string() + "\n";
        self.replies.get_mut().write_all(line.as_bytes()).unwrap();
        loop {
            let mut reply = self.read_line();
            assert!(reply.get("error").is_none(), "{command}: {reply}");
            if let Some(returned) = reply.get_mut("return") {
                return returned.take();
            }
        }
    }

    /// Runs a command of the human monitor, which prints nothing if it succeeds.
    pub fn monitor(&mut self, line: &str) {
        let text = self.run("human-monitor-command", json!({"command-line": line}));
        assert_eq!(text, "", "{line}");
    }

    /// Migrates the guest to `uri`, and waits until that has completed.
    pub fn migrate(&mut self, uri: &str) {
        let limits = json!({"max-bandwidth": 1_u64 << 31, "downtime-limit": 3000});
        self.run("migrate-set-parameters", limits);
        self.run("migrate", json!({"uri": uri}));
        wait_long_for("the end of the migration", PATIENCE, || {
            let state = self.run("query-migrate", json!({}));
            assert_ne!(state["status"], "failed", "{state}");
            (state["status"] == "completed").then_some(())
        });
    }

    pub fn wait_until_running(&mut self) {
        wait_long_for("a guest that runs", PATIENCE, || {
            let state = self.run("query-status", json!({}));
            (state["status"] == "running").then_some(())
        });
    }

    /// Ends the process, even if its guest is running.
    pub fn quit(mut self) {
        self.run("quit", json!({}));
        assert!(self.child.wait().unwrap().success());
    }

    /// Waits until the guest has powered off.
    pub fn wait(self) {
        self.wait_at_most(PATIENCE);
    }

    /// Waits at most `limit` until the guest has powered off.
    pub fn wait_at_most(mut self, limit: Duration) {
        let status = wait_long_for("the guest's end", limit, || self.child.try_wait().unwrap());
        assert!(status.success(), "{status}");
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
