//! The jail of all workers. A separate process builds it, so that the parent does not block.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use rustix::process::Pid;

use super::Server;
use crate::image::Image;
use crate::process::{self, Child, End};
use crate::sandbox::jail::{self, Jail, JailContents, JailSpec, Namespaces};
use crate::sandbox::{self, PATHS_MAX, Process, SandboxError};

/// Message from the builder when it has its namespaces, and from the parent when their ids are mapped.
const GO_ON: [u8; 1] = [0];

/// Time limits of creating namespaces and of the mounts, because clients wait. A store on a network file system may
/// block forever.
const NAMESPACES_MAX: Duration = Duration::from_secs(10);
const MOUNTS_MAX: Duration = Duration::from_secs(30);

/// State of the jail.
pub(super) enum JailState {
    /// Not wanted, or not possible on this host.
    Disabled,
    /// In progress. `pipe` is connected with the builder.
    Building {
        namespaces: Namespaces,
        builder: Child,
        pipe: UnixStream,
        until: Instant,
    },
    /// Built.
    Ready(Jail),
}

impl JailState {
    pub(super) fn builder(&mut self) -> Option<&mut Child> {
        match self {
            Self::Building { builder, .. } => Some(builder),
            Self::Disabled | Self::Ready(_) => None,
        }
    }

    /// Deadline for building it.
    pub(super) fn until(&self) -> Option<Instant> {
        match self {
            Self::Building { until, .. } => Some(*until),
            Self::Disabled | Self::Ready(_) => None,
        }
    }
}

type Reason = Box<dyn std::error::Error>;

impl Server<'_> {
    /// Starts building the jail. Must be called before this process is confined.
    pub(super) fn start_jail(&mut self) {
        if !self.options.sandbox {
            return;
        }
        match self.make_namespaces() {
            Ok(state) => self.jail = state,
            Err(reason) => warn_of_no_jail(&*reason),
        }
    }

    fn make_namespaces(&mut self) -> Result<JailState, Reason> {
        let (mut ours, theirs) = UnixStream::pair()?;
        let mut builder = process::spawn(Signal::SIGKILL, || self.become_jail_builder(theirs))?;
        let namespaces = map_ids_of_builder(&mut ours, &builder, self.disks.is_tree());
        if namespaces.is_err() {
            builder.stop(Duration::ZERO);
        }
        Ok(JailState::Building {
            namespaces: namespaces?,
            builder,
            pipe: ours,
            until: Instant::now() + MOUNTS_MAX,
        })
    }

    /// Runs the builder.
    fn become_jail_builder(&mut self, mut parent: UnixStream) -> u8 {
        self.take_endpoint(None);
        // For tools that list processes.
        let _ = rustix::thread::set_name(c"jail-builder");
        if let Err(reason) = jail::unshare() {
            // The parent may have ended.
            let _ = write!(parent, "{reason}");
            return 1;
        }
        let sent = parent.write_all(&GO_ON);
        if sent.and_then(|()| parent.read_exact(&mut [0])).is_err() {
            return 1;
        }
        match jail::build(&self.spec(), &parent) {
            Ok(()) => 0,
            Err(reason) => {
                warn_of_no_jail(&reason);
                1
            }
        }
    }

    fn spec(&self) -> JailSpec<'_> {
        let disks = &self.disks;
        let contents = match disks.is_tree() || disks.path_count() > PATHS_MAX {
            true => JailContents::All,
            false => JailContents::Entries(disks.host_paths()),
        };
        JailSpec {
            store: disks.first().store_path(),
            opened: disks.first().store_dir(),
            contents,
        }
    }

    pub(super) fn is_building_jail(&self) -> bool {
        matches!(self.jail, JailState::Building { .. })
    }

    /// Checks whether the builder has finished.
    pub(super) fn check_jail(&mut self) {
        let JailState::Building { builder, until, .. } = &mut self.jail else {
            return;
        };
        let end = builder.end();
        if end.is_none() && Instant::now() < *until {
            return;
        }
        if end.is_none() {
            builder.stop(Duration::ZERO);
        }
        let done = std::mem::replace(&mut self.jail, JailState::Disabled);
        match (end, done) {
            (
                Some(End::Exited(0)),
                JailState::Building {
                    namespaces, pipe, ..
                },
            ) => match namespaces.finish(&pipe) {
                Ok(jail) => self.jail = JailState::Ready(jail),
                Err(reason) => warn_of_no_jail(&reason),
            },
            // It has logged the reason.
            (Some(End::Exited(_)), _) => {}
            (Some(end), _) => warn_of_no_jail(&*Reason::from(format!("{end:?}"))),
            (None, _) => warn_of_no_jail(&*Reason::from("it takes too long to make them")),
        }
    }

    /// In a worker: enters the jail if there is one, and confines the process.
    pub(super) fn confine_worker(
        &self,
        profile: Process,
        jail: JailState,
    ) -> Result<(), SandboxError> {
        self.disks.images().for_each(Image::leave_pins);
        let cell = match jail {
            JailState::Ready(jail) => Some(jail.enter()?),
            JailState::Disabled | JailState::Building { .. } => None,
        };
        if let Some(cell) = &cell {
            // All disks must use the jail's store directory: a descriptor of the host's store would lead out of the jail.
            let mut images = self.disks.images();
            images.try_for_each(|image| image.move_to(&cell.dir))?;
        }
        self.confine(profile, cell.as_ref())
    }

    /// Confines this process, which does not enter the jail. Of store paths, it lets its children read those in the jail, if
    /// there is one: a single rule instead of one for each path.
    pub(super) fn confine_parent(&self, profile: Process) -> Result<(), SandboxError> {
        let jail = match &self.jail {
            JailState::Ready(jail) => Some(jail.store()),
            JailState::Disabled | JailState::Building { .. } => None,
        };
        self.confine(profile, jail)
    }
}

/// Waits until the builder has its namespaces, maps their ids, and lets it continue.
fn map_ids_of_builder(
    pipe: &mut UnixStream,
    builder: &Child,
    all_ids: bool,
) -> Result<Namespaces, Reason> {
    pipe.set_read_timeout(Some(NAMESPACES_MAX))?;
    let mut message = [0; 256];
    let len = pipe.read(&mut message)?;
    if len == 0 {
        return Err("the process that makes it has ended".into());
    }
    if message[..len] != GO_ON {
        return Err(String::from_utf8_lossy(&message[..len]).into());
    }
    let pid = Pid::from_raw(builder.pid().as_raw()).ok_or("it has no number")?;
    let namespaces = Namespaces::of(pid, all_ids)?;
    pipe.write_all(&GO_ON)?;
    Ok(namespaces)
}

fn warn_of_no_jail(reason: &dyn std::error::Error) {
    tracing::warn!("{}: {reason}", sandbox::NO_JAIL);
}
