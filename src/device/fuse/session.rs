//! The worker's side: mount, then answer the kernel until the end.

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

/// Readahead to ask for, in KiB: as much as one request can carry.
const READ_AHEAD_KIB: &str = "1024";

/// Why there is nothing more to serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The last reader has closed the file.
    Closed,
    /// Someone unmounted it.
    Unmounted,
}

/// A file system that is mounted; nobody answers its requests yet.
///
/// The process that mounts does not unmount: its parent does, whatever it died of.
pub struct Mounted {
    session: Session<ImageFile>,
    last_close: Receiver<()>,
}

/// A file system that is served.
pub struct Serving {
    thread: JoinHandle<io::Result<()>>,
    last_close: Receiver<()>,
}

impl Mounted {
    /// Mounts the file system; `readers` is told who opens and closes the file.
    ///
    /// # Errors
    /// When this host has no FUSE, or the directory cannot be mounted on.
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

    /// Answers requests from now on, in threads of its own.
    ///
    /// # Errors
    /// When there is no thread to be had.
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
    /// Waits until someone unmounts it; with `once` also until the last reader has closed the file.
    ///
    /// # Errors
    /// When requests cannot be answered any more.
    pub fn wait(self, once: bool) -> Result<End, FuseError> {
        if once && self.last_close.recv().is_ok() {
            return Ok(End::Closed);
        }
        match self.thread.join() {
            Ok(Ok(())) => Ok(End::Unmounted),
            Ok(Err(error)) => Err(FuseError::Serve(error)),
            Err(_) => Err(FuseError::Panicked),
        }
    }
}

/// Looks whether this process can use FUSE at all.
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
        // The device and the directory are there, so it is the program that mounts for those who are not root.
        ErrorKind::NotFound => FuseError::NoFusermount,
        _ => FuseError::Mount {
            dir: options.dir.clone(),
            source,
        },
    })
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
