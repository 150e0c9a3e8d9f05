//! What is served stays: store paths are held against garbage collection.

use crate::closure::{Graph, StoreLocation, StorePath};
use crate::store::Pins;

/// Holds the paths of `graph` with `max` descriptors at most, or with the Nix of a chroot store. What cannot be held is
/// said once.
pub fn hold(graph: &Graph, location: &StoreLocation, max: usize) -> Pins {
    let tops = graph.tops();
    if tops.len() > max {
        let (left, all) = (tops.len() - max, tops.len());
        // With references only those that nothing else refers to need a descriptor.
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
    let names = tops.iter().map(|top| &*top.name);
    let mut pins = Pins::hold(&graph.closure.dir, names, max);
    if location.store_root.is_some() && location.database().exists() {
        register(&mut pins, &tops, location);
    }
    pins
}

/// The collector of a chroot store does not see descriptors.
fn register(pins: &mut Pins, tops: &[&StorePath], location: &StoreLocation) {
    let paths: Vec<Vec<u8>> = tops
        .iter()
        .map(|top| location.store_path(&top.name))
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
