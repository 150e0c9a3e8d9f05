//! Reading in advance, in a process of its own.

use super::super::recording::prefetch;
use super::Server;
use super::jail::JailState;
use crate::sandbox::Process;

impl Server<'_> {
    /// Starts the processes that read before there is a VM.
    pub(super) fn start_readers(&mut self) {
        if self.plan_dir.is_some() {
            self.start_planner();
        }
        self.start_prefetch();
    }

    /// Has another process read in advance, so that this one keeps its one thread and answers at once.
    fn start_prefetch(&mut self) {
        if self.options.prefetch.is_none() {
            return;
        }
        match self.spawn_reader(Self::become_prefetcher) {
            Ok(child) => self.prefetcher = Some(child),
            Err(error) => tracing::warn!("cannot read in advance: {error}"),
        }
    }

    /// That process's life.
    fn become_prefetcher(&mut self) -> u8 {
        self.take_endpoint(usize::MAX);
        let jail = std::mem::replace(&mut self.jail, JailState::None);
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
