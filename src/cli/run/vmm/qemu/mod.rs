//! Arguments of QEMU: memory, socket and device.

mod memory;
pub mod options;

use std::ffi::OsString;

use super::{DiskPaths, Vmm};
use crate::cli::errors::VmmError;
use crate::cli::qemu_text::qemu_escape;
use options::{Options, last};

/// QEMU's version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// First component.
    pub major: u32,
    /// Second component.
    pub minor: u32,
}

/// The first version with `reconnect-ms`, in which `reconnect` is deprecated (docs/about/deprecated.rst).
const RECONNECT_MS: Version = Version { major: 9, minor: 2 };

impl Version {
    /// Parses the output of `--version`: `QEMU emulator version 7.2.22 (Debian ...)`.
    pub fn parse(text: &str) -> Option<Self> {
        let (_, after) = text.split_once(" version ")?;
        let mut numbers = after.split(|char: char| !char.is_ascii_digit());
        Some(Self {
            major: numbers.next()?.parse().ok()?,
            minor: numbers.next()?.parse().ok()?,
        })
    }
}

/// Adds the disk and shared memory to the arguments.
pub fn attach(
    args: &[OsString],
    disk: &DiskPaths,
    version: Option<Version>,
) -> Result<Vec<OsString>, VmmError> {
    let options = options(args)?;
    let memory = memory::additions(&options)?;
    let mut out = args.to_vec();
    out.extend(memory.into_iter().map(OsString::from));
    let mut chardev = OsString::from("socket,id=lazystore,path=");
    chardev.push(qemu_escape(&disk.socket));
    chardev.push(reconnect(version));
    out.extend(["-chardev".into(), chardev]);
    out.extend(device(&options).into_iter().map(OsString::from));
    Ok(out)
}

/// Adds the disk over NBD to the arguments; the memory options stay unchanged.
pub fn attach_nbd(args: &[OsString], disk: &DiskPaths) -> Result<Vec<OsString>, VmmError> {
    let options = options(args)?;
    let mut node = OsString::from(
        "driver=nbd,node-name=lazystore,read-only=on,reconnect-delay=60,server.type=unix,server.path=",
    );
    node.push(qemu_escape(&disk.nbd));
    let device = match is_microvm(&options) {
        true => "virtio-blk-device,drive=lazystore",
        false => "virtio-blk-pci,drive=lazystore",
    };
    let more = ["-blockdev".into(), node, "-device".into(), device.into()];
    Ok(args.iter().cloned().chain(more).collect())
}

fn options(args: &[OsString]) -> Result<Options, VmmError> {
    let options = Options::parse(args);
    match options.has("daemonize") {
        true => Err(VmmError::Daemonize),
        false => Ok(options),
    }
}

/// Returns the user that QEMU switches to according to its command line; `None` for other programs.
pub fn switched_user(command: &[OsString]) -> Option<String> {
    let (program, args) = command.split_first()?;
    if Vmm::of(program) != Some(Vmm::Qemu) {
        return None;
    }
    let options = Options::parse(args);
    let run_with = options.properties("run-with", "");
    let named = last(&run_with, "user").or_else(|| options.values("runas").next_back());
    named.map(str::to_owned)
}

/// Returns the option that makes QEMU reconnect after a second, since a worker that dies is replaced. Left out if QEMU's
/// version is unknown.
fn reconnect(version: Option<Version>) -> &'static str {
    match version {
        Some(version) if version >= RECONNECT_MS => ",reconnect-ms=1000",
        Some(_) => ",reconnect=1",
        None => "",
    }
}

fn is_microvm(options: &Options) -> bool {
    last(&memory::machine(options), "type") == Some("microvm")
}

/// Returns the device. A microvm has no PCI bus, and legacy virtio-mmio does not support vhost-user-blk.
fn device(options: &Options) -> Vec<&'static str> {
    if !is_microvm(options) {
        return vec!["-device", "vhost-user-blk-pci,chardev=lazystore"];
    }
    vec![
        "-global",
        "virtio-mmio.force-legacy=false",
        "-device",
        "vhost-user-blk,chardev=lazystore",
    ]
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::tests::os;
    use super::*;

    const OLD: Version = Version { major: 7, minor: 2 };

    fn attached(args: &[&str], dir: &str, version: Option<Version>) -> String {
        let args = attach(&os(args), &DiskPaths::in_dir(Path::new(dir)), version).unwrap();
        let args: Vec<_> = args.iter().map(|arg| arg.to_str().unwrap()).collect();
        args.join(" ")
    }

    #[test]
    fn the_user_that_qemu_switches_to_is_found() {
        let user = |args: &[&str]| switched_user(&os(args));
        let named = |name: &str| Some(name.to_owned());
        assert_eq!(user(&["qemu-kvm", "-runas", "vm"]), named("vm"));
        let run_with = ["qemu-kvm", "-run-with", "async-teardown=on,user=1:2"];
        assert_eq!(user(&run_with), named("1:2"));
        assert_eq!(user(&["qemu-kvm", "-run-with", "chroot=/x"]), None);
        assert_eq!(user(&["qemu-kvm", "-append", "-runas", "-m", "1G"]), None);
        assert_eq!(user(&["other-vmm", "-runas", "vm"]), None);
    }

    #[test]
    fn the_disk_is_appended() {
        let memory = "-object memory-backend-memfd,id=lazystore-mem,size=1G,share=on \
                      -machine memory-backend=lazystore-mem";
        assert_eq!(
            attached(&["-M", "q35", "-m", "1G"], "/d", Some(OLD)),
            format!(
                "-M q35 -m 1G {memory} -chardev socket,id=lazystore,path=/d/store.sock,reconnect=1 \
                 -device vhost-user-blk-pci,chardev=lazystore"
            )
        );
        let microvm = attached(&["-machine", "microvm,rtc=on", "-m", "1G"], "/d", None);
        let device = "path=/d/store.sock -global virtio-mmio.force-legacy=false \
                      -device vhost-user-blk,chardev=lazystore";
        assert!(microvm.ends_with(device), "{microvm}");
        let typed = attached(&["-machine", "accel=tcg,type=microvm"], "/d", None);
        assert!(typed.ends_with(device), "{typed}");
    }

    #[test]
    fn the_reconnect_option_depends_on_the_version() {
        let newer = Some(Version {
            major: 10,
            minor: 0,
        });
        assert!(attached(&[], "/a,b", newer).contains("path=/a,,b/store.sock,reconnect-ms=1000 "));
        assert!(attached(&[], "/d", None).contains("path=/d/store.sock "));
    }

    #[test]
    fn versions_are_parsed() {
        let debian = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)\nCopyright";
        assert_eq!(Version::parse(debian), Some(OLD));
        let newer = Version::parse("QEMU emulator version 10.0.2").unwrap();
        assert!(newer > RECONNECT_MS);
        assert_eq!(Version::parse("something else"), None);
    }

    #[test]
    fn daemonize_is_refused() {
        let disk = DiskPaths::in_dir(Path::new("/d"));
        assert!(attach(&os(&["-daemonize"]), &disk, None).is_err());
    }
}
