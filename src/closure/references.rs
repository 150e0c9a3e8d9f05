//! The reference graph of a closure, from a registration or the Nix database.

use super::name::{StoreDir, head};

/// References between the paths of a closure. A path is identified by its index in the sorted list of paths.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct References {
    /// `targets[starts[i]..starts[i + 1]]` are the references of path `i`.
    starts: Vec<usize>,
    targets: Vec<u32>,
    /// The first reference to a path outside the closure: the referrer and the path.
    outside: Option<(u32, Box<[u8]>)>,
}

impl References {
    /// Returns the sorted references of path `index`; may include `index`.
    pub fn of(&self, index: u32) -> &[u32] {
        let index = index as usize;
        &self.targets[self.starts[index]..self.starts[index + 1]]
    }

    /// Returns the first reference to a path outside the closure: the referrer and the path.
    pub(super) fn outside(&self) -> Option<(u32, &[u8])> {
        let (from, path) = self.outside.as_ref()?;
        Some((*from, path))
    }

    /// Returns the paths from which all others are reachable: the smallest such set if there are no cycles. Protecting these
    /// from garbage collection protects the closure.
    pub fn minimal_roots(&self) -> Vec<u32> {
        let count = self.starts.len().saturating_sub(1);
        let mut referenced = vec![false; count];
        for from in 0..index(count) {
            for to in self.of(from).iter().filter(|to| **to != from) {
                referenced[*to as usize] = true;
            }
        }
        let mut reached = vec![false; count];
        let mut roots = Vec::new();
        // Nix allows no cycles, but a registration file may contain them. A cycle that is not reachable from a path
        // without referrers contributes its first path, in the second pass.
        for wanted in [false, true] {
            for path in 0..index(count) {
                let here = path as usize;
                if referenced[here] == wanted && !reached[here] {
                    roots.push(path);
                    self.reach(path, &mut reached);
                }
            }
        }
        roots
    }

    fn reach(&self, from: u32, reached: &mut [bool]) {
        let mut next = vec![from];
        while let Some(path) = next.pop() {
            if !std::mem::replace(&mut reached[path as usize], true) {
                next.extend(self.of(path));
            }
        }
    }
}

/// Builds [`References`] from pairs in any order.
#[derive(Debug, Default)]
pub(super) struct Collector {
    pairs: Vec<(u32, u32)>,
    outside: Option<(u32, Box<[u8]>)>,
}

impl Collector {
    pub(super) fn add(&mut self, from: usize, to: usize) {
        self.pairs.push((index(from), index(to)));
    }

    /// Adds a reference to a path outside the closure.
    pub(super) fn add_outside(&mut self, from: usize, path: &[u8]) {
        self.outside
            .get_or_insert_with(|| (index(from), path.into()));
    }

    /// Builds the references of a closure of `count` paths.
    pub(super) fn finish(mut self, count: usize) -> References {
        // The stable sort is linear for sorted input, which is the usual case.
        self.pairs.sort();
        self.pairs.dedup();
        let starts = (0..=index(count))
            .map(|path| self.pairs.partition_point(|(from, _)| *from < path))
            .collect();
        References {
            starts,
            targets: self.pairs.into_iter().map(|(_, to)| to).collect(),
            outside: self.outside,
        }
    }
}

/// The cast cannot saturate: a disk has fewer than 2^25 paths.
fn index(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}

/// Looks up names in a sorted list.
#[derive(Debug)]
pub(super) struct Index<'a> {
    names: &'a [Box<[u8]>],
    /// The first bytes of each name in one array, so that a binary search causes few cache misses.
    heads: Vec<u64>,
}

impl<'a> Index<'a> {
    pub(super) fn new(names: &'a [Box<[u8]>]) -> Self {
        let heads = names.iter().map(|name| head(name)).collect();
        Self { names, heads }
    }

    /// Returns the index of the store path `path` in `store_dir`, if it is listed.
    pub(super) fn find_path(&self, path: &[u8], store_dir: StoreDir<'_>) -> Option<usize> {
        self.find(store_dir.name_of(path).ok()?, 0)
    }

    /// Returns the index of `name`, if it is listed. `guess` is tried first.
    pub(super) fn find(&self, name: &[u8], guess: usize) -> Option<usize> {
        if self.names.get(guess).is_some_and(|next| **next == *name) {
            return Some(guess);
        }
        let head = head(name);
        let start = self.heads.partition_point(|other| *other < head);
        let same = self.heads[start..].partition_point(|other| *other == head);
        let found = self.names[start..start + same].binary_search_by(|other| (**other).cmp(name));
        found.ok().map(|at| start + at)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn references(count: usize, pairs: &[(usize, usize)]) -> References {
        let mut collector = Collector::default();
        pairs
            .iter()
            .for_each(|(from, to)| collector.add(*from, *to));
        collector.finish(count)
    }

    #[test]
    fn minimal_roots_are_the_paths_without_referrers() {
        let graph = references(5, &[(3, 1), (1, 0), (1, 1), (3, 3), (3, 1)]);
        assert_eq!(graph.of(1), [0, 1]);
        assert_eq!(graph.of(3), [1, 3]);
        assert_eq!(graph.minimal_roots(), [2, 3, 4]);
        assert_eq!(references(0, &[]).minimal_roots(), Vec::<u32>::new());
    }

    #[test]
    fn a_cycle_has_one_minimal_root() {
        let graph = references(4, &[(1, 2), (2, 1), (2, 3)]);
        assert_eq!(graph.minimal_roots(), [0, 1]);
    }

    proptest! {
        #[test]
        fn everything_is_reachable_from_the_minimal_roots(pairs in proptest::collection::vec((0..20_usize, 0..20_usize), 0..60)) {
            let graph = references(20, &pairs);
            let mut reached = vec![false; 20];
            graph.minimal_roots().into_iter().for_each(|root| graph.reach(root, &mut reached));
            prop_assert!(reached.into_iter().all(|reached| reached));
        }

        #[test]
        fn names_are_found_at_their_index(
            names in proptest::collection::btree_set("[ab]{0,2}(aaaaaaaa)?[ab]{1,3}", 1..30),
            other in "[ab]{0,2}(aaaaaaaa)?[ab]{1,3}",
            guess in 0..40_usize,
        ) {
            let sorted: Vec<Box<[u8]>> = names.iter().map(|name| name.as_bytes().into()).collect();
            let index = Index::new(&sorted);
            for (at, name) in sorted.iter().enumerate() {
                prop_assert_eq!(index.find(name, guess), Some(at));
            }
            let at = sorted.iter().position(|name| **name == *other.as_bytes());
            prop_assert_eq!(index.find(other.as_bytes(), guess), at);
        }
    }
}
