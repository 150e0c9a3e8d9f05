//! Protects the served store paths from garbage collection.

use crate::closure::{Graph, Pins, StoreLocation, StorePath};

/// Protects the paths of `graphs`, all of the same store, with at most `max` descriptors and, for a chroot store, with
/// temporary roots. Logs one warning about the paths that are not protected.
///
/// A process has one file of temporary roots, so the paths of all its closures have to be held together.
pub fn hold(graphs: &[&Graph], location: &StoreLocation, max: usize) -> Pins {
    let Some(first) = graphs.first() else {
        return Pins::default();
    };
    let mut roots: Vec<_> = graphs
        .iter()
        .flat_map(|graph| graph.minimal_roots())
        .collect();
    roots.sort_by(|a, b| a.name.cmp(&b.name));
    roots.dedup_by(|a, b| a.name == b.name);
    if roots.len() > max {
        let (left, all) = (roots.len() - max, roots.len());
        // With known references, only paths without referrers need a descriptor.
        let advice = match graphs.iter().all(|graph| graph.references.is_some()) {
            true => "raise the limit of open files (ulimit -n, LimitNOFILE=)",
            false => {
                "raise the limit of open files (ulimit -n, LimitNOFILE=), or pass a registration"
            }
        };
        tracing::warn!(
            "{left} of {all} store paths are not protected from garbage collection: {advice}"
        );
    }
    let names = roots.iter().map(|root| &*root.name);
    let mut pins = Pins::hold(&first.closure.dir, names, max);
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
            "no path of {} is protected from garbage collection: cannot write to {}/temproots: {error}",
            location.physical_dir().display(),
            state_dir.display()
        );
    }
}
