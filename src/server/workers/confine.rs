//! Which process gives up what, and when: the parent before it says that it is ready, a worker before it meets a guest.

use std::path::{Path, PathBuf};

use super::{ServeOptions, ServeOutcome, Server};
use crate::device::TransportError;
use crate::image::Image;
use crate::sandbox::{self, Process, Reach};

impl Server<'_> {
    /// Confines the process that owns the sockets, and says if this kernel cannot confine it well.
    pub(super) fn confine_parent(&self) -> Result<(), TransportError> {
        let process = match self.options.fuse {
            Some(_) => Process::Mounter,
            None => Process::Listener,
        };
        if self.options.sandbox && sandbox::is_landlock_missing() {
            tracing::warn!(
                "this kernel has no Landlock: workers may read whatever this user may read"
            );
        }
        confine(process, &self.image, self.options)
    }
}

/// Confines a process that is about to serve `image`, unless that is not wanted.
pub(super) fn confine(
    process: Process,
    image: &Image,
    options: &ServeOptions,
) -> Result<(), TransportError> {
    if !options.sandbox {
        return Ok(());
    }
    let reach = Reach {
        store: image.store_dir(),
        any_owner: image.is_tree(),
        cleaned_dirs: cleaned_dirs(image, options),
    };
    Ok(sandbox::confine(process, &reach)?)
}

/// For a worker: how it ends if it cannot be confined.
pub(super) fn confine_worker(
    process: Process,
    image: &Image,
    options: &ServeOptions,
) -> Option<ServeOutcome> {
    let error = confine(process, image, options).err()?;
    tracing::error!("{error}");
    Some(ServeOutcome::Worker { exit_code: 1 })
}

/// Where the parent, or who called it, removes something at the end.
fn cleaned_dirs(image: &Image, options: &ServeOptions) -> Vec<PathBuf> {
    let removed = options.sockets.iter().map(PathBuf::as_path);
    let removed = removed.chain(options.private_dir.as_deref());
    let removed = removed.chain(options.record.as_deref());
    removed.chain(image.pins_file()).map(dir_of).collect()
}

fn dir_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir.to_owned(),
        _ => PathBuf::from("."),
    }
}
