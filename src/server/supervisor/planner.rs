//! The planner: a process that plans paths for all workers, so that another VM need not walk them again.

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

/// Lowest priority, so that it does not take CPU time from VMs.
const NICE: i32 = 19;

/// Minimum pause before a dead planner is restarted, and the longest pause. It doubles with each restart. The planner is
/// restarted together with the next process that uses its plans.
const PAUSE_FIRST: Duration = Duration::from_secs(1);
const PAUSE_LAST: Duration = Duration::from_secs(600);

/// The planner process.
#[derive(Default)]
pub(super) struct PlannerProcess {
    child: Option<Child>,
    /// Earliest time of the next start, and the current pause.
    not_before: Option<Instant>,
    pause: Duration,
}

impl PlannerProcess {
    /// The process, while it runs.
    pub(super) fn child_mut(&mut self) -> Option<&mut Child> {
        self.child.as_mut()
    }

    fn may_start(&self) -> bool {
        let is_due = self.not_before.is_none_or(|due| due <= Instant::now());
        self.child.is_none() && is_due
    }

    /// Schedules the next start, after a failure. Logs only the first failure.
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
            self.back_off(&format_args!("the planner process has ended ({end:?})"));
        }
    }
}

impl Server<'_> {
    /// Starts the planner unless it runs. Must be called before starting a process that reads the disk.
    pub(super) fn start_planner(&mut self) {
        let has_cache = self.disks.first().plan_cache_bytes() > 0;
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
        // The parent drops the closure, and with it the writable mappings. No other process may have them.
        process::spawn(Signal::SIGKILL, || self.become_planner(publishers))
    }

    /// Runs the planner.
    fn become_planner(&mut self, mut publishers: Vec<Publisher>) -> u8 {
        let plan_dir = self.plan_dir.take();
        self.take_endpoint(None);
        self.plan_dir = plan_dir;
        self.disks.remote().map(RemoteTree::forget_control);
        // For tools that list processes.
        let _ = rustix::thread::set_name(c"planner");
        // An error only means a higher priority.
        let _ = setpriority_process(None, NICE);
        let jail = std::mem::replace(&mut self.jail, JailState::Disabled);
        let profile = match self.plan_dir {
            Some(_) => Process::PlanKeeper,
            None => Process::Planner,
        };
        if let Err(error) = self.confine_worker(profile, jail) {
            tracing::error!("{error}");
            return 1;
        }
        if let Some(dir) = self.plan_dir.take().map(Arc::new) {
            // All disks share the directory: its files belong to store paths.
            let keep = |publisher: &mut Publisher| publisher.keep_in(Arc::clone(&dir));
            publishers.iter_mut().for_each(keep);
        }
        publish(&self.disks, publishers)
    }
}

/// Publishes the plans of all disks until the process ends. Each disk after the first has its own thread.
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
