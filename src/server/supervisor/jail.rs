//! The jail of all workers: made by a process of its own, while this one goes on.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use rustix::process::Pid;

use super::Server;
use crate::image::Image;
use crate::process::{self, Child, End};
use crate::sandbox::jail::{self, Contents, Furniture, Jail};
use crate::sandbox::{self, PATHS_MAX, Process, SandboxError};

/// What the furnisher and its parent tell each other when it has its namespaces, and when its ids are mapped.
const GO_ON: [u8; 1] = [0];

/// How long that may take, and the mounts after it: clients wait. A store on a host that does not answer takes for ever.
const NAMESPACES_MAX: Duration = Duration::from_secs(10);
const MOUNTS_MAX: Duration = Duration::from_secs(30);

/// Whether workers get a jail.
pub(super) enum JailState {
    /// It is not wanted, or this host gives none.
    None,
    /// In a moment.
    Furnishing {
        jail: Jail,
        furnisher: Child,
        until: Instant,
    },
    /// Now.
    Furnished(Jail),
}

impl JailState {
    pub(super) fn furnisher(&mut self) -> Option<&mut Child> {
        match self {
            Self::Furnishing { furnisher, .. } => Some(furnisher),
            Self::None | Self::Furnished(_) => None,
        }
    }

    /// When it has to be made.
    pub(super) fn until(&self) -> Option<Instant> {
        match self {
            Self::Furnishing { until, .. } => Some(*until),
            Self::None | Self::Furnished(_) => None,
        }
    }
}

type Reason = Box<dyn std::error::Error>;

impl Server<'_> {
    /// Begins to make the jail. To be called before this process is confined.
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
        let mut furnisher = process::spawn(Signal::SIGKILL, || self.become_furnisher(theirs))?;
        let jail = map_furnisher(&mut ours, &furnisher, self.disks.is_tree());
        if jail.is_err() {
            furnisher.stop(Duration::ZERO);
        }
        Ok(JailState::Furnishing {
            jail: jail?,
            furnisher,
            until: Instant::now() + MOUNTS_MAX,
        })
    }

    /// The furnisher's life.
    fn become_furnisher(&mut self, mut parent: UnixStream) -> u8 {
        self.take_endpoint(usize::MAX);
        // For those who look at processes.
        let _ = rustix::thread::set_name(c"furnisher");
        if let Err(reason) = jail::unshare() {
            // Nobody may be left to tell.
            let _ = write!(parent, "{reason}");
            return 1;
        }
        let told = parent.write_all(&GO_ON);
        if told.and_then(|()| parent.read_exact(&mut [0])).is_err() {
            return 1;
        }
        match jail::furnish(&self.furniture()) {
            Ok(()) => 0,
            Err(reason) => {
                warn_of_no_jail(&reason);
                1
            }
        }
    }

    fn furniture(&self) -> Furniture<'_> {
        let disks = &self.disks;
        let contents = match disks.is_tree() || disks.path_count() > PATHS_MAX {
            true => Contents::All,
            false => Contents::Entries(disks.host_paths()),
        };
        Furniture {
            store: disks.any().store_path(),
            opened: disks.any().store_dir(),
            contents,
        }
    }

    pub(super) fn is_furnishing(&self) -> bool {
        matches!(self.jail, JailState::Furnishing { .. })
    }

    /// Looks whether the furnisher is done.
    pub(super) fn look_after_jail(&mut self) {
        let JailState::Furnishing {
            furnisher, until, ..
        } = &mut self.jail
        else {
            return;
        };
        let end = furnisher.end();
        if end.is_none() && Instant::now() < *until {
            return;
        }
        if end.is_none() {
            furnisher.stop(Duration::ZERO);
        }
        let done = std::mem::replace(&mut self.jail, JailState::None);
        match (end, done) {
            (Some(End::Exited(0)), JailState::Furnishing { jail, .. }) => {
                self.jail = JailState::Furnished(jail);
            }
            // It has said why.
            (Some(End::Exited(_)), _) => {}
            (Some(end), _) => warn_of_no_jail(&*Reason::from(format!("{end:?}"))),
            (None, _) => warn_of_no_jail(&*Reason::from("it takes too long to make them")),
        }
        if self.is_ready {
            self.start_readers();
        }
    }

    /// In a worker: confines it, and in the jail if there is one.
    pub(super) fn confine_worker(
        &self,
        profile: Process,
        jail: JailState,
    ) -> Result<(), SandboxError> {
        self.disks.images().for_each(Image::leave_pins);
        let cell = match jail {
            JailState::Furnished(jail) => Some(jail.enter()?),
            JailState::None | JailState::Furnishing { .. } => None,
        };
        if let Some(cell) = &cell {
            // Of all disks: a descriptor of the host's store would lead out of the jail.
            let mut images = self.disks.images();
            images.try_for_each(|image| image.move_to(&cell.store))?;
        }
        self.confine(profile, cell.as_ref())
    }
}

/// Reads that the furnisher has its namespaces, and lets it go on.
fn map_furnisher(words: &mut UnixStream, furnisher: &Child, all_ids: bool) -> Result<Jail, Reason> {
    words.set_read_timeout(Some(NAMESPACES_MAX))?;
    let mut said = [0; 256];
    let len = words.read(&mut said)?;
    if len == 0 {
        return Err("the process that makes it has ended".into());
    }
    if said[..len] != GO_ON {
        return Err(String::from_utf8_lossy(&said[..len]).into());
    }
    let pid = Pid::from_raw(furnisher.pid().as_raw()).ok_or("it has no number")?;
    let jail = Jail::of(pid, all_ids)?;
    words.write_all(&GO_ON)?;
    Ok(jail)
}

fn warn_of_no_jail(reason: &dyn std::error::Error) {
    tracing::warn!("{}: {reason}", sandbox::NO_JAIL);
}
