//! Protects the served store paths from garbage collection.

use crate::closure::{Graph, Pins, StoreLocation, StorePath};

/// Protects the paths of `graph` with at most `max` descriptors and, for a chroot store, with temporary roots. Logs one
/// warning about the paths that are not protected.
pub fn hold(graph: &Graph, location: &StoreLocation, max: usize) -> Pins {
    let roots = graph.minimal_roots();
    if roots.len() > max {
        let (left, all) = (roots.len() - max, roots.len());
        // With known references, only paths without referrers need a descriptor.
        let advice = match graph.references {
            Some(_) => "raise the limit of open files (ulimit -n, LimitNOFILE=)",
            None => {
                "raise the limit of open files (ulimit -n, LimitNOFILE=), or pass a registration"
            }
        };
        tracing::warn!(
            "{left} of {all} store paths are not held against garbage collection: {advice}"
        );
    }
    let names = roots.iter().map(|root| &*root.name);
    let mut pins = Pins::hold(&graph.closure.dir, names, max);
    if location.store_root.is_some() && location.database().exists() {
        register(&mut pins, &roots, location);
    }
    pins
}

/// Writes temporary roots, because the garbage collector of a chroot store ignores descriptors.
fn register(pins: &mut Pins, roots: &[&StorePath], location: &StoreLocation) {
    let paths: Vec<Vec<u8>> = roots
        .iter()
        .map(|root| location.store_path(&root.name))
        .collect();
    let state_dir = location.state_dir();
    if let Err(error) = pins.register(&state_dir, &paths) {
        tracing::warn!(
            "nothing of {} is held against garbage collection: {}/temproots cannot be written to: {error}",
            location.physical_dir().display(),
            state_dir.display()
        );
    }
}
