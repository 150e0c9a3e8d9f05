//! Prefetching, in a separate process.

use super::super::recording::prefetch;
use super::Server;
use super::jail::JailState;
use crate::sandbox::Process;

impl Server<'_> {
    /// Starts the processes that read the disk before a VM does.
    pub(super) fn start_readers(&mut self) {
        if self.plan_dir.is_some() {
            self.start_planner();
        }
        self.start_prefetch();
    }

    /// Starts the process that prefetches. The parent must stay single-threaded and must not block.
    fn start_prefetch(&mut self) {
        if self.options.prefetch.is_none() {
            return;
        }
        match self.spawn_reader(Self::become_prefetcher) {
            Ok(child) => self.prefetcher = Some(child),
            Err(error) => tracing::warn!("cannot prefetch: {error}"),
        }
    }

    /// Runs that process.
    fn become_prefetcher(&mut self) -> u8 {
        self.take_endpoint(None);
        let jail = std::mem::replace(&mut self.jail, JailState::Disabled);
        if let Err(error) = self.confine_worker(Process::Prefetcher, jail) {
            tracing::error!("{error}");
            return 1;
        }
        if let (Some(recording), Ok(image)) = (&self.options.prefetch, self.disks.main()) {
            prefetch(image, recording);
        }
        0
    }
}
