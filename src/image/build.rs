//! Lays out the disk of a closure.

use std::sync::{Arc, OnceLock};

use super::plans::Plans;
use super::{Fingerprint, Image, ImageError, PathOrigin, builtin, walk};
use crate::closure::{Closure, Contents, Pins, StorePath};
use crate::erofs::encode::SuperBlockFields;
use crate::erofs::layout::attributes::{self, Attributes};
use crate::erofs::layout::bounds::Size;
use crate::erofs::layout::plan::Plan;
use crate::erofs::layout::space::{self, Arenas, Claim, Space, TooBig};
use crate::erofs::volume::{RootDir, Volume};
use crate::parallel;
use crate::source::{HostTree, Identity, PathTree, RemoteTree, SourceError, TreeSource};
use crate::tree::{FileKind, Stat};

/// Label of NixOS's store disks.
pub const DEFAULT_LABEL: &str = "nix-store";

/// Options of a disk.
#[derive(Debug, Clone)]
pub struct ImageOptions {
    /// Volume label, at most 15 bytes.
    pub label: String,
    /// File system UUID.
    pub uuid: [u8; 16],
    /// Owner of every file. Default: root, or the host's for a tree.
    pub uid: Option<u32>,
    /// Group of every file. Default: root, or the host's for a tree.
    pub gid: Option<u32>,
    /// mtime of every file in seconds. Default: 1, or the host's for a tree.
    pub mtime_sec: Option<u64>,
    /// Approximate memory limit for plans.
    pub plan_cache_bytes: usize,
    /// Maximum number of files that are kept open.
    pub max_open_files: usize,
    /// The closure's registration, to be put at `.lazystore/registration`.
    pub registration: Option<Arc<[u8]>>,
    /// Protects the closure from garbage collection as long as the image exists.
    pub pins: Arc<Pins>,
    /// Exact ranges without gaps, for guests that map the whole disk. All paths are planned at the start; they must be on the
    /// host. Ignored for a tree.
    pub dense: bool,
    /// Source of paths that are not on the host. It changes the layout, which does not depend on which paths these are.
    pub remote: Option<Arc<RemoteTree>>,
}

impl Default for ImageOptions {
    fn default() -> Self {
        Self {
            label: DEFAULT_LABEL.to_owned(),
            // The UUID of nixpkgs' store disks (eb176051-bd15-49b7-9e6b-462e0b467019).
            uuid: 0xeb17_6051_bd15_49b7_9e6b_462e_0b46_7019_u128.to_be_bytes(),
            uid: None,
            gid: None,
            mtime_sec: None,
            plan_cache_bytes: 64 << 20,
            max_open_files: 1024,
            registration: None,
            pins: Arc::default(),
            dense: false,
            remote: None,
        }
    }
}

impl Image {
    /// Lays out the disk of `closure`. Store paths with a known NAR size are not opened.
    ///
    /// # Errors
    /// Paths are missing (the error lists all of them), a path without NAR size (of a dense disk: any path) cannot be planned,
    /// or the closure does not fit on a disk.
    pub fn new(closure: &Closure, options: &ImageOptions) -> Result<Self, ImageError> {
        let host = HostTree::open(&closure.dir, options.max_open_files)?;
        match &closure.contents {
            Contents::Tree => Ok(Self::of_tree(host.without_mounts(), options)),
            Contents::StorePaths(paths) => {
                let mut image = Self::of_paths(host.into(), closure, paths, options)?;
                image.fingerprint = Some(Fingerprint::new(&image, paths, options));
                Ok(image)
            }
        }
    }

    fn of_tree(host: HostTree, options: &ImageOptions) -> Self {
        let host = Arc::new(host);
        let attributes = options.attributes(attributes::Origin::Host);
        let parts = ImageParts {
            sources: vec![TreeSource::Host(Arc::clone(&host))],
            host,
            space: Space::whole(FileKind::Directory),
            // No identity: the tree is accessed through an open descriptor of its directory, which cannot be replaced.
            origins: vec![PathOrigin {
                source: HOST,
                identity: None,
                nar_size: None,
                nar_hash: None,
            }],
            plans: Plans::new(1, attributes, options.plan_cache_bytes),
            root: None,
        };
        Self::assemble(parts, options)
    }

    fn of_paths(
        host: Arc<HostTree>,
        closure: &Closure,
        paths: &[StorePath],
        options: &ImageOptions,
    ) -> Result<Self, ImageError> {
        let attributes = options.attributes(attributes::Origin::Nar);
        let mut sources = vec![TreeSource::Host(Arc::clone(&host))];
        let remote = options.remote.as_ref().map(|remote| {
            sources.push(TreeSource::Remote(Arc::clone(remote)));
            RemoteSource {
                tree: remote,
                source: sources.len() - 1,
            }
        });
        let mut found = examine(&sources[HOST], remote.as_ref(), closure, paths)?;
        if let Some(text) = &options.registration {
            let names = found.iter().map(|path| &*path.name);
            found.insert(builtin::position(names)?, DiskPath::builtin(sources.len()));
            sources.push(TreeSource::Memory(builtin::tree(text)));
        }
        let root = RootDir::new(
            found.iter().map(|path| (&*path.name, path.kind)),
            &attributes,
        );
        let mut sizing = Sizing::new(&sources, attributes, &found);
        let arenas = match options.dense {
            true => Arenas::Packed,
            false => Arenas::Fixed,
        };
        sizing.fit(root.blocks(), arenas)?;
        let Sizing {
            claims,
            origins,
            planned,
            ..
        } = sizing;
        let space = Space::assign(claims, root.blocks(), arenas)?;
        let plans = Plans::new(space.regions().len(), attributes, options.plan_cache_bytes);
        for (region, plan) in planned {
            plans.insert(region, plan);
        }
        let parts = ImageParts {
            host,
            sources,
            space,
            origins,
            plans,
            root: Some(root),
        };
        Ok(Self::assemble(parts, options))
    }

    fn assemble(parts: ImageParts, options: &ImageOptions) -> Self {
        let ImageParts {
            host,
            sources,
            space,
            origins,
            plans,
            root,
        } = parts;
        let attributes = options.attributes(attributes::Origin::Nar);
        let fields = SuperBlockFields {
            label: options.label.clone(),
            uuid: options.uuid,
            build_time_sec: attributes.build_time_sec(),
            ..SuperBlockFields::default()
        };
        Self {
            host,
            sources,
            volume: Volume::new(space, root, fields),
            origins,
            plans,
            recorder: OnceLock::new(),
            footprint: OnceLock::new(),
            pins: Arc::clone(&options.pins),
            remote: options.remote.clone(),
            fingerprint: None,
        }
    }
}

/// Index of the host among the sources.
const HOST: usize = 0;

/// The parts of an [`Image`].
struct ImageParts {
    host: Arc<HostTree>,
    sources: Vec<TreeSource>,
    space: Space,
    origins: Vec<PathOrigin>,
    plans: Plans,
    root: Option<RootDir>,
}

impl ImageOptions {
    pub(super) fn attributes(&self, origin: attributes::Origin) -> Attributes {
        Attributes {
            origin,
            uid: self.uid,
            gid: self.gid,
            mtime_sec: self.mtime_sec,
            is_remote: self.remote.is_some(),
            is_dense: self.dense,
        }
    }
}

/// Minimum number of paths to examine them with several threads.
const PARALLEL_FROM: usize = 512;

/// A path of the disk.
struct DiskPath {
    name: Box<[u8]>,
    /// `None` for all paths if some are remote: the layout must not depend on which ones are.
    kind: Option<FileKind>,
    origin: PathOrigin,
}

impl DiskPath {
    fn builtin(source: usize) -> Self {
        Self {
            name: builtin::DIR.as_bytes().into(),
            kind: Some(FileKind::Directory),
            origin: PathOrigin {
                source,
                identity: None,
                nar_size: None,
                nar_hash: None,
            },
        }
    }
}

/// The source of paths that are not on the host.
struct RemoteSource<'o> {
    tree: &'o RemoteTree,
    /// Its index among the sources.
    source: usize,
}

impl RemoteSource<'_> {
    fn found(&self, path: &StorePath) -> DiskPath {
        DiskPath {
            name: path.name.clone(),
            kind: None,
            origin: PathOrigin {
                source: self.source,
                identity: None,
                nar_size: path.nar_size,
                nar_hash: path.nar_hash,
            },
        }
    }
}

/// Examines every path's top node. All missing paths are reported in one error.
fn examine(
    host: &TreeSource,
    remote: Option<&RemoteSource<'_>>,
    closure: &Closure,
    paths: &[StorePath],
) -> Result<Vec<DiskPath>, ImageError> {
    let mut all = Vec::with_capacity(paths.len());
    let mut missing = Vec::new();
    for (path, top) in paths.iter().zip(tops_of(host, paths)) {
        match top {
            Ok((stat, identity)) => all.push(DiskPath {
                name: path.name.clone(),
                kind: remote.is_none().then_some(stat.kind),
                origin: PathOrigin {
                    source: HOST,
                    identity,
                    nar_size: path.nar_size,
                    nar_hash: path.nar_hash,
                },
            }),
            Err(error) if error.is_not_found() => {
                if let Some(remote) = remote.filter(|remote| remote.tree.has(&path.name)) {
                    all.push(remote.found(path));
                    continue;
                }
                let name = String::from_utf8_lossy(&path.name);
                missing.push(format!("{}/{name}", closure.store_dir.display()));
            }
            Err(error) => return Err(error.into()),
        }
    }
    if missing.is_empty() {
        Ok(all)
    } else {
        Err(ImageError::Missing { paths: missing })
    }
}

/// Attributes and identity of a path's top node.
type Top = Result<(Stat, Option<Identity>), SourceError>;

fn tops_of(host: &TreeSource, paths: &[StorePath]) -> Vec<Top> {
    let look = |path: &StorePath| host.stat(&path.name);
    if paths.len() < PARALLEL_FROM {
        return paths.iter().map(look).collect();
    }
    // One part per core: distributing single paths would cost more than examining them.
    let parts: Vec<&[StorePath]> = paths
        .chunks(paths.len().div_ceil(parallel::threads()))
        .collect();
    let look_at = |(): &mut (), part: usize| parts[part].iter().map(look).collect::<Vec<_>>();
    let tops = parallel::for_each(parts.len(), || (), look_at);
    tops.into_iter().flatten().collect()
}

/// The sizes of all paths, and the plans that were needed to determine them.
struct Sizing<'a> {
    sources: &'a [TreeSource],
    attributes: Attributes,
    claims: Vec<Claim>,
    origins: Vec<PathOrigin>,
    planned: Vec<(u32, Plan)>,
    unknown: Vec<usize>,
}

impl<'a> Sizing<'a> {
    fn new(sources: &'a [TreeSource], attributes: Attributes, found: &[DiskPath]) -> Self {
        let claim = |path: &DiskPath| Claim {
            name: path.name.clone(),
            kind: path.kind,
            size: Size::bound(
                path.origin.nar_size.unwrap_or(0),
                attributes.inlines_files(),
            ),
        };
        let unknown = (0..found.len()).filter(|&index| found[index].origin.nar_size.is_none());
        Self {
            sources,
            attributes,
            claims: found.iter().map(claim).collect(),
            origins: found.iter().map(|path| path.origin).collect(),
            planned: Vec::new(),
            unknown: unknown.collect(),
        }
    }

    /// Plans all paths of a dense disk; otherwise those without NAR size, and then as many others as necessary so that all fit.
    fn fit(&mut self, root_blocks: u32, arenas: Arenas) -> Result<(), ImageError> {
        if arenas == Arenas::Packed {
            let all: Vec<usize> = (0..self.claims.len()).collect();
            return self.plan(&all);
        }
        let mut next = std::mem::take(&mut self.unknown);
        while !next.is_empty() {
            self.plan(&next)?;
            next = space::to_plan_exactly(&self.claims, root_blocks)?;
        }
        // Check once more, also for the case that all NAR sizes are known and nothing was planned yet.
        let next = space::to_plan_exactly(&self.claims, root_blocks)?;
        if next.is_empty() {
            return Ok(());
        }
        self.unknown = next;
        self.fit(root_blocks, arenas)
    }

    /// Plans several paths on all cores.
    fn plan(&mut self, indexes: &[usize]) -> Result<(), ImageError> {
        let plan = |(): &mut (), at: usize| {
            let PathOrigin {
                source,
                identity,
                nar_size,
                ..
            } = self.origins[indexes[at]];
            let tree = PathTree {
                source: &self.sources[source],
                name: &self.claims[indexes[at]].name,
                identity,
            };
            walk::plan_whole(&tree, self.attributes, nar_size)
        };
        let planned = parallel::for_each(indexes.len(), || (), plan);
        for (index, plan) in indexes.iter().zip(planned) {
            let plan = plan?;
            self.claims[*index].size = exact_size(&plan);
            let region = u32::try_from(*index).map_err(|_| TooBig)?;
            self.planned.push((region, plan));
        }
        Ok(())
    }
}

fn exact_size(plan: &Plan) -> Size {
    Size {
        meta_blocks: u64::from(plan.meta_blocks()),
        data_blocks: u64::from(plan.data_blocks()),
        exact: true,
    }
}
