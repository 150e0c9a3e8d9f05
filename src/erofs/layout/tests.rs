//! Lays out random trees, without a file system.

use proptest::collection::vec;
use proptest::prelude::*;

use super::attributes::{Attributes, Origin};
use super::bounds::{INLINE_LIMIT_BYTES, Limits, Size};
use super::nar;
use super::plan::Content;
use super::plan::Plan;
use super::planner::Planner;
use super::space::{self, Area, Arenas, Claim, DATA_ARENA_START, Region, Space};
use crate::erofs::encode::{self, Block};
use crate::erofs::format::{BLOCK_LEN_BYTES, BLOCK_LEN_USIZE};
use crate::tree::{FileKind, Listing, Stat};

#[derive(Debug, Clone)]
enum Tree {
    File(u64),
    Symlink(usize),
    Dir(Vec<(Vec<u8>, Tree)>),
}

impl Tree {
    fn stat(&self) -> Stat {
        match self {
            Self::File(size) => Stat {
                size_bytes: *size,
                permissions: if is_executable(*size) { 0o755 } else { 0o644 },
                ..Stat::of_kind(FileKind::Regular)
            },
            Self::Symlink(_) => Stat::of_kind(FileKind::Symlink),
            Self::Dir(_) => Stat::of_kind(FileKind::Directory),
        }
    }

    fn target(&self) -> Vec<u8> {
        match self {
            Self::Symlink(len) => vec![b't'; *len],
            _ => Vec::new(),
        }
    }

    /// Returns the length of the node in a NAR, without the magic: the sum of the strings that `nix-store --dump` writes.
    fn nar_len(&self) -> u64 {
        let parens_and_type = string(1) + string(4) + string(1);
        parens_and_type
            + match self {
                Self::File(size) => {
                    let executable = string(10) + string(0);
                    let executable = u64::from(is_executable(*size)) * executable;
                    string(7) + executable + string(8) + 8 + size.next_multiple_of(8)
                }
                Self::Symlink(len) => string(7) + string(6) + string(*len),
                Self::Dir(entries) => {
                    let entry = |(name, tree): &(Vec<u8>, Self)| {
                        string(5)
                            + 2 * string(1)
                            + 2 * string(4)
                            + string(name.len())
                            + tree.nar_len()
                    };
                    string(9) + entries.iter().map(entry).sum::<u64>()
                }
            }
    }

    fn listing(&self) -> Listing {
        let mut listing = Listing::default();
        if let Self::Dir(entries) = self {
            for (name, tree) in entries {
                listing.push(name, tree.stat(), &tree.target());
            }
        }
        listing.sort();
        listing
    }

    /// Returns the directory at `path`, which is relative to the top node.
    fn at(&self, path: &[u8]) -> &Self {
        let mut here = self;
        for part in path.split(|byte| *byte == b'/').skip(1) {
            let Self::Dir(entries) = here else {
                unreachable!()
            };
            here = &entries.iter().find(|(name, _)| name == part).unwrap().1;
        }
        here
    }
}

/// So that both kinds of files occur.
fn is_executable(size: u64) -> bool {
    size % 2 == 1
}

fn string(len: usize) -> u64 {
    8 + (len as u64).next_multiple_of(8)
}

fn nar_size(tree: &Tree) -> u64 {
    string(13) + tree.nar_len()
}

fn any_size() -> impl Strategy<Value = u64> {
    prop_oneof![
        Just(0),
        Just(1),
        INLINE_LIMIT_BYTES - 1..=INLINE_LIMIT_BYTES + 1,
        4095..=4097_u64,
        0..100_000_u64,
        Just(5 << 30),
    ]
}

fn any_tree() -> impl Strategy<Value = Tree> {
    let leaf = prop_oneof![
        3 => any_size().prop_map(Tree::File),
        1 => prop_oneof![1..200_usize, 4000..=4095_usize].prop_map(Tree::Symlink),
    ];
    leaf.prop_recursive(5, 2000, 60, |inner| {
        vec((1..=255_usize, inner), 0..60).prop_map(|children| {
            let name = |(index, (len, tree)): (usize, (usize, Tree))| {
                let mut name = format!("{index:03}").into_bytes();
                name.resize(len.max(3), b'n');
                (name, tree)
            };
            Tree::Dir(children.into_iter().enumerate().map(name).collect())
        })
    })
}

/// Directories of many equal children: the worst case for filling blocks.
fn uniform_tree() -> impl Strategy<Value = Tree> {
    let leaf = prop_oneof![
        any_size().prop_map(Tree::File),
        (1..4096_usize).prop_map(Tree::Symlink)
    ];
    (leaf, 1..600_usize, 3..=255_usize, any::<bool>()).prop_map(|(leaf, count, len, nested)| {
        let child = if nested {
            Tree::Dir(vec![(b"c".to_vec(), leaf)])
        } else {
            leaf
        };
        let name = |index: usize| {
            let mut name = format!("{index:03}").into_bytes();
            name.resize(len, b'n');
            name
        };
        Tree::Dir(
            (0..count)
                .map(|index| (name(index), child.clone()))
                .collect(),
        )
    })
}

fn attributes() -> Attributes {
    Attributes::new(Origin::Nar)
}

fn limits(size: Size) -> Limits {
    Limits {
        meta_blocks: size.meta_blocks.try_into().unwrap_or(u32::MAX),
        data_blocks: size.data_blocks.try_into().unwrap_or(u32::MAX),
    }
}

fn planner(tree: &Tree, limits: Limits) -> Planner {
    planner_with(attributes(), tree, limits)
}

fn planner_with(attributes: Attributes, tree: &Tree, limits: Limits) -> Planner {
    Planner::new(b"path", attributes, limits, &tree.stat(), &tree.target()).unwrap()
}

fn step(planner: &mut Planner, tree: &Tree) {
    let dir = planner.next_dir().unwrap();
    let path = planner.plan().path(dir);
    planner.push(&tree.at(&path).listing()).unwrap();
}

fn region() -> Region {
    Region {
        name: b"path".as_slice().into(),
        kind: Some(FileKind::Directory),
        meta: 2..1000,
        data: DATA_ARENA_START..u32::MAX - 511,
        exact: false,
    }
}

fn render(plan: &Plan, block: u32) -> Block {
    let mut out = [0; BLOCK_LEN_USIZE];
    encode::metadata_block(plan, &region(), 128, block, &mut out);
    out
}

/// Inlined files share no block with directories and symlinks; the path's top node is in slot 0.
fn check_kinds_apart(plan: &Plan, block: u32) -> Result<(), TestCaseError> {
    let is_small_file = |index: &u32| {
        let node = plan.node(*index);
        *index != 0 && node.kind() == FileKind::Regular && plan.form(node).inline_len > 0
    };
    let nodes = plan.nodes_in_block(block);
    let small_files = nodes.iter().filter(|index| is_small_file(index)).count();
    prop_assert!(small_files == 0 || small_files == nodes.len());
    prop_assert!(block > 0 || nodes.first() == Some(&0));
    Ok(())
}

/// Nothing overlaps, inodes do not cross block boundaries, and data blocks are contiguous.
fn check_places(plan: &Plan) -> Result<(), TestCaseError> {
    let mut used = 0;
    for block in 0..plan.meta_blocks() {
        check_kinds_apart(plan, block)?;
        for index in plan.nodes_in_block(block) {
            let node = plan.node(*index);
            let end = node.slot() + plan.form(node).slots();
            prop_assert!(node.slot() >= used, "overlap at slot {}", node.slot());
            prop_assert_eq!(node.slot() / 128, (end - 1) / 128, "crosses a block");
            prop_assert!(plan.dirents_in_block(block).is_none());
            used = end;
        }
    }
    let mut next = 0;
    for (start, index) in plan.data_from(0) {
        let node = plan.node(*index);
        let (Content::Regular { data_block, .. } | Content::Symlink { data_block, .. }) =
            node.content()
        else {
            panic!("{node:?} has no data");
        };
        prop_assert_eq!(u64::from(data_block), next);
        prop_assert_eq!(u64::from(*start), next);
        next += node.size_bytes().div_ceil(BLOCK_LEN_BYTES);
    }
    prop_assert_eq!(next, u64::from(plan.data_blocks()));
    Ok(())
}

fn check_bound(tree: &Tree) -> Result<(), TestCaseError> {
    for is_dense in [false, true] {
        let attributes = Attributes {
            is_dense,
            ..attributes()
        };
        let bound = Size::bound(nar_size(tree), attributes.inlines_files());
        let mut planner = planner_with(attributes, tree, limits(bound));
        while !planner.is_complete() {
            step(&mut planner, tree);
        }
        check_places(planner.plan())?;
        prop_assert_eq!(nar::size_bytes(planner.plan()), nar_size(tree));
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn a_nar_size_bounds_any_tree(tree in any_tree()) {
        check_bound(&tree)?;
    }

    #[test]
    fn a_nar_size_bounds_uniform_trees(tree in uniform_tree()) {
        check_bound(&tree)?;
    }

    #[test]
    fn covered_blocks_never_change(tree in any_tree()) {
        let mut planner = planner(&tree, Limits::NONE);
        let mut early = std::collections::BTreeMap::new();
        while !planner.is_complete() {
            for block in 0..planner.plan().meta_blocks() {
                if planner.covers_meta(block) {
                    early.entry(block).or_insert_with(|| render(planner.plan(), block));
                }
            }
            step(&mut planner, &tree);
        }
        for (block, bytes) in early {
            prop_assert!(bytes == render(planner.plan(), block), "block {} changed", block);
        }
    }
}

#[test]
fn the_first_block_needs_only_the_top_directories() {
    let deep = Tree::Dir(vec![(
        b"c".to_vec(),
        Tree::Dir(vec![(b"d".to_vec(), Tree::Dir(Vec::new()))]),
    )]);
    let tree = Tree::Dir(vec![(b"a".to_vec(), deep.clone()), (b"b".to_vec(), deep)]);
    let mut planner = planner(&tree, Limits::NONE);
    let mut steps = 0;
    while !planner.covers_meta(0) {
        step(&mut planner, &tree);
        steps += 1;
    }
    assert_eq!(
        steps, 3,
        "the top directory and its two children of nine directories"
    );
}

#[test]
fn a_wrong_nar_size_is_an_error() {
    let file = |index: usize| (format!("{index:0>200}").into_bytes(), Tree::File(5000));
    let tree = Tree::Dir((0..100).map(file).collect());
    let mut planner = planner(&tree, limits(Size::bound(1000, true)));
    let error = planner.push(&tree.listing()).unwrap_err();
    assert_eq!(error, super::LayoutError::OutgrewRange);
}

fn claim(name: u8, meta_blocks: u64, data_blocks: u64, exact: bool) -> Claim {
    Claim {
        name: [name].into(),
        kind: Some(FileKind::Directory),
        size: Size {
            meta_blocks,
            data_blocks,
            exact,
        },
    }
}

/// As `Space::area`, by looking at every range.
fn area_by_search(space: &Space, root_blocks: u32, at: u32) -> Area {
    if at == 0 {
        return Area::Superblock;
    }
    if at <= root_blocks {
        return Area::Root(at - 1);
    }
    for (region, Region { meta, data, .. }) in (0..).zip(space.regions()) {
        if meta.contains(&at) {
            let block = at - meta.start;
            return Area::Meta { region, block };
        }
        if data.contains(&at) {
            let block = at - data.start;
            return Area::Data { region, block };
        }
    }
    Area::Unused { end: u32::MAX }
}

proptest! {
    #[test]
    fn a_dense_space_has_no_gaps(sizes in vec((1..5_u64, 0..6_u64), 0..9), root_blocks in 1..4_u32) {
        let claims = sizes.iter().map(|(meta, data)| claim(b'p', *meta, *data, true)).collect();
        let space = Space::assign(claims, root_blocks, Arenas::Packed).unwrap();
        let blocks: u64 = sizes.iter().map(|(meta, data)| meta + data).sum();
        let used = u32::try_from(blocks).unwrap() + 1 + root_blocks;
        for at in 0..used + 3 {
            prop_assert_eq!(space.area(at), area_by_search(&space, root_blocks, at));
            prop_assert_eq!(at >= used, matches!(space.area(at), Area::Unused { .. }));
        }
        prop_assert_eq!(space.len_bytes(), (u64::from(used) * BLOCK_LEN_BYTES).next_multiple_of(2 << 20));
    }
}

#[test]
fn metadata_of_a_dense_space_also_ends_before_128_gib() {
    let room = u64::from(DATA_ARENA_START) - 2;
    let assign = |blocks| Space::assign(vec![claim(b'p', blocks, 3, true)], 1, Arenas::Packed);
    assert_eq!(assign(room).unwrap().data_start(), DATA_ARENA_START);
    assert!(assign(room + 1).is_err());
    assert!(assign(u64::MAX).is_err());
}

#[test]
fn every_block_belongs_to_one_area() {
    let claims = vec![
        claim(b'a', 3, 0, true),
        claim(b'b', 1, 5, true),
        claim(b'c', 2, 0, true),
    ];
    let space = Space::assign(claims, 2, Arenas::Fixed).unwrap();
    let meta: Vec<Area> = (0..9).map(|block| space.area(block)).collect();
    let region = |region, block| Area::Meta { region, block };
    let unused = Area::Unused {
        end: DATA_ARENA_START,
    };
    assert_eq!(
        meta,
        [
            Area::Superblock,
            Area::Root(0),
            Area::Root(1),
            region(0, 0),
            region(0, 1),
            region(0, 2),
            region(1, 0),
            region(2, 0),
            region(2, 1),
        ]
    );
    assert_eq!(space.area(9), unused);
    assert_eq!(
        space.area(DATA_ARENA_START),
        Area::Data {
            region: 1,
            block: 0
        }
    );
    assert_eq!(
        space.area(DATA_ARENA_START + 5),
        Area::Unused { end: u32::MAX }
    );
    assert_eq!(space.len_bytes() % (2 << 20), 0);
}

#[test]
fn the_largest_bounds_are_planned_first_and_no_more_than_necessary() {
    let room = u64::from(DATA_ARENA_START);
    let mut claims = vec![
        claim(b'a', room / 2, 1, false),
        claim(b'b', room, 1, false),
        claim(b'c', 10, 1, false),
    ];
    assert_eq!(space::to_plan_exactly(&claims, 1).unwrap(), [1]);
    claims[1].size = Size {
        meta_blocks: room / 2,
        data_blocks: 1,
        exact: true,
    };
    assert_eq!(space::to_plan_exactly(&claims, 1).unwrap(), [0]);
    claims[0].size = Size {
        meta_blocks: 7,
        data_blocks: 1,
        exact: true,
    };
    assert!(space::to_plan_exactly(&claims, 1).unwrap().is_empty());
    claims[0].size.meta_blocks = room;
    assert!(space::to_plan_exactly(&claims, 1).is_err());
}

#[test]
fn absurd_nar_sizes_do_not_overflow() {
    let claims = vec![
        Claim {
            size: Size::bound(u64::MAX, true),
            ..claim(b'a', 0, 0, false)
        },
        Claim {
            size: Size::bound(u64::MAX, true),
            ..claim(b'b', 0, 0, false)
        },
    ];
    assert_eq!(space::to_plan_exactly(&claims, 1).unwrap(), [0, 1]);
    assert!(Space::assign(claims, 1, Arenas::Fixed).is_err());
}
