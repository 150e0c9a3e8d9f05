//! Arguments of cloud-hypervisor (its docs/memory.md and docs/vhost-user-blk-testing.md).

use std::ffi::{OsStr, OsString};

use super::DiskPaths;
use crate::cli::errors::VmmError;

const DISK: &str = "--disk";
const MEMORY: &str = "--memory";
const ZONE: &str = "--memory-zone";
/// Memory of a VM without `--memory`.
const DEFAULT_MEMORY: &str = "size=512M,shared=on";

/// Adds the disk to the arguments, and makes the memory shared.
pub fn attach(args: &[OsString], disk: &DiskPaths) -> Result<Vec<OsString>, VmmError> {
    let args = split_equals(args);
    let zones = args.iter().any(|arg| arg == ZONE);
    let mut out = Vec::with_capacity(args.len() + 4);
    let (mut option, mut has_memory) = (OsStr::new(""), zones);
    for arg in &args {
        if is_option(arg) {
            option = arg;
            out.push(arg.clone());
        } else if option == ZONE || option == MEMORY && !zones {
            let of = if option == ZONE { ZONE } else { MEMORY };
            has_memory = true;
            out.push(shared(of, arg)?);
        } else {
            out.push(arg.clone());
        }
    }
    if !has_memory {
        out.extend([MEMORY.into(), DEFAULT_MEMORY.into()]);
    }
    add_disk(&mut out, disk);
    Ok(out)
}

/// Splits `--option=value` into two arguments.
fn split_equals(args: &[OsString]) -> Vec<OsString> {
    let split = |arg: &OsString| {
        let text = arg.to_str().unwrap_or_default();
        let known = [DISK, MEMORY, ZONE].into_iter();
        let mut pairs = known.filter_map(|option| {
            let value = text.strip_prefix(option)?.strip_prefix('=')?;
            Some(vec![OsString::from(option), value.into()])
        });
        pairs.next().unwrap_or_else(|| vec![arg.clone()])
    };
    args.iter().flat_map(split).collect()
}

fn is_option(arg: &OsStr) -> bool {
    arg.as_encoded_bytes().starts_with(b"-")
}

fn shared(option: &'static str, value: &OsStr) -> Result<OsString, VmmError> {
    let text = value.to_string_lossy();
    let setting = text
        .split(',')
        .find_map(|part| part.strip_prefix("shared="));
    match setting {
        Some("on" | "true") => Ok(value.to_owned()),
        Some(_) => Err(VmmError::SharedOff {
            option,
            value: text.into_owned(),
        }),
        None => {
            let mut value = value.to_owned();
            value.push(",shared=on");
            Ok(value)
        }
    }
}

/// Adds the disk after existing ones: `--disk` may be given only once, with several values.
fn add_disk(args: &mut Vec<OsString>, disk: &DiskPaths) {
    let mut value = OsString::from("vhost_user=true,socket=");
    value.push(&disk.socket);
    match args.iter().position(|arg| arg == DISK) {
        None => args.extend([DISK.into(), value]),
        Some(at) => {
            let values = args[at + 1..]
                .iter()
                .take_while(|arg| !is_option(arg))
                .count();
            args.insert(at + 1 + values, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::tests::os;
    use super::*;

    const OURS: &str = "vhost_user=true,socket=/d/store.sock";

    fn attached(args: &[&str]) -> Vec<OsString> {
        attach(&os(args), &DiskPaths::in_dir(Path::new("/d"))).unwrap()
    }

    #[test]
    fn the_memory_becomes_shared() {
        assert_eq!(
            attached(&["--kernel", "k", "--memory", "size=1G"]),
            os(&[
                "--kernel",
                "k",
                "--memory",
                "size=1G,shared=on",
                "--disk",
                OURS
            ])
        );
        assert_eq!(
            attached(&["--memory=size=1G,shared=on"]),
            os(&["--memory", "size=1G,shared=on", "--disk", OURS])
        );
        assert_eq!(
            attached(&[]),
            os(&["--memory", DEFAULT_MEMORY, "--disk", OURS])
        );
    }

    #[test]
    fn only_zones_are_shared_if_there_are_any() {
        assert_eq!(
            attached(&[
                "--memory",
                "size=0",
                "--memory-zone",
                "id=a,size=1G",
                "id=b,size=1G"
            ]),
            os(&[
                "--memory",
                "size=0",
                "--memory-zone",
                "id=a,size=1G,shared=on",
                "id=b,size=1G,shared=on",
                "--disk",
                OURS
            ])
        );
    }

    #[test]
    fn private_memory_is_refused() {
        let disk = DiskPaths::in_dir(Path::new("/d"));
        assert!(attach(&os(&["--memory", "size=1G,shared=off"]), &disk).is_err());
    }

    #[test]
    fn the_disk_is_added_after_the_others() {
        assert_eq!(
            attached(&["--disk", "path=a", "path=b", "--memory", "size=1G"]),
            os(&[
                "--disk",
                "path=a",
                "path=b",
                OURS,
                "--memory",
                "size=1G,shared=on"
            ])
        );
    }
}
