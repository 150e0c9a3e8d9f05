//! A tree that the input's bytes describe, laid out in memory and read back through erofs-rs.

use std::collections::BTreeMap;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use erofs_rs::r#async::EroFS;
use erofs_rs::backend::AsyncImage;
use erofs_rs::types::Inode;
use lazystore::erofs::encode::{self, Block, SuperBlockFields};
use lazystore::erofs::format::{BLOCK_LEN_BYTES, BLOCK_LEN_USIZE};
use lazystore::erofs::layout::attributes::{Attributes, Origin};
use lazystore::erofs::layout::plan::{NodeIndex, Plan};
use lazystore::erofs::layout::planner::Planner;
use lazystore::erofs::layout::space::{Area, Region, Space};
use lazystore::tree::{FileKind, Listing, Stat};

use super::input::Input;

enum Tree {
    File(u64),
    Symlink(Vec<u8>),
    Dir(BTreeMap<Vec<u8>, Tree>),
}

impl Input<'_> {
    /// A size near a limit of the format, or any size.
    fn size(&mut self) -> u64 {
        const LIMITS: [u64; 8] = [0, 1, 1024, 4064, 4096, 8192, 1 << 20, 1 << 32];
        let kind = self.byte();
        let near = LIMITS[usize::from(kind % 8)];
        (near + u64::from(kind / 8 % 4)).saturating_sub(u64::from(kind / 32 % 4))
    }

    fn name(&mut self) -> Vec<u8> {
        let len = match self.byte() {
            byte @ 0..=199 => usize::from(byte % 12) + 1,
            byte => usize::from(byte),
        };
        let mut name: Vec<u8> = (0..len.min(3)).map(|_| self.byte()).collect();
        name.resize(len, b'n');
        name.iter_mut()
            .filter(|byte| matches!(byte, 0 | b'/'))
            .for_each(|byte| *byte = b'-');
        name
    }

    fn tree(&mut self, depth: u8) -> Tree {
        match self.byte() % 8 {
            0..=3 => Tree::File(self.size()),
            4 => Tree::Symlink(vec![
                b't';
                usize::try_from(self.size().clamp(1, 4095)).unwrap_or(1)
            ]),
            _ if depth == 0 => Tree::Dir(BTreeMap::new()),
            kind => Tree::Dir(self.entries(depth - 1, kind == 7)),
        }
    }

    /// Some entries, or many similar ones, for a large directory.
    fn entries(&mut self, depth: u8, many: bool) -> BTreeMap<Vec<u8>, Tree> {
        let mut entries = BTreeMap::new();
        if many {
            let (count, size) = (u32::from(self.byte()), self.size());
            let files =
                (0..count).map(|index| (format!("{index:08}").into_bytes(), Tree::File(size)));
            entries.extend(files);
        }
        for _ in 0..self.byte() % 24 {
            let name = self.name();
            if name != b"." && name != b".." {
                entries.insert(name, self.tree(depth));
            }
        }
        entries
    }
}

impl Tree {
    fn stat(&self) -> Stat {
        let kind = match self {
            Self::File(_) => FileKind::Regular,
            Self::Symlink(_) => FileKind::Symlink,
            Self::Dir(_) => FileKind::Directory,
        };
        let size_bytes = if let Self::File(size) = self {
            *size
        } else {
            0
        };
        Stat {
            size_bytes,
            ..Stat::of_kind(kind)
        }
    }

    fn target(&self) -> &[u8] {
        if let Self::Symlink(target) = self {
            target
        } else {
            b""
        }
    }

    fn at(&self, path: &[u8]) -> &Self {
        let parts = path
            .split(|byte| *byte == b'/')
            .filter(|part| !part.is_empty());
        parts.fold(self, |here, part| match here {
            Self::Dir(entries) => &entries[part],
            _ => panic!("a directory to list is none"),
        })
    }

    fn listing(&self) -> Listing {
        let mut listing = Listing::default();
        if let Self::Dir(entries) = self {
            for (name, tree) in entries.iter().rev() {
                listing.push(name, tree.stat(), tree.target());
            }
        }
        listing.sort();
        listing
    }
}

/// The disk of one plan. A file's bytes are the low byte of its node's number.
struct Disk {
    plan: Plan,
    space: Space,
    superblock: Box<Block>,
    /// All metadata blocks.
    meta: Vec<Block>,
}

impl Disk {
    fn new(tree: &Tree) -> Self {
        let attributes = Attributes::new(Origin::Nar);
        let space = Space::whole(FileKind::Directory);
        let limits = space.region(0).limits();
        let mut planner = Planner::new(b"", attributes, limits, &tree.stat(), b"").unwrap();
        while let Some(dir) = planner.next_dir() {
            let path = planner.plan().path(dir);
            planner.push(&tree.at(&path).listing()).unwrap();
        }
        let fields = SuperBlockFields {
            label: "fuzz".to_owned(),
            uuid: [1; 16],
            build_time_sec: 1,
            inodes: 1,
            blocks: u32::MAX,
        };
        let superblock = Box::new(encode::superblock(&fields));
        let plan = planner.into_plan();
        let meta = (0..plan.meta_blocks()).map(|block| render(&plan, space.region(0), block));
        let meta = meta.collect();
        Self {
            plan,
            space,
            superblock,
            meta,
        }
    }

    fn block(&self, block: u32) -> Block {
        let mut out = [0; BLOCK_LEN_USIZE];
        match self.space.area(block) {
            Area::Superblock => out = *self.superblock,
            Area::Meta { block, .. } => {
                if let Some(rendered) = self.meta.get(block as usize) {
                    out = *rendered;
                }
            }
            Area::Data { block, .. } => self.data(block, &mut out),
            Area::Root(_) | Area::Unused { .. } => {}
        }
        out
    }

    fn data(&self, block: u32, out: &mut Block) {
        let Some((index, nth)) = self.plan.data_in_block(block) else {
            return;
        };
        let node = self.plan.node(index);
        let start = u64::from(nth) * BLOCK_LEN_BYTES;
        let len = usize::try_from((node.size_bytes() - start).min(BLOCK_LEN_BYTES)).unwrap();
        if node.kind() == FileKind::Symlink {
            out[..len].copy_from_slice(&self.plan.target(node)[..len]);
        } else {
            out[..len].fill(pattern(index));
        }
    }
}

fn render(plan: &Plan, region: &Region, block: u32) -> Block {
    let mut out = [0; BLOCK_LEN_USIZE];
    for file in encode::metadata_block(plan, region, region.nid(), block, &mut out) {
        out[file.offset..file.offset + file.len].fill(pattern(file.node));
    }
    out
}

fn pattern(node: NodeIndex) -> u8 {
    node.to_le_bytes()[0]
}

impl AsyncImage for Disk {
    async fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> erofs_rs::Result<()> {
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let block = self.block(u32::try_from(at / BLOCK_LEN_BYTES).unwrap());
            let from = usize::try_from(at % BLOCK_LEN_BYTES).unwrap();
            let len = (BLOCK_LEN_USIZE - from).min(buf.len() - done);
            buf[done..done + len].copy_from_slice(&block[from..from + len]);
            done += len;
        }
        Ok(())
    }
}

fn now<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("memory does not wait"),
    }
}

fn check_dir(fs: &EroFS<Disk>, path: &[u8], tree: &Tree) {
    let Tree::Dir(expected) = tree else {
        panic!("not a directory")
    };
    let mut expected = expected.iter();
    let mut entries = now(fs.read_dir(path)).unwrap();
    while let Some(entry) = now(entries.next_entry()) {
        let entry = entry.unwrap();
        let (name, tree) = expected.next().expect("an entry too many");
        assert_eq!(entry.dir_entry.file_name(), name);
        let path = [path, b"/", name].concat();
        check(fs, &path, entry.inode, tree);
    }
    assert!(expected.next().is_none(), "an entry is missing");
}

fn check(fs: &EroFS<Disk>, path: &[u8], inode: Inode, tree: &Tree) {
    match tree {
        Tree::Dir(_) => check_dir(fs, path, tree),
        Tree::Symlink(target) => {
            assert_eq!(now(fs.read_link_inode(inode)).unwrap().as_bytes(), target)
        }
        Tree::File(size) => {
            let file = fs.open_inode_file(inode).unwrap();
            assert_eq!(file.size(), *size);
            let mut ends = [0; 2];
            if *size > 0 {
                now(file.read_at(&mut ends[..1], 0)).unwrap();
                now(file.read_at(&mut ends[1..], size - 1)).unwrap();
                assert_eq!(ends[0], ends[1], "both ends belong to one file");
            }
        }
    }
}

/// Lays the tree out and reads it back completely.
pub fn run(data: &[u8]) {
    let tree = Tree::Dir(Input(data).entries(5, data.len() % 2 == 1));
    let fs = now(EroFS::new(Disk::new(&tree))).unwrap();
    check_dir(&fs, b"", &tree);
}
