//! Checks that KVM really runs a VM. Opening /dev/kvm is not enough: with nested virtualisation, kernels may hang.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::memfd::{MFdFlags, memfd_create};

use super::Finding;
use super::programs::qemu;

const NAME: &str = "KVM";
/// Time limit of a trial.
const LIMIT: Duration = Duration::from_secs(10);
const REMEDY: &str = "VMs run emulated and slowly until it works: -accel tcg";

/// A kernel without a root file system panics with this message after a successful boot.
const BOOTED: &str = "Kernel panic - not syncing";
/// Exit code of QEMU's isa-debug-exit for [`FIRMWARE`]: twice the written value, plus one.
const FIRMWARE_EXIT: i32 = 0x10 * 2 + 1;
/// Code at the reset vector of x86 (16 bytes below 4 GiB): writes 0x10 to port 0x501 (isa-debug-exit) and halts.
const FIRMWARE: [u8; 7] = [0xba, 0x01, 0x05, 0xb0, 0x10, 0xee, 0xf4];

/// Boots a kernel if there is one, otherwise a few bytes of firmware.
pub fn check(kernel: Option<&Path>) -> Finding {
    if let Err(error) = OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        return Finding::note(
            NAME,
            format!("/dev/kvm: {error}"),
            format!("join the group kvm, or load kvm_intel or kvm_amd; {REMEDY}"),
        );
    }
    let kernel = kernel.map(Path::to_owned).or_else(find_kernel);
    let trial = match &kernel {
        Some(kernel) => boot_kernel(kernel),
        None if cfg!(target_arch = "x86_64") => run_firmware(),
        None => {
            return Finding::note(
                NAME,
                "/dev/kvm opens, but no kernel was found to try it",
                "name one: --kernel FILE",
            );
        }
    };
    match trial {
        Ok(Trial::Runs(what)) => Finding::ok(NAME, what),
        Ok(Trial::Fails(why)) => Finding::note(NAME, format!("/dev/kvm opens, but {why}"), REMEDY),
        Err(error) => Finding::note(
            NAME,
            format!("/dev/kvm opens, but could not be tried: {error}"),
            "install QEMU",
        ),
    }
}

enum Trial {
    Runs(String),
    Fails(String),
}

fn find_kernel() -> Option<PathBuf> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let own = format!("/boot/vmlinuz-{}", release.trim());
    let places = ["/run/current-system/kernel".into(), PathBuf::from(own)];
    places.into_iter().find(|path| File::open(path).is_ok())
}

fn boot_kernel(kernel: &Path) -> io::Result<Trial> {
    let console = match std::env::consts::ARCH {
        "aarch64" => "console=ttyAMA0 panic=-1",
        _ => "console=ttyS0 panic=-1",
    };
    let mut command = vm();
    command
        .args(["-m", "256M", "-no-reboot", "-append", console, "-kernel"])
        .arg(kernel);
    let (_, output) = run(command)?;
    let what = kernel.display();
    Ok(match output.contains(BOOTED) {
        true => Trial::Runs(format!("{what} boots")),
        false => Trial::Fails(format!(
            "{what} does not boot within {} s: {}",
            LIMIT.as_secs(),
            last_line(&output)
        )),
    })
}

fn run_firmware() -> io::Result<Trial> {
    /// Minimum size that QEMU accepts.
    const SIZE: usize = 64 << 10;
    let mut rom = vec![0; SIZE];
    rom[SIZE - 16..SIZE - 16 + FIRMWARE.len()].copy_from_slice(&FIRMWARE);
    let mut file = tempfile_with(&rom)?;
    file.rewind()?;
    let mut command = vm();
    // The memfd is QEMU's stdin, so it can open it by this path.
    command.args([
        "-m",
        "32M",
        "-device",
        "isa-debug-exit,iobase=0x501",
        "-bios",
        "/proc/self/fd/0",
    ]);
    command.stdin(file);
    let (status, output) = run(command)?;
    Ok(match status.and_then(|status| status.code()) {
        Some(FIRMWARE_EXIT) => {
            Trial::Runs("runs code (--kernel FILE tries a whole kernel)".to_owned())
        }
        _ => Trial::Fails(format!("no code runs on it: {}", last_line(&output))),
    })
}

fn tempfile_with(bytes: &[u8]) -> io::Result<File> {
    let mut file = File::from(memfd_create("firmware", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(bytes)?;
    Ok(file)
}

/// QEMU with an empty machine on KVM and the console on stdout.
fn vm() -> Command {
    let machine = match std::env::consts::ARCH {
        "x86_64" => "q35",
        _ => "virt",
    };
    let mut command = Command::new(qemu());
    command.args([
        "-accel",
        "kvm",
        "-cpu",
        "host",
        "-M",
        machine,
        "-nodefaults",
        "-no-user-config",
    ]);
    command.args(["-display", "none", "-serial", "stdio"]);
    command.stdin(Stdio::null());
    command
}

/// Runs QEMU with the time limit. Returns its exit status (`None` if it was killed) and its output.
fn run(mut command: Command) -> io::Result<(Option<ExitStatus>, String)> {
    let (mut reader, writer) = io::pipe()?;
    command.stdout(writer.try_clone()?).stderr(writer);
    let mut child = command.spawn()?;
    // The command holds the pipe's write end; drop it so that the reader sees the end of file.
    drop(command);
    let listener = thread::spawn(move || {
        let mut output = Vec::new();
        // On an error, keep what was read so far.
        let _ = reader.read_to_end(&mut output);
        String::from_utf8_lossy(&output).into_owned()
    });
    let status = wait(&mut child)?;
    Ok((status, listener.join().unwrap_or_default()))
}

fn wait(child: &mut Child) -> io::Result<Option<ExitStatus>> {
    let deadline = Instant::now() + LIMIT;
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        thread::sleep(Duration::from_millis(10));
    }
    child.kill()?;
    child.wait()?;
    Ok(None)
}

/// Returns the last line that is not empty.
fn last_line(output: &str) -> &str {
    let mut lines = output.lines().map(str::trim);
    lines
        .rfind(|line| !line.is_empty())
        .unwrap_or("it prints nothing")
}
