//! The signals that the parent waits for.

use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::device::TransportError;

/// The signals that the parent waits for, and what the mask was before.
pub(super) struct Signals {
    pub(super) fd: SignalFd,
    before: SigSet,
}

impl Signals {
    pub(super) fn block() -> Result<Self, TransportError> {
        let wanted: SigSet = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGCHLD]
            .into_iter()
            .collect();
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let before = wanted
            .thread_swap_mask(SigmaskHow::SIG_BLOCK)
            .map_err(TransportError::host("block signals"))?;
        let fd = SignalFd::with_flags(&wanted, flags)
            .map_err(TransportError::host("wait for signals"))?;
        Ok(Self { fd, before })
    }

    /// Reads all that have come. Returns whether one of them asks the process to end.
    pub(super) fn asks_to_end(&self) -> bool {
        let mut end = false;
        while let Ok(Some(signal)) = self.fd.read_signal() {
            let number = i32::try_from(signal.ssi_signo);
            end |= number.is_ok_and(|n| n == Signal::SIGTERM as i32 || n == Signal::SIGINT as i32);
        }
        end
    }

    /// Gives a worker the mask from before, but for SIGINT: a terminal sends that to the workers too, and it is the
    /// parent's to decide.
    pub(super) fn restore_for_worker(&self) {
        let mut mask = self.before;
        mask.add(Signal::SIGINT);
        // This is how the parent ends a worker, even if whoever started the parent had blocked it.
        mask.remove(Signal::SIGTERM);
        // With a wrong mask the worker still serves, and the parent's SIGKILL still ends it.
        let _ = mask.thread_set_mask();
    }
}
