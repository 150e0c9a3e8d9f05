//! From a closure to a disk.

use std::sync::{Arc, OnceLock};

use super::plans::Plans;
use super::{Fingerprint, Image, ImageError, Origin, builtin, walk};
use crate::closure::{Closure, Contents, Pins, StorePath};
use crate::erofs::encode::SuperBlockFields;
use crate::erofs::layout::attributes::{self, Attributes};
use crate::erofs::layout::bounds::Size;
use crate::erofs::layout::plan::Plan;
use crate::erofs::layout::space::{self, Claim, Space, TooBig};
use crate::erofs::volume::{RootDir, Volume};
use crate::parallel;
use crate::source::{HostTree, Identity, PathTree, RemoteTree, SourceError, TreeSource};
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
    /// What holds the closure against garbage collection as long as there is the disk.
    pub pins: Arc<Pins>,
    /// Has the paths that are not on the host. With it the layout is another one, and does not depend on which those are.
    pub remote: Option<Arc<RemoteTree>>,
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
            pins: Arc::default(),
            remote: None,
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
        let parts = Parts {
            sources: vec![TreeSource::Host(Arc::clone(&host))],
            host,
            space: Space::whole(FileKind::Directory),
            // All of it is opened below a descriptor of the directory itself.
            origins: vec![Origin {
                source: HOST,
                identity: None,
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
            Remote {
                tree: remote,
                source: sources.len() - 1,
            }
        });
        let mut found = examine(&sources[HOST], remote.as_ref(), closure, paths)?;
        if let Some(text) = &options.registration {
            let names = found.iter().map(|path| &*path.name);
            found.insert(builtin::position(names)?, Found::builtin(sources.len()));
            sources.push(TreeSource::Memory(builtin::tree(text)));
        }
        let root = RootDir::new(
            found.iter().map(|path| (&*path.name, path.kind)),
            &attributes,
        );
        let mut sizing = Sizing::new(&sources, attributes, &found);
        sizing.fit(root.blocks())?;
        let Sizing {
            claims,
            origins,
            planned,
            ..
        } = sizing;
        let space = Space::assign(claims, root.blocks())?;
        let plans = Plans::new(space.regions().len(), attributes, options.plan_cache_bytes);
        for (region, plan) in planned {
            plans.insert(region, plan);
        }
        let parts = Parts {
            host,
            sources,
            space,
            origins,
            plans,
            root: Some(root),
        };
        Ok(Self::assemble(parts, options))
    }

    fn assemble(parts: Parts, options: &ImageOptions) -> Self {
        let Parts {
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

/// All that a disk consists of.
struct Parts {
    host: Arc<HostTree>,
    sources: Vec<TreeSource>,
    space: Space,
    origins: Vec<Origin>,
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
        }
    }
}

/// From so many paths on, looking at them is worth threads.
const PARALLEL_FROM: usize = 4096;

/// A path that is to be on the disk.
struct Found {
    name: Box<[u8]>,
    /// None on a disk of which some paths are not on this host: it must not depend on which.
    kind: Option<FileKind>,
    nar_size: Option<u64>,
    origin: Origin,
}

impl Found {
    fn builtin(source: usize) -> Self {
        Self {
            name: builtin::DIR.as_bytes().into(),
            kind: Some(FileKind::Directory),
            nar_size: None,
            origin: Origin {
                source,
                identity: None,
            },
        }
    }
}

/// A source for what is not on the host.
struct Remote<'o> {
    tree: &'o RemoteTree,
    /// Its index among the sources.
    source: usize,
}

impl Remote<'_> {
    fn found(&self, path: &StorePath) -> Found {
        Found {
            name: path.name.clone(),
            kind: None,
            nar_size: path.nar_size,
            origin: Origin {
                source: self.source,
                identity: None,
            },
        }
    }
}

/// Looks at every path's top node. All that are missing are named in one error.
fn examine(
    host: &TreeSource,
    remote: Option<&Remote<'_>>,
    closure: &Closure,
    paths: &[StorePath],
) -> Result<Vec<Found>, ImageError> {
    let mut all = Vec::with_capacity(paths.len());
    let mut missing = Vec::new();
    for (path, top) in paths.iter().zip(tops_of(host, paths)) {
        match top {
            Ok((stat, identity)) => all.push(Found {
                name: path.name.clone(),
                kind: remote.is_none().then_some(stat.kind),
                nar_size: path.nar_size,
                origin: Origin {
                    source: HOST,
                    identity,
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

/// What is known of a path's top node.
type Top = Result<(Stat, Option<Identity>), SourceError>;

fn tops_of(host: &TreeSource, paths: &[StorePath]) -> Vec<Top> {
    let look = |path: &StorePath| host.stat(&path.name);
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
    sources: &'a [TreeSource],
    attributes: Attributes,
    claims: Vec<Claim>,
    origins: Vec<Origin>,
    planned: Vec<(u32, Plan)>,
    unknown: Vec<usize>,
}

impl<'a> Sizing<'a> {
    fn new(sources: &'a [TreeSource], attributes: Attributes, found: &[Found]) -> Self {
        let claim = |path: &Found| Claim {
            name: path.name.clone(),
            kind: path.kind,
            size: Size::bound(path.nar_size.unwrap_or(0), attributes.inlines_files()),
        };
        let unknown = (0..found.len()).filter(|&index| found[index].nar_size.is_none());
        Self {
            sources,
            attributes,
            claims: found.iter().map(claim).collect(),
            origins: found.iter().map(|path| path.origin).collect(),
            planned: Vec::new(),
            unknown: unknown.collect(),
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

    /// Plans several paths, on all cores.
    fn plan(&mut self, indexes: &[usize]) -> Result<(), ImageError> {
        let plan = |(): &mut (), at: usize| {
            let Origin { source, identity } = self.origins[indexes[at]];
            let tree = PathTree {
                source: &self.sources[source],
                name: &self.claims[indexes[at]].name,
                identity,
            };
            walk::plan_whole(&tree, self.attributes)
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
