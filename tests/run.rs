//! `lazystore run`: the command, its disk, its end, and cleaning up.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::proc::children;
use crate::common::process::{first_line, wait_for};
use crate::common::vm::{CONSOLE_ARGS, lock_guest};
use crate::common::{from_env, tool};

/// A tree to serve and a runtime directory, which shows whether something is left behind.
struct Fixture {
    dir: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("tree")).unwrap();
        fs::create_dir_all(dir.path().join("runtime")).unwrap();
        fs::write(dir.path().join("tree/file"), "content").unwrap();
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// `lazystore run OPTIONS -- COMMAND`.
    fn run(&self, options: &[&str], command: &[&str]) -> Command {
        let mut run = Command::new(env!("CARGO_BIN_EXE_lazystore"));
        run.arg("run").args(options).arg("--").args(command);
        run.env("XDG_RUNTIME_DIR", self.path("runtime"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        run
    }

    fn tree(&self) -> [String; 2] {
        ["--tree".into(), self.path("tree").to_str().unwrap().into()]
    }

    /// The same with the tree as the disk.
    fn start(&self, command: &[&str]) -> Child {
        let tree = self.tree();
        self.run(&tree.each_ref().map(String::as_str), command)
            .spawn()
            .unwrap()
    }

    fn output(&self, command: &[&str]) -> Output {
        let output = self.start(command).wait_with_output().unwrap();
        self.nothing_is_left();
        output
    }

    /// Asserts that no file and no mount is left.
    fn nothing_is_left(&self) {
        assert_eq!(self.left(), Vec::<String>::new());
    }

    fn left(&self) -> Vec<String> {
        let runtime = self.path("runtime");
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mounts = mounts.lines().map(str::to_owned);
        let mut left: Vec<_> = mounts
            .filter(|line| line.contains(runtime.to_str().unwrap()))
            .collect();
        let files = fs::read_dir(&runtime).unwrap();
        left.extend(files.map(|file| file.unwrap().path().display().to_string()));
        left
    }
}

fn pid(child: &Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).unwrap())
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn is_alive(pid: Pid) -> bool {
    // A zombie has no command line.
    fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty())
}

#[test]
#[ignore = "needs root and /dev/fuse"]
fn a_command_gets_socket_and_file_and_its_exit_code_is_returned() {
    let fixture = Fixture::new();
    let script =
        "stat -c '%F %a' {socket} $(dirname {socket}); head -c 4096 {image} | wc -c; exit 7";
    let output = fixture.output(&["sh", "-c", script]);
    assert_eq!(stdout(&output), "socket 600\ndirectory 700\n4096\n");
    assert_eq!(output.status.code(), Some(7), "{}", stderr(&output));
}

#[test]
fn a_signal_that_ends_the_vm_becomes_128_plus_its_number() {
    let fixture = Fixture::new();
    for (signal, code) in [("KILL", 137), ("TERM", 143)] {
        let output = fixture.output(&["sh", "-c", &format!(": {{socket}}; kill -{signal} $$")]);
        assert_eq!(output.status.code(), Some(code));
    }
}

#[test]
fn signals_are_forwarded() {
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let fixture = Fixture::new();
        let name = signal.as_str().trim_start_matches("SIG");
        let script =
            format!(": {{socket}}; trap 'exit 42' {name}; echo up; while :; do sleep 0.02; done");
        // Background jobs of a script ignore SIGINT, and so do their children. A shell cannot trap signals that were
        // ignored when it started.
        let mut run = fixture.start(&["env", "--default-signal", "sh", "-c", &script]);
        assert_eq!(first_line(&mut run), "up\n");
        kill(pid(&run), signal).unwrap();
        let status = wait_for("the end", || run.try_wait().unwrap());
        assert_eq!(status.code(), Some(42), "{signal}");
        fixture.nothing_is_left();
    }
}

#[test]
#[ignore = "needs root and /dev/fuse"]
fn a_vm_that_never_connects_is_reported() {
    let fixture = Fixture::new();
    let output = fixture.output(&["true", "{socket}"]);
    assert!(output.status.success());
    let text = stderr(&output);
    assert!(text.contains("without having connected to"), "{text}");
    let output = fixture.output(&["true", "{image}"]);
    assert_eq!(stderr(&output), "");
}

/// A VM that sleeps, with its three processes.
struct Running {
    run: Child,
    server: Pid,
    vm: Pid,
}

impl Running {
    fn start(fixture: &Fixture) -> Self {
        let script = "head -c 1 {image}; echo {socket}; exec sleep 1000";
        let mut run = fixture.start(&["sh", "-c", script]);
        assert!(!first_line(&mut run).is_empty());
        let found = children(pid(&run));
        let [server, vm] = found[..] else {
            panic!("{found:?}");
        };
        Self { run, server, vm }
    }

    /// Waits until all of them have ended.
    fn all_end(mut self, fixture: &Fixture) -> Option<i32> {
        wait_for("the end", || self.run.try_wait().unwrap());
        wait_for("the server's end", || {
            (!is_alive(self.server)).then_some(())
        });
        wait_for("the VM's end", || (!is_alive(self.vm)).then_some(()));
        wait_for("nothing to be left", || {
            fixture.left().is_empty().then_some(())
        });
        self.run.wait().unwrap().code()
    }
}

#[test]
#[ignore = "needs root and /dev/fuse"]
fn nothing_remains_when_the_first_process_is_killed() {
    let fixture = Fixture::new();
    let mut running = Running::start(&fixture);
    running.run.kill().unwrap();
    running.all_end(&fixture);
}

#[test]
#[ignore = "needs root and /dev/fuse"]
fn nothing_remains_when_the_server_is_killed() {
    let fixture = Fixture::new();
    let running = Running::start(&fixture);
    kill(running.server, Signal::SIGKILL).unwrap();
    assert_eq!(running.all_end(&fixture), Some(143));
}

#[test]
#[ignore = "needs root and /dev/fuse"]
fn nothing_remains_when_the_vm_is_killed() {
    let fixture = Fixture::new();
    let running = Running::start(&fixture);
    kill(running.vm, Signal::SIGKILL).unwrap();
    assert_eq!(running.all_end(&fixture), Some(137));
}

#[test]
fn errors_are_one_sentence() {
    let fixture = Fixture::new();
    let mem = "memory-backend-ram,id=mem,size=1G";
    let cases: [(&[&str], i32, &str); 6] = [
        (&["my-vmm", "--disk"], 125, "write {socket} where"),
        (
            &["no-such-program", "{socket}"],
            127,
            "cannot start no-such-program: No such file",
        ),
        (
            &[
                "qemu-system-x86_64",
                "-object",
                mem,
                "-M",
                "q35,memory-backend=mem",
            ],
            125,
            "add share=on",
        ),
        (&["qemu-system-x86_64", "-m", "lots"], 125, "-m 2G"),
        (&["crosvm", "stop"], 125, "crosvm run"),
        (
            &["cloud-hypervisor", "--memory", "size=1G,shared=off"],
            125,
            "shared=on",
        ),
    ];
    for (command, code, words) in cases {
        let output = fixture.output(command);
        assert_eq!(output.status.code(), Some(code), "{command:?}");
        let text = stderr(&output);
        assert!(
            text.starts_with("lazystore: ") && text.contains(words),
            "{text}"
        );
        assert_eq!(text.lines().count(), 1, "{text}");
    }
    let output = fixture
        .run(&["--tree", "/nowhere"], &["true", "{socket}"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(125));
    assert!(stderr(&output).contains("/nowhere"));
    let output = fixture.run(&["--tree", "/"], &[]).output().unwrap();
    assert_eq!(output.status.code(), Some(125));
    fixture.nothing_is_left();
}

#[test]
#[ignore = "needs QEMU"]
fn print_shows_the_command_and_does_nothing() {
    let fixture = Fixture::new();
    let tree = fixture.tree();
    let options = ["--print", &tree[0], &tree[1]];
    let command = ["qemu-system-x86_64", "-m", "1G", "-append", "a b"];
    let output = fixture.run(&options, &command).output().unwrap();
    let runtime = fixture.path("runtime");
    let wanted = format!(
        "qemu-system-x86_64 -m 1G -append 'a b' -object memory-backend-memfd,id=lazystore-mem,size=1G,share=on -machine \
         memory-backend=lazystore-mem -chardev socket,id=lazystore,path={}/lazystore-XXXXXX/store.sock,",
        runtime.display()
    );
    let text = stdout(&output);
    assert!(text.starts_with(&wanted), "{text}");
    assert!(
        text.ends_with(" -device vhost-user-blk-pci,chardev=lazystore\n"),
        "{text}"
    );
    fixture.nothing_is_left();
}

/// QEMU with the guest that scripts/test prepares and a disk for its results. Returns its console output.
fn boot(machine: &str, options: &[&str]) -> (Output, Fixture) {
    let fixture = Fixture::new();
    (boot_in(&fixture, machine, options), fixture)
}

fn boot_in(fixture: &Fixture, machine: &str, options: &[&str]) -> Output {
    let results = fixture.path("results.raw");
    fs::File::create(&results)
        .unwrap()
        .set_len(64 << 20)
        .unwrap();
    let drive = format!("file={},format=raw,if=none,id=out", results.display());
    let device = match machine {
        "microvm" => "virtio-blk-device,drive=out,serial=lazystore-out",
        _ => "virtio-blk-pci,drive=out,serial=lazystore-out",
    };
    let append = format!(
        "{CONSOLE_ARGS} reboot=t lazystore.quick=1 lazystore.run={}{}",
        from_env("LAZYSTORE_TEST_RUN"),
        clock(machine)
    );
    let qemu = tool("qemu-system-x86_64", "qemu-system-x86");
    let command = [
        qemu.to_str().unwrap(),
        "-accel",
        &from_env("LAZYSTORE_ACCEL"),
        "-cpu",
        "max",
        "-M",
        machine,
        "-m",
        "512",
        "-nodefaults",
        "-no-user-config",
        "-no-reboot",
        "-display",
        "none",
        "-serial",
        "stdio",
        "-kernel",
        &from_env("LAZYSTORE_TEST_KERNEL"),
        "-initrd",
        &from_env("LAZYSTORE_TEST_INITRD"),
        "-append",
        &append,
        "-drive",
        &drive,
        "-device",
        device,
    ];
    let closure = [
        "--closure-info",
        &from_env("LAZYSTORE_TEST_CLOSURE_INFO"),
        "--store-root",
        &from_env("LAZYSTORE_TEST_STORE"),
    ];
    let options = [options, &closure].concat();
    fixture.run(&options, &command).output().unwrap()
}

/// A microvm has no timer for measuring the clock of an emulated CPU.
fn clock(machine: &str) -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap();
    let mhz = info
        .lines()
        .find_map(|line| line.strip_prefix("cpu MHz")?.split_once(": "));
    match (machine, mhz) {
        ("microvm", Some((_, mhz))) if from_env("LAZYSTORE_ACCEL").starts_with("tcg") => {
            format!(" tsc_early_khz={:.0}", mhz.parse::<f64>().unwrap() * 1000.0)
        }
        _ => String::new(),
    }
}

fn boots(machine: &str, options: &[&str]) {
    let _lock = lock_guest();
    let (output, fixture) = boot(machine, options);
    let console = stdout(&output);
    assert_eq!(
        output.status.code(),
        Some(0),
        "{console} {}",
        stderr(&output)
    );
    for words in ["lazystore: program_status=0", "lazystore: done"] {
        assert!(console.contains(words), "{console}");
    }
    fixture.nothing_is_left();
}

#[test]
#[ignore = "boots a VM"]
fn a_real_vm_runs_a_program_from_the_disk() {
    boots("q35", &[]);
}

#[test]
#[ignore = "boots a VM"]
fn a_microvm_runs_a_program_from_the_disk() {
    boots("microvm", &[]);
}

#[test]
#[ignore = "boots a VM"]
fn a_real_vm_without_shared_memory_reads_the_disk_over_nbd() {
    boots("q35", &["--nbd"]);
}

#[test]
#[ignore = "boots a VM"]
fn a_saved_vm_is_restored_instead_of_booted() {
    const MARK: &str = "lazystore: mounted_uptime_s=";
    let _lock = lock_guest();
    let fixture = Fixture::new();
    let file = fixture.path("snapshot");
    let options = ["--snapshot", file.to_str().unwrap(), "--snapshot-at", MARK];
    let run = |more: &[&str]| {
        let start = Instant::now();
        let output = boot_in(&fixture, "q35", &[&options, more].concat());
        let console = stdout(&output);
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(0), "{console} {text}");
        assert!(console.contains("lazystore: program_status=0"), "{console}");
        assert!(console.contains("lazystore: done"), "{console}");
        println!(
            "{:.1} s to the end, booted: {}",
            start.elapsed().as_secs_f64(),
            console.contains(MARK)
        );
        fixture.nothing_is_left();
        console.contains(MARK)
    };
    assert!(run(&[]), "the first one boots");
    let saved = fs::read(&file).unwrap();
    let mode = fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "it holds the guest's memory");
    assert!(!run(&[]), "the second one is restored");
    assert!(fs::read(&file).unwrap() == saved);
    assert!(run(&["--mtime=2"]), "another disk is booted");
    assert!(!run(&["--mtime=2"]));
    fs::write(&file, "lazystore snapshot 1 of something else").unwrap();
    assert!(run(&[]));
}

#[test]
#[ignore = "needs QEMU"]
fn the_exit_code_of_a_real_qemu_is_returned() {
    let fixture = Fixture::new();
    let qemu = tool("qemu-system-x86_64", "qemu-system-x86");
    let output = fixture.output(&[qemu.to_str().unwrap(), "-no-such-option"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("invalid option"));
}
