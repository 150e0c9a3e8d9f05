//! Arguments of crosvm (crosvm.dev/book/devices/vhost_user.html). Its guest memory is always shared.

use std::ffi::OsString;

use super::DiskPaths;
use crate::cli::errors::VmmError;

/// Adds the disk to the arguments.
pub fn attach(args: &[OsString], disk: &DiskPaths) -> Result<Vec<OsString>, VmmError> {
    // Global options such as --log-level may precede the subcommand.
    let run = args.iter().position(|arg| arg == "run");
    let Some(run) = run else {
        return Err(VmmError::NotCrosvmRun);
    };
    let mut device = OsString::from("block,socket=");
    device.push(&disk.socket);
    let mut out = args.to_vec();
    out.splice(run + 1..=run, ["--vhost-user".into(), device]);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::tests::os;
    use super::*;

    #[test]
    fn the_disk_follows_run() {
        let disk = DiskPaths::in_dir(Path::new("/d"));
        let args = os(&["--log-level", "warn", "run", "-m", "512", "bzImage"]);
        let wanted = os(&[
            "--log-level",
            "warn",
            "run",
            "--vhost-user",
            "block,socket=/d/store.sock",
            "-m",
            "512",
            "bzImage",
        ]);
        assert_eq!(attach(&args, &disk).unwrap(), wanted);
        assert!(attach(&os(&["stop", "x"]), &disk).is_err());
    }
}
