//! Adapts a VMM's command line to the disk. This module does no I/O.

mod cloud_hypervisor;
mod crosvm;
pub mod qemu;

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use crate::cli::errors::VmmError;

/// Placeholder for the path of the vhost-user socket.
const SOCKET: &str = "{socket}";
/// Placeholder for the path of the NBD socket.
const NBD: &str = "{nbd}";
/// Placeholder for the path of the disk as a file.
const IMAGE: &str = "{image}";

/// Paths of the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskPaths {
    /// Its vhost-user socket.
    pub socket: PathBuf,
    /// Its NBD socket.
    pub nbd: PathBuf,
    /// Mount point of the file.
    pub mount: PathBuf,
    /// The file, in the mount.
    pub image: PathBuf,
}

impl DiskPaths {
    /// Name of the file.
    pub const IMAGE_NAME: &str = "nix-store.img";

    /// Returns the paths of a disk served in `dir`.
    pub fn in_dir(dir: &Path) -> Self {
        let mount = dir.join("mnt");
        Self {
            socket: dir.join("store.sock"),
            nbd: dir.join("store.nbd"),
            image: mount.join(Self::IMAGE_NAME),
            mount,
        }
    }
}

/// A command with the disk attached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    /// The program and its arguments.
    pub command: Vec<OsString>,
    /// It connects to the vhost-user socket.
    pub uses_socket: bool,
    /// It connects to the NBD socket.
    pub uses_nbd: bool,
    /// It opens the file.
    pub uses_image: bool,
}

impl Attached {
    /// Returns the sockets of `disk` that it connects to.
    pub fn sockets<'d>(&self, disk: &'d DiskPaths) -> impl Iterator<Item = &'d Path> + use<'d> {
        let socket = self.uses_socket.then_some(&*disk.socket);
        socket
            .into_iter()
            .chain(self.uses_nbd.then_some(&*disk.nbd))
    }
}

/// How a known VMM accesses the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// vhost-user-blk, with shared memory.
    VhostUser,
    /// NBD, without shared memory.
    Nbd,
}

/// VMMs whose arguments are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Vmm {
    Qemu,
    CloudHypervisor,
    Crosvm,
}

impl Vmm {
    /// Recognises a VMM by its file name. Nix's wrapped programs are named `.NAME-wrapped`.
    fn of(program: &OsStr) -> Option<Self> {
        let name = Path::new(program).file_name()?.to_string_lossy();
        let name = name.trim_start_matches('.');
        match name {
            "qemu" | "kvm" => Some(Self::Qemu),
            _ if name.starts_with("qemu-") => Some(Self::Qemu),
            _ if name.starts_with("cloud-hypervisor") => Some(Self::CloudHypervisor),
            _ if name.starts_with("crosvm") => Some(Self::Crosvm),
            _ => None,
        }
    }
}

/// Returns whether `command` starts QEMU.
pub fn is_qemu(command: &[OsString]) -> bool {
    command.first().and_then(|program| Vmm::of(program)) == Some(Vmm::Qemu)
}

/// Attaches the disk to `command`. If the command contains `{socket}`, `{nbd}` or `{image}`, replaces these. Otherwise
/// adds arguments that attach it over `transport`. `version` determines QEMU's version.
///
/// # Errors
/// The program is not known and the command has no placeholder, or its arguments are incompatible with the disk.
pub fn attach(
    command: &[OsString],
    disk: &DiskPaths,
    transport: Transport,
    version: impl FnOnce(&OsStr) -> Option<qemu::Version>,
) -> Result<Attached, VmmError> {
    let [uses_socket, uses_nbd, uses_image] =
        [SOCKET, NBD, IMAGE].map(|place| mentions(command, place));
    if uses_socket || uses_nbd || uses_image {
        let filled = command.iter().map(|arg| fill(arg, disk)).collect();
        return Ok(Attached {
            command: filled,
            uses_socket,
            uses_nbd,
            uses_image,
        });
    }
    let [program, args @ ..] = command else {
        return Err(VmmError::NoCommand);
    };
    let args = match (Vmm::of(program), transport) {
        (Some(Vmm::Qemu), Transport::VhostUser) => qemu::attach(args, disk, version(program))?,
        (Some(Vmm::Qemu), Transport::Nbd) => qemu::attach_nbd(args, disk)?,
        (_, Transport::Nbd) => return Err(VmmError::NoNbd),
        (Some(Vmm::CloudHypervisor), _) => cloud_hypervisor::attach(args, disk)?,
        (Some(Vmm::Crosvm), _) => crosvm::attach(args, disk)?,
        (None, _) => {
            return Err(VmmError::UnknownProgram {
                program: program.clone(),
            });
        }
    };
    Ok(Attached {
        command: std::iter::once(program.clone()).chain(args).collect(),
        uses_socket: transport == Transport::VhostUser,
        uses_nbd: transport == Transport::Nbd,
        uses_image: false,
    })
}

fn mentions(command: &[OsString], place: &str) -> bool {
    let holds = |arg: &OsString| {
        let bytes = arg.as_bytes();
        bytes
            .windows(place.len())
            .any(|part| part == place.as_bytes())
    };
    command.iter().any(holds)
}

fn fill(arg: &OsStr, disk: &DiskPaths) -> OsString {
    let places = [
        (SOCKET, disk.socket.as_os_str()),
        (NBD, disk.nbd.as_os_str()),
        (IMAGE, disk.image.as_os_str()),
    ];
    let mut rest = arg.as_bytes();
    let mut filled = Vec::with_capacity(rest.len());
    while let Some((first, others)) = rest.split_first() {
        let place = places
            .iter()
            .find(|(place, _)| rest.starts_with(place.as_bytes()));
        if let Some((place, path)) = place {
            filled.extend_from_slice(path.as_bytes());
            rest = &rest[place.len()..];
        } else {
            filled.push(*first);
            rest = others;
        }
    }
    OsString::from_vec(filled)
}

#[cfg(test)]
mod tests {
    use super::*;

    pub fn os(args: &[&str]) -> Vec<OsString> {
        args.iter().map(OsString::from).collect()
    }

    #[test]
    fn placeholders_are_replaced_anywhere() {
        let disk = DiskPaths::in_dir(Path::new("/d"));
        let command = os(&[
            "vmm",
            "--disk=a={socket},b={socket}",
            "{image",
            "{image}",
            "unix:{nbd}",
        ]);
        let attached = attach(&command, &disk, Transport::VhostUser, |_| None).unwrap();
        let socket = "--disk=a=/d/store.sock,b=/d/store.sock";
        let filled = os(&[
            "vmm",
            socket,
            "{image",
            "/d/mnt/nix-store.img",
            "unix:/d/store.nbd",
        ]);
        assert_eq!(attached.command, filled);
        assert!(attached.uses_socket && attached.uses_nbd && attached.uses_image);
    }

    #[test]
    fn only_qemu_gets_nbd_options() {
        let disk = DiskPaths::in_dir(Path::new("/d"));
        let over_nbd = |command: &[&str]| attach(&os(command), &disk, Transport::Nbd, |_| None);
        let attached = over_nbd(&["qemu-system-x86_64", "-m", "1G"]).unwrap();
        assert_eq!(
            attached.sockets(&disk).collect::<Vec<_>>(),
            [Path::new("/d/store.nbd")]
        );
        for other in ["cloud-hypervisor", "my-vmm"] {
            let error = over_nbd(&[other]).unwrap_err();
            assert!(error.to_string().contains("{nbd}"), "{error}");
        }
    }

    #[test]
    fn a_path_that_looks_like_a_placeholder_is_not_replaced() {
        let disk = DiskPaths::in_dir(Path::new("/{image}"));
        let attached = attach(
            &os(&["vmm", "{socket}"]),
            &disk,
            Transport::VhostUser,
            |_| None,
        )
        .unwrap();
        assert_eq!(attached.command[1], "/{image}/store.sock");
    }

    #[test]
    fn an_unknown_program_needs_a_placeholder() {
        let disk = DiskPaths::in_dir(Path::new("/d"));
        let error = attach(
            &os(&["./my vmm", "-x"]),
            &disk,
            Transport::VhostUser,
            |_| None,
        )
        .unwrap_err();
        assert!(error.to_string().contains("{socket}"), "{error}");
    }

    #[test]
    fn programs_are_recognised_by_their_names() {
        let vmm = |program: &str| Vmm::of(OsStr::new(program));
        assert_eq!(vmm("/nix/store/x/bin/qemu-system-x86_64"), Some(Vmm::Qemu));
        assert_eq!(vmm("/x/.qemu-system-aarch64-wrapped"), Some(Vmm::Qemu));
        assert_eq!(vmm("qemu-kvm"), Some(Vmm::Qemu));
        assert_eq!(vmm("cloud-hypervisor-static"), Some(Vmm::CloudHypervisor));
        assert_eq!(vmm("./crosvm"), Some(Vmm::Crosvm));
        assert_eq!(vmm("my-qemu"), None);
        assert_eq!(vmm("/"), None);
    }
}
