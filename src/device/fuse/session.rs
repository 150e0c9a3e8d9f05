//! The worker's side: mount, then answer the kernel until the end.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;

use fuser::{Config, MountOption, Session, SessionACL};
use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

use super::file::ImageFile;
use super::{FuseOptions, SOURCE};
use crate::device::TransportError;
use crate::image::Image;

/// Readahead to ask for, in KiB: as much as one request can carry.
const READ_AHEAD_KIB: &str = "1024";

/// Why there is nothing more to serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// The file was open, and is not any more.
    Closed,
    /// Someone unmounted it.
    Unmounted,
}

/// Mounts the file system and serves it. With `once` until the file was open and is not any more; else until someone
/// unmounts it.
///
/// `confine` is called once it is mounted, before there are other threads; `on_mount` when it is also being served. This process does not unmount it: its parent does, whatever it died of.
pub(crate) fn serve_mount(
    image: Arc<Image>,
    options: &FuseOptions,
    once: bool,
    confine: impl FnOnce() -> Result<(), TransportError>,
    on_mount: impl FnOnce(),
) -> Result<End, TransportError> {
    let (closed, last_close) = mpsc::channel();
    let file = ImageFile::new(image, &options.image_name, closed);
    let session = mount(file, options)?;
    read_far_ahead(&options.dir);
    confine()?;
    let serving = thread::spawn(move || session.run());
    on_mount();
    if once && last_close.recv().is_ok() {
        return Ok(End::Closed);
    }
    match serving.join() {
        Ok(Ok(())) => Ok(End::Unmounted),
        Ok(Err(error)) => Err(TransportError::host("answer the kernel's FUSE requests")(
            error,
        )),
        // The thread has said why.
        Err(_) => Err(TransportError::Worker {
            how: "a FUSE thread panicked".to_owned(),
        }),
    }
}

fn mount(file: ImageFile, options: &FuseOptions) -> Result<Session<ImageFile>, TransportError> {
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::RO,
        MountOption::DefaultPermissions,
        MountOption::FSName(SOURCE.to_owned()),
        MountOption::NoDev,
        MountOption::NoSuid,
        MountOption::NoExec,
    ];
    if options.allow_other {
        config.acl = SessionACL::All;
    }
    config.n_threads = Some(options.threads.get());
    config.clone_fd = true;
    check_device()?;
    Session::new(file, &options.dir, &config).map_err(|source| match source.kind() {
        // The device and the directory are there, so it is the program that mounts for those who are not root.
        ErrorKind::NotFound => TransportError::NoFusermount,
        _ => TransportError::Mount {
            dir: options.dir.clone(),
            source,
        },
    })
}

fn check_device() -> Result<(), TransportError> {
    let opened = File::options().read(true).write(true).open("/dev/fuse");
    opened
        .map(drop)
        .map_err(|source| TransportError::NoFuseDevice { source })
}

/// Lets the kernel read as far ahead as a request can carry, if this process may decide that. By itself it reads
/// 128 KiB ahead, and also splits larger buffered reads into such.
fn read_far_ahead(dir: &Path) {
    if let Err(error) = set_read_ahead(dir) {
        tracing::debug!("the kernel's readahead stays as it is: {error}");
    }
}

fn set_read_ahead(dir: &Path) -> io::Result<()> {
    // Nobody answers the file system's questions yet, so it must not be asked any.
    let flags = AtFlags::STATX_DONT_SYNC;
    let stat = statx(CWD, dir, flags, StatxFlags::empty())?;
    let device = format!("{}:{}", stat.stx_dev_major, stat.stx_dev_minor);
    fs::write(
        format!("/sys/class/bdi/{device}/read_ahead_kb"),
        READ_AHEAD_KIB,
    )
}
