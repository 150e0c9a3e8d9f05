//! The worker's side of a mount: mounts, then answers the kernel's requests.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::thread::{self, JoinHandle};

use fuser::{Config, MountOption, Session, SessionACL};
use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

use super::error::FuseError;
use super::file::{ImageFile, Readers};
use super::{FuseOptions, SOURCE};
use crate::image::Image;

/// Readahead to request, in KiB: the maximum size of one FUSE request.
const READ_AHEAD_KIB: &str = "1024";

/// A mounted file system whose requests are not answered yet.
///
/// The worker that mounts it does not unmount; its parent does, even if the worker crashes.
pub struct Mounted {
    session: Session<ImageFile>,
    last_close: Receiver<()>,
}

/// A mounted file system whose requests are answered.
pub struct Serving {
    thread: JoinHandle<io::Result<()>>,
    last_close: Receiver<()>,
}

impl Mounted {
    /// Mounts the file system. `readers` counts opens and reads of the file.
    ///
    /// # Errors
    /// The host has no FUSE, or mounting fails.
    pub fn mount(
        image: Arc<Image>,
        options: &FuseOptions,
        readers: Arc<Readers>,
    ) -> Result<Self, FuseError> {
        let (closed, last_close) = mpsc::channel();
        let file = ImageFile::new(image, &options.image_name, readers, closed);
        let session = mount(file, options)?;
        read_far_ahead(&options.dir);
        Ok(Self {
            session,
            last_close,
        })
    }

    /// Starts threads that answer requests.
    ///
    /// # Errors
    /// No thread can be created.
    pub fn serve(self) -> Result<Serving, FuseError> {
        let Self {
            session,
            last_close,
        } = self;
        let thread = thread::Builder::new().name("fuse".to_owned());
        let thread = thread.spawn(move || session.run());
        Ok(Serving {
            thread: thread.map_err(FuseError::Serve)?,
            last_close,
        })
    }
}

impl Serving {
    /// Waits until someone unmounts the file system or, with `once`, until the last reader closes the file.
    ///
    /// # Errors
    /// Requests cannot be answered any more.
    pub fn wait(self, once: bool) -> Result<(), FuseError> {
        if once && self.last_close.recv().is_ok() {
            return Ok(());
        }
        match self.thread.join() {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(FuseError::Serve(error)),
            Err(_) => Err(FuseError::Panicked),
        }
    }
}

/// Checks that this process can open /dev/fuse.
///
/// # Errors
/// [`FuseError::NoDevice`].
pub fn check_device() -> Result<(), FuseError> {
    let opened = File::options().read(true).write(true).open("/dev/fuse");
    opened
        .map(drop)
        .map_err(|source| FuseError::NoDevice { source })
}

fn mount(file: ImageFile, options: &FuseOptions) -> Result<Session<ImageFile>, FuseError> {
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
    config.clone_fd = false;
    check_device()?;
    Session::new(file, &options.dir, &config).map_err(|source| match source.kind() {
        // The device and the directory exist, so fusermount3 is what is missing.
        ErrorKind::NotFound => FuseError::NoFusermount,
        _ => FuseError::Mount {
            dir: options.dir.clone(),
            source,
        },
    })
}

/// Raises the kernel's readahead to the maximum request size, if this process is allowed to. The default is 128 KiB,
/// and the kernel also splits larger buffered reads into requests of that size.
fn read_far_ahead(dir: &Path) {
    if let Err(error) = set_read_ahead(dir) {
        tracing::debug!("the kernel's readahead cannot be raised: {error}");
    }
}

fn set_read_ahead(dir: &Path) -> io::Result<()> {
    // Requests are not answered yet, so this must not cause one.
    let flags = AtFlags::STATX_DONT_SYNC;
    let stat = statx(CWD, dir, flags, StatxFlags::empty())?;
    let device = format!("{}:{}", stat.stx_dev_major, stat.stx_dev_minor);
    fs::write(
        format!("/sys/class/bdi/{device}/read_ahead_kb"),
        READ_AHEAD_KIB,
    )
}
