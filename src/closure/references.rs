//! Which store path refers to which: what a registration or the Nix database says of a closure's inside.

use super::name::{StoreDir, head};

/// References between the paths of a closure, each path being its index there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct References {
    /// Where each path's references start in `targets`, and where the last ones end.
    starts: Vec<usize>,
    targets: Vec<u32>,
    /// The first reference that leads out of the closure: from where, and to which path.
    outside: Option<(u32, Box<[u8]>)>,
}

impl References {
    /// The paths that path `index` refers to, sorted, itself perhaps among them.
    pub fn of(&self, index: u32) -> &[u32] {
        let index = index as usize;
        &self.targets[self.starts[index]..self.starts[index + 1]]
    }

    /// A path that refers to one that is not in the closure, and that one.
    pub(super) fn outside(&self) -> Option<(u32, &[u8])> {
        let (from, path) = self.outside.as_ref()?;
        Some((*from, path))
    }

    /// As few paths as it takes to reach all others from them: keeping these keeps the closure.
    pub fn tops(&self) -> Vec<u32> {
        let count = self.starts.len().saturating_sub(1);
        let mut referenced = vec![false; count];
        for from in 0..index(count) {
            for to in self.of(from).iter().filter(|to| **to != from) {
                referenced[*to as usize] = true;
            }
        }
        let mut reached = vec![false; count];
        let mut tops = Vec::new();
        // Nix knows no cycles. A list may, and then the first path of one stands for it.
        for wanted in [false, true] {
            for path in 0..index(count) {
                let here = path as usize;
                if referenced[here] == wanted && !reached[here] {
                    tops.push(path);
                    self.reach(path, &mut reached);
                }
            }
        }
        tops
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

/// References that are being collected, in any order.
#[derive(Debug, Default)]
pub(super) struct Collector {
    pairs: Vec<(u32, u32)>,
    outside: Option<(u32, Box<[u8]>)>,
}

impl Collector {
    pub(super) fn add(&mut self, from: usize, to: usize) {
        self.pairs.push((index(from), index(to)));
    }

    /// A reference to a path that the closure lacks.
    pub(super) fn add_outside(&mut self, from: usize, path: &[u8]) {
        self.outside
            .get_or_insert_with(|| (index(from), path.into()));
    }

    /// The references of a closure of `count` paths.
    pub(super) fn finish(mut self, count: usize) -> References {
        // Already in order when the records were.
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

/// A disk has fewer than 2^25 paths: more would not fit it.
fn index(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}

/// Finds names in a sorted list.
#[derive(Debug)]
pub(super) struct Index<'a> {
    names: &'a [Box<[u8]>],
    /// The first bytes of each name, side by side: a search in a long list then misses the CPU's caches seldom.
    heads: Vec<u64>,
}

impl<'a> Index<'a> {
    pub(super) fn new(names: &'a [Box<[u8]>]) -> Self {
        let heads = names.iter().map(|name| head(name)).collect();
        Self { names, heads }
    }

    /// Where `path` is, if it is a listed path in `store_dir`.
    pub(super) fn find_path(&self, path: &[u8], store_dir: StoreDir<'_>) -> Option<usize> {
        self.find(store_dir.name_of(path).ok()?, 0)
    }

    /// Where `name` is, likely at `guess`.
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
    fn tops_are_what_nobody_else_refers_to() {
        let graph = references(5, &[(3, 1), (1, 0), (1, 1), (3, 3), (3, 1)]);
        assert_eq!(graph.of(1), [0, 1]);
        assert_eq!(graph.of(3), [1, 3]);
        assert_eq!(graph.tops(), [2, 3, 4]);
        assert_eq!(references(0, &[]).tops(), Vec::<u32>::new());
    }

    #[test]
    fn one_path_of_a_cycle_stands_for_it() {
        assert_eq!(references(4, &[(1, 2), (2, 1), (2, 3)]).tops(), [0, 1]);
    }

    proptest! {
        #[test]
        fn everything_is_reached_from_the_tops(pairs in proptest::collection::vec((0..20_usize, 0..20_usize), 0..60)) {
            let graph = references(20, &pairs);
            let mut reached = vec![false; 20];
            graph.tops().into_iter().for_each(|top| graph.reach(top, &mut reached));
            prop_assert!(reached.into_iter().all(|reached| reached));
        }

        #[test]
        fn names_are_found_where_they_are(
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
