//! From a closure to a disk.

use std::sync::{Arc, OnceLock};

use super::builtin::{self, Builtin};
use super::plans::{self, Plans};
use super::root::RootDir;
use super::{Image, ImageError, ReadError};
use crate::closure::Pins;
use crate::closure::{Closure, Contents, StorePath};
use crate::erofs::encode::{self, SuperBlockFields};
use crate::erofs::format::BLOCK_LEN_BYTES;
use crate::erofs::layout::attributes::{Attributes, Origin};
use crate::erofs::layout::bounds::Size;
use crate::erofs::layout::plan::Plan;
use crate::erofs::layout::space::{self, Claim, Space};
use crate::parallel;
use crate::source::{HostTree, Identity, SourceError};
use crate::tree::{FileKind, Stat};

/// Label that NixOS mounts a store disk by.
pub const DEFAULT_LABEL: &str = "nix-store";

/// What a disk looks like besides its contents, and what it may use of the host.
#[derive(Debug, Clone)]
pub struct ImageOptions {
    /// Volume label, at most 15 bytes.
    pub label: String,
    /// Identity of the file system.
    pub uuid: [u8; 16],
    /// Owner of every file, instead of root or, in a tree, the host's.
    pub uid: Option<u32>,
    /// Group of every file.
    pub gid: Option<u32>,
    /// mtime of every file in seconds, instead of 1 or, in a tree, the host's.
    pub mtime_sec: Option<u64>,
    /// About how much memory plans may take.
    pub plan_cache_bytes: usize,
    /// How many files may stay open.
    pub max_open_files: usize,
    /// The closure's registration, which the disk carries at `.lazystore/registration`.
    pub registration: Option<Arc<[u8]>>,
}

impl Default for ImageOptions {
    fn default() -> Self {
        Self {
            label: DEFAULT_LABEL.to_owned(),
            // The identity that nixpkgs gives a store disk (eb176051-bd15-49b7-9e6b-462e0b467019).
            uuid: 0xeb17_6051_bd15_49b7_9e6b_462e_0b46_7019_u128.to_be_bytes(),
            uid: None,
            gid: None,
            mtime_sec: None,
            plan_cache_bytes: 64 << 20,
            max_open_files: 1024,
            registration: None,
        }
    }
}

impl Image {
    /// The disk of `closure`. Nothing inside a store path is opened whose NAR size is known.
    ///
    /// # Errors
    /// When paths are missing (all are named), a path without a NAR size cannot be planned, or there is no
    /// room.
    pub fn new(closure: &Closure, options: &ImageOptions) -> Result<Self, ImageError> {
        let store = HostTree::open(&closure.dir, options.max_open_files)?;
        match &closure.contents {
            Contents::Tree => Self::of_tree(store, options),
            Contents::StorePaths(paths) => Self::of_paths(store, closure, paths, options),
        }
    }

    fn of_tree(store: HostTree, options: &ImageOptions) -> Result<Self, ImageError> {
        let attributes = options.attributes(Origin::Host);
        let space = Space::whole(FileKind::Directory);
        let plans = Plans::new(1, attributes, options.plan_cache_bytes);
        // All of it is opened beneath a descriptor of the directory itself.
        Ok(Self::assemble(store, space, vec![None], plans, options))
    }

    fn of_paths(
        store: HostTree,
        closure: &Closure,
        paths: &[StorePath],
        options: &ImageOptions,
    ) -> Result<Self, ImageError> {
        let attributes = options.attributes(Origin::Nar);
        let found = examine(&store, closure, paths)?;
        let mut sizing = Sizing::new(&store, attributes, &found, paths);
        let builtin = options.registration.as_ref().map(|text| {
            let names = paths.iter().map(|path| &*path.name);
            Builtin::new(text, names, attributes)
        });
        let builtin = builtin.transpose()?;
        if let Some((builtin, plan)) = &builtin {
            sizing.insert(builtin.region as usize, builtin::DIR, plan);
        }
        let named = sizing.claims.iter().map(|claim| (&*claim.name, claim.kind));
        let root = RootDir::new(named, &attributes);
        sizing.fit(root.blocks())?;
        let Sizing { claims, tops, .. } = sizing;
        let space = Space::assign(claims, root.blocks())?;
        let plans = Plans::new(space.regions().len(), attributes, options.plan_cache_bytes);
        for (index, plan) in sizing.planned {
            plans.insert(index, plan);
        }
        let mut image = Self::assemble(store, space, tops, plans, options);
        image.root = Some(root);
        image.builtin = builtin.map(|(builtin, plan)| {
            image.plans.keep(builtin.region as usize, plan);
            builtin
        });
        Ok(image)
    }

    /// The disk of a tree.
    fn assemble(
        store: HostTree,
        space: Space,
        tops: Vec<Option<Identity>>,
        plans: Plans,
        options: &ImageOptions,
    ) -> Self {
        let attributes = options.attributes(Origin::Nar);
        let blocks = space.len_bytes() / BLOCK_LEN_BYTES;
        let superblock = encode::superblock(&SuperBlockFields {
            label: options.label.clone(),
            uuid: options.uuid,
            build_time_sec: attributes.build_time_sec(),
            inodes: space.regions().len() as u64 + 1,
            blocks: u32::try_from(blocks).unwrap_or(u32::MAX),
        });
        Self {
            store,
            space,
            tops,
            plans,
            superblock: Box::new(superblock),
            root: None,
            builtin: None,
            recorder: OnceLock::new(),
            pins: Pins::default(),
        }
    }
}

impl ImageOptions {
    fn attributes(&self, origin: Origin) -> Attributes {
        Attributes {
            origin,
            uid: self.uid,
            gid: self.gid,
            mtime_sec: self.mtime_sec,
        }
    }
}

/// From so many paths on, looking at them is worth threads.
const PARALLEL_FROM: usize = 4096;

/// What a path's top node is.
type Top = (Stat, Identity);

/// Every path's top node. All that are missing are named in one error.
fn examine(
    store: &HostTree,
    closure: &Closure,
    paths: &[StorePath],
) -> Result<Vec<Top>, ImageError> {
    let mut tops = Vec::with_capacity(paths.len());
    let mut missing = Vec::new();
    for (path, top) in paths.iter().zip(tops_of(store, paths)) {
        match top {
            Ok(top) => tops.push(top),
            Err(error) if error.is_not_found() => {
                let name = String::from_utf8_lossy(&path.name);
                missing.push(format!("{}/{name}", closure.store_dir.display()));
            }
            Err(error) => return Err(error.into()),
        }
    }
    if missing.is_empty() {
        Ok(tops)
    } else {
        Err(ImageError::Missing { paths: missing })
    }
}

fn tops_of(store: &HostTree, paths: &[StorePath]) -> Vec<Result<Top, SourceError>> {
    let look = |path: &StorePath| store.identify(&path.name);
    if paths.len() < PARALLEL_FROM {
        return paths.iter().map(look).collect();
    }
    // A part for each core: taking single paths would cost more than looking at them.
    let parts: Vec<&[StorePath]> = paths
        .chunks(paths.len().div_ceil(parallel::threads()))
        .collect();
    let look_at = |(): &mut (), part: usize| parts[part].iter().map(look).collect::<Vec<_>>();
    let tops = parallel::for_each(parts.len(), || (), look_at);
    tops.into_iter().flatten().collect()
}

/// What every path takes, and the plans that had to be made to know it.
struct Sizing<'a> {
    store: &'a HostTree,
    attributes: Attributes,
    claims: Vec<Claim>,
    tops: Vec<Option<Identity>>,
    planned: Vec<(usize, Plan)>,
    unknown: Vec<usize>,
}

impl<'a> Sizing<'a> {
    fn new(store: &'a HostTree, attributes: Attributes, tops: &[Top], paths: &[StorePath]) -> Self {
        let claim = |((stat, _), path): (&Top, &StorePath)| Claim {
            name: path.name.clone(),
            kind: stat.kind,
            size: Size::bound(path.nar_size.unwrap_or(0)),
        };
        let unknown = (0..paths.len()).filter(|&index| paths[index].nar_size.is_none());
        Self {
            store,
            attributes,
            claims: tops.iter().zip(paths).map(claim).collect(),
            tops: tops.iter().map(|(_, identity)| Some(*identity)).collect(),
            planned: Vec::new(),
            unknown: unknown.collect(),
        }
    }

    /// Makes room at `index` for the directory `name`, which is planned already.
    fn insert(&mut self, index: usize, name: &str, plan: &Plan) {
        let claim = Claim {
            name: name.as_bytes().into(),
            kind: FileKind::Directory,
            size: exact_size(plan),
        };
        self.claims.insert(index, claim);
        self.tops.insert(index, None);
        for unknown in self.unknown.iter_mut().filter(|unknown| **unknown >= index) {
            *unknown += 1;
        }
    }

    /// Plans what has no NAR size, and then as many more as must be for all to fit.
    fn fit(&mut self, root_blocks: u32) -> Result<(), ImageError> {
        let mut next = std::mem::take(&mut self.unknown);
        while !next.is_empty() {
            self.plan(&next)?;
            next = space::to_plan_exactly(&self.claims, root_blocks)?;
        }
        // With all sizes known, one look tells whether there is something to do at all.
        let next = space::to_plan_exactly(&self.claims, root_blocks)?;
        if next.is_empty() {
            return Ok(());
        }
        self.unknown = next;
        self.fit(root_blocks)
    }

    fn plan(&mut self, indexes: &[usize]) -> Result<(), ImageError> {
        for (index, plan) in self.plan_in_parallel(indexes)? {
            self.claims[index].size = exact_size(&plan);
            self.planned.push((index, plan));
        }
        Ok(())
    }

    /// Plans several paths, on all cores.
    fn plan_in_parallel(&self, indexes: &[usize]) -> Result<Vec<(usize, Plan)>, ReadError> {
        let plan = |(): &mut (), at: usize| {
            let index = indexes[at];
            let (name, top) = (&self.claims[index].name, self.tops[index]);
            plans::plan_whole(self.store, name, top, self.attributes).map(|plan| (index, plan))
        };
        let planned = parallel::for_each(indexes.len(), || (), plan);
        planned.into_iter().collect()
    }
}

fn exact_size(plan: &Plan) -> Size {
    Size {
        meta_blocks: u64::from(plan.meta_blocks()),
        data_blocks: u64::from(plan.data_blocks()),
        exact: true,
    }
}
