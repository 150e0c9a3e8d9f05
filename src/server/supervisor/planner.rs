//! The process that plans paths for all others, so that a further VM walks nothing.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use rustix::process::setpriority_process;

use super::super::disks::Disks;
use super::Server;
use super::jail::JailState;
use crate::image::{Image, Publisher};
use crate::process::{self, Child, ProcessError, exit_now};
use crate::sandbox::Process;
use crate::source::RemoteTree;

/// The lowest priority: it plans while others have nothing to do.
const NICE: i32 = 19;

/// After its death it is started again when a process is started that would read by its plans, but not before this time
/// has passed; each time it is twice as long.
const PAUSE_FIRST: Duration = Duration::from_secs(1);
const PAUSE_LAST: Duration = Duration::from_secs(600);

/// The process that plans.
#[derive(Default)]
pub(super) struct Planner {
    child: Option<Child>,
    /// When it may be started again, and how long that was waited for.
    not_before: Option<Instant>,
    pause: Duration,
}

impl Planner {
    /// It, while it lives.
    pub(super) fn child_mut(&mut self) -> Option<&mut Child> {
        self.child.as_mut()
    }

    fn may_start(&self) -> bool {
        let is_due = self.not_before.is_none_or(|due| due <= Instant::now());
        self.child.is_none() && is_due
    }

    /// It is not there; only the first time is told.
    fn back_off(&mut self, why: &dyn std::fmt::Display) {
        if self.pause.is_zero() {
            tracing::warn!("every VM plans paths by itself, which takes longer: {why}");
        }
        self.pause = (self.pause * 2).clamp(PAUSE_FIRST, PAUSE_LAST);
        self.not_before = Some(Instant::now() + self.pause);
    }

    pub(super) fn reap(&mut self) {
        if let Some(end) = self.child.as_mut().and_then(Child::end) {
            self.child = None;
            self.back_off(&format_args!(
                "the process that plans for all has ended ({end:?})"
            ));
        }
    }
}

impl Server<'_> {
    /// Starts it unless it is there. To be called before a process is started that reads the disk.
    pub(super) fn start_planner(&mut self) {
        let has_cache = self.disks.any().plan_cache_bytes() > 0;
        let is_wanted = has_cache && !self.disks.is_tree();
        if !is_wanted || !self.planner.may_start() {
            return;
        }
        match self.spawn_planner() {
            Ok(child) => self.planner.child = Some(child),
            Err(error) => self.planner.back_off(&error),
        }
    }

    fn spawn_planner(&mut self) -> Result<Child, ProcessError> {
        let publishers = self.disks.images().map(Image::share_plans);
        let publishers = publishers.collect::<Result<_, _>>()?;
        // In this process the closure is dropped, and with it what is written through: no other process may have that.
        process::spawn(Signal::SIGKILL, || self.become_planner(publishers))
    }

    /// Its life.
    fn become_planner(&mut self, mut publishers: Vec<Publisher>) -> u8 {
        let plan_dir = self.plan_dir.take();
        self.take_endpoint(usize::MAX);
        self.plan_dir = plan_dir;
        self.disks.remote().map(RemoteTree::forget_control);
        // For those who look at processes.
        let _ = rustix::thread::set_name(c"planner");
        // It only costs more otherwise.
        let _ = setpriority_process(None, NICE);
        let jail = std::mem::replace(&mut self.jail, JailState::None);
        let profile = match self.plan_dir {
            Some(_) => Process::PlanKeeper,
            None => Process::Planner,
        };
        if let Err(error) = self.confine_worker(profile, jail) {
            tracing::error!("{error}");
            return 1;
        }
        if let Some(dir) = self.plan_dir.take().map(Arc::new) {
            // Its files belong to paths, whichever disks these are on.
            let keep = |publisher: &mut Publisher| publisher.keep_in(Arc::clone(&dir));
            publishers.iter_mut().for_each(keep);
        }
        publish(&self.disks, publishers)
    }
}

/// Publishes the plans of all disks until the process ends. Each disk after the first has a thread of its own.
fn publish(disks: &Disks, publishers: Vec<Publisher>) -> u8 {
    let mut all = publishers.into_iter().zip(disks.images());
    let Some((first, its_image)) = all.next() else {
        return 1;
    };
    thread::scope(|scope| {
        for (publisher, image) in all {
            let thread = thread::Builder::new().name("planner".to_owned());
            if let Err(error) = thread.spawn_scoped(scope, move || publisher.run(image)) {
                tracing::error!("cannot start a thread: {error}");
                exit_now(1);
            }
        }
        first.run(its_image)
    })
}
