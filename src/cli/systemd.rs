//! Notifies systemd (sd_notify(3)).

use sd_notify::NotifyState;

use super::text::counted;
use crate::closure::{Closure, Contents};
use crate::server::ServeEvent;

/// Sends the service's status to systemd.
pub struct Systemd {
    what: String,
}

impl Systemd {
    /// For a server of the disks of `closures`.
    pub fn of(closures: &[&Closure]) -> Self {
        let what = match closures {
            [closure] => contents(closure),
            several => counted(several.len(), "disk"),
        };
        Self { what }
    }

    /// Notifies systemd of `event`. Does nothing without systemd.
    pub fn tell(&self, event: ServeEvent<'_>) {
        let status = self.status(event);
        let status = NotifyState::Status(&status);
        let notified = match event {
            ServeEvent::Ready(_) => sd_notify::notify(&[NotifyState::Ready, status]),
            ServeEvent::Vms(_) => sd_notify::notify(&[status]),
            ServeEvent::Stopping => sd_notify::notify(&[NotifyState::Stopping, status]),
        };
        if let Err(error) = notified {
            tracing::warn!("cannot notify systemd: {error}");
        }
    }

    fn status(&self, event: ServeEvent<'_>) -> String {
        match event {
            ServeEvent::Ready(_) => format!("serving {}; 0 VMs", self.what),
            ServeEvent::Vms(count) => format!("serving {}; {}", self.what, counted(count, "VM")),
            ServeEvent::Stopping => "stopping".to_owned(),
        }
    }
}

fn contents(closure: &Closure) -> String {
    match &closure.contents {
        Contents::StorePaths(paths) => counted(paths.len(), "path"),
        Contents::Tree => "a tree".to_owned(),
    }
}
