//! Arguments of all subcommands that work on a closure.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use clap::Args;

use super::cache_args::CacheArgs;
use super::errors::{CacheError, CliError};
use super::numbers::whole;
use super::{limits, pins};
use crate::cache::FetcherProcess;
use crate::closure::{Closure, Graph, Pins, Source, StoreLocation};
use crate::erofs::format::LABEL_LEN_MAX;
use crate::image::{Fingerprint, Image, ImageOptions};

/// The closure, and options of its disk.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Closure")]
pub struct ClosureArgs {
    #[command(flatten)]
    source: SourceArgs,
    /// NAR sizes of the paths in --store-paths: closureInfo's registration, or `nix-store --dump-db`
    #[arg(long, value_name = "FILE", requires = "store_paths", conflicts_with_all = ["tree", "closure_info", "roots", "all"])]
    registration: Option<PathBuf>,
    /// The logical store directory, which store paths start with
    #[arg(
        long,
        value_name = "DIR",
        default_value = "/nix/store",
        conflicts_with = "tree"
    )]
    store_dir: PathBuf,
    /// Root directory of a chroot store: paths are read from DIR/nix/store
    #[arg(long, value_name = "DIR", conflicts_with = "tree")]
    store_root: Option<PathBuf>,
    /// Put the closure's registration on the disk, as .lazystore/registration, for `nix-store --load-db` in the guest
    #[arg(long, conflicts_with = "tree")]
    with_registration: bool,
    /// Fail unless the disk has this fingerprint, as printed by `lazystore fingerprint`
    #[arg(long, value_name = "FINGERPRINT", value_parser = Fingerprint::from_str, requires = "SourceArgs", conflicts_with = "tree")]
    expect: Option<Fingerprint>,
    #[command(flatten)]
    cache: CacheArgs,
    #[command(flatten)]
    image: ImageArgs,
}

#[derive(Debug, Clone, Args)]
#[group(required = true, multiple = false)]
struct SourceArgs {
    /// Store paths, or links to them such as ./result and profiles. The closure is looked up in the Nix database
    #[arg(value_name = "ROOT")]
    roots: Vec<PathBuf>,
    /// Every valid path of the store
    #[arg(long)]
    all: bool,
    /// Output of Nix's closureInfo: DIR/store-paths and DIR/registration
    #[arg(long, value_name = "DIR")]
    closure_info: Option<PathBuf>,
    /// List of store paths, one per line; `-` is stdin
    #[arg(long, value_name = "FILE")]
    store_paths: Option<PathBuf>,
    /// Any directory as the root of the disk, with its modes, owners and mtimes
    #[arg(long, value_name = "DIR")]
    tree: Option<PathBuf>,
}

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Disk")]
struct ImageArgs {
    /// File system label, 1 to 15 bytes
    #[arg(long, default_value = "nix-store", value_parser = parse_label)]
    label: String,
    /// File system UUID
    #[arg(long, default_value = "eb176051-bd15-49b7-9e6b-462e0b467019", value_parser = parse_uuid)]
    uuid: [u8; 16],
    /// mtime of every file in seconds [default: 1; with --tree: the file's own]
    #[arg(long, value_name = "SECONDS", value_parser = whole::<u64>(0..=u64::MAX))]
    mtime: Option<u64>,
    /// Owner of every file [default: 0; with --tree: the file's own]
    #[arg(long, value_name = "ID", value_parser = whole::<u32>(0..=u32::MAX.into()))]
    uid: Option<u32>,
    /// Group of every file [default: 0; with --tree: the file's own]
    #[arg(long, value_name = "ID", value_parser = whole::<u32>(0..=u32::MAX.into()))]
    gid: Option<u32>,
    /// Make the disk as small as the closure, so that a guest can map all of it (virtio-pmem, DAX). Looks at all files at the
    /// start, and fails if a path differs from its registered NAR size
    #[arg(long, conflicts_with_all = ["tree", "from"])]
    dense: bool,
    /// Memory for the layouts of store paths, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 64, value_parser = whole::<usize>(0..=1 << 20))]
    plan_cache: usize,
}

/// A closure whose paths are known.
#[derive(Debug)]
pub struct LocatedClosure {
    graph: Graph,
    location: StoreLocation,
    options: ImageOptions,
    expected: Option<Fingerprint>,
    fetcher: Option<FetcherProcess>,
}

/// A loaded closure and its disk.
#[derive(Debug)]
pub struct Loaded {
    /// The paths.
    pub closure: Closure,
    /// The options that the disk was built with.
    pub options: ImageOptions,
    /// The disk.
    pub image: Image,
    /// The fetcher process. It must live as long as the disk is read.
    pub fetcher: Option<FetcherProcess>,
}

impl ClosureArgs {
    /// The same options for another closure: the output of closureInfo, or a store path. No fingerprint is expected of
    /// it.
    pub fn with_closure(&self, closure: &Path) -> Self {
        let is_info = closure.join("store-paths").is_file();
        let closure = closure.to_owned();
        Self {
            source: SourceArgs {
                roots: if is_info {
                    Vec::new()
                } else {
                    vec![closure.clone()]
                },
                closure_info: is_info.then_some(closure),
                all: false,
                store_paths: None,
                tree: None,
            },
            registration: None,
            expect: None,
            ..self.clone()
        }
    }

    /// Like [`ClosureArgs::load`], for subcommands that read the disk in this process.
    ///
    /// # Errors
    /// As for [`ClosureArgs::load`].
    pub fn load_to_read(&self, max_open_files: usize) -> Result<Loaded, CliError> {
        let loaded = self.load(max_open_files, false)?;
        if let Some(remote) = loaded.image.remote() {
            let connection = remote.connect();
            remote.attach(connection.map_err(|error| CacheError::Start(error.into()))?);
        }
        Ok(loaded)
    }

    /// Returns whether a closure is given.
    pub fn is_given(&self) -> bool {
        let SourceArgs {
            roots,
            all,
            closure_info,
            store_paths,
            tree,
        } = &self.source;
        let option = closure_info.is_some() || store_paths.is_some() || tree.is_some();
        !roots.is_empty() || *all || option
    }

    /// Returns whether the disk is dense.
    pub fn is_dense(&self) -> bool {
        self.image.dense
    }

    /// Loads the closure and lays out its disk. At most `max_open_files` of the store's files are kept open, or fewer
    /// if the process's limits require it. With `shows_progress`, fetches are shown on the terminal.
    ///
    /// # Errors
    /// The closure cannot be loaded, or its disk cannot be laid out.
    pub fn load(&self, max_open_files: usize, shows_progress: bool) -> Result<Loaded, CliError> {
        let found = self.find(max_open_files, shows_progress)?;
        let pins = LocatedClosure::hold(&[&found]);
        found.lay_out(&pins)
    }

    /// Finds the paths of the closure.
    ///
    /// # Errors
    /// The closure cannot be loaded.
    pub fn find(
        &self,
        max_open_files: usize,
        shows_progress: bool,
    ) -> Result<LocatedClosure, CliError> {
        let mut options = self.image.options();
        options.max_open_files = options.max_open_files.min(max_open_files);
        let location = StoreLocation {
            store_dir: self.store_dir.clone(),
            store_root: self.store_root.clone(),
        };
        let max_nars = options.max_open_files / 2;
        let remote = self
            .cache
            .load(&self.source(), &location, max_nars, shows_progress)?;
        let (graph, fetcher) = match remote {
            Some(remote) => remote.attach_to(&mut options),
            None => (Graph::load(&self.source(), &location)?, None),
        };
        if self.with_registration {
            options.registration = Some(graph.registration()?.into());
        }
        Ok(LocatedClosure {
            graph,
            location,
            options,
            expected: self.expect.clone(),
            fetcher,
        })
    }

    fn source(&self) -> Source {
        match &self.source {
            SourceArgs {
                closure_info: Some(dir),
                ..
            } => Source::ClosureInfo(dir.clone()),
            SourceArgs {
                tree: Some(dir), ..
            } => Source::Tree(dir.clone()),
            SourceArgs {
                store_paths: Some(list),
                ..
            } => Source::StorePaths {
                list: list.clone(),
                registration: self.registration.clone(),
            },
            SourceArgs { all: true, .. } => Source::All,
            SourceArgs { roots, .. } => Source::Roots(roots.clone()),
        }
    }
}

impl LocatedClosure {
    /// Protects closures, all of the same store, from garbage collection. To be called before
    /// [`lay_out`](Self::lay_out) checks that their paths exist, so that they cannot disappear in between.
    pub fn hold(all: &[&Self]) -> Arc<Pins> {
        let Some(first) = all.first() else {
            return Arc::default();
        };
        let graphs: Vec<_> = all.iter().map(|found| &found.graph).collect();
        let max = first.options.max_open_files / 2;
        pins::hold(&graphs, &first.location, max).into()
    }

    /// Lays out the disk of the closure, which `pins` protect.
    ///
    /// # Errors
    /// Paths are missing, the closure does not fit on a disk, or another disk was expected.
    pub fn lay_out(mut self, pins: &Arc<Pins>) -> Result<Loaded, CliError> {
        self.options.max_open_files -= pins.open_files();
        self.options.pins = Arc::clone(pins);
        let image = Image::new(&self.graph.closure, &self.options)?;
        self.check_expected(&image)?;
        Ok(Loaded {
            closure: self.graph.closure,
            options: self.options,
            image,
            fetcher: self.fetcher,
        })
    }

    fn check_expected(&self, image: &Image) -> Result<(), CliError> {
        match (&self.expected, image.fingerprint()) {
            (Some(expected), Some(found)) if expected != found => Err(CliError::OtherDisk {
                expected: expected.clone(),
                found: found.clone(),
            }),
            _ => Ok(()),
        }
    }
}

impl ImageArgs {
    fn options(&self) -> ImageOptions {
        ImageOptions {
            label: self.label.clone(),
            uuid: self.uuid,
            uid: self.uid,
            gid: self.gid,
            mtime_sec: self.mtime,
            dense: self.dense,
            plan_cache_bytes: self.plan_cache.saturating_mul(1 << 20),
            max_open_files: limits::raise_open_files(),
            ..ImageOptions::default()
        }
    }
}

fn parse_label(text: &str) -> Result<String, String> {
    match text.len() {
        1..=LABEL_LEN_MAX => Ok(text.to_owned()),
        0 => Err("it must not be empty, because the guest mounts the disk by its label".to_owned()),
        len => Err(format!(
            "it has {len} bytes, but EROFS allows at most {LABEL_LEN_MAX}"
        )),
    }
}

fn parse_uuid(text: &str) -> Result<[u8; 16], String> {
    let digits: String = text.split('-').collect();
    let lens: Vec<usize> = text.split('-').map(str::len).collect();
    let hex = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    match u128::from_str_radix(&digits, 16) {
        Ok(uuid) if hex && lens == [8, 4, 4, 4, 12] => Ok(uuid.to_be_bytes()),
        _ => Err("a UUID looks like eb176051-bd15-49b7-9e6b-462e0b467019".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_uuid_is_the_image_default() {
        let parsed = parse_uuid("eb176051-bd15-49b7-9e6b-462e0b467019").unwrap();
        assert_eq!(parsed, ImageOptions::default().uuid);
    }

    #[test]
    fn a_uuid_is_five_groups_of_hex_digits() {
        for wrong in [
            "",
            "eb176051",
            "+b176051-bd15-49b7-9e6b-462e0b467019",
            "eb176051-bd1549b7-9e6b-462e-0b467019",
        ] {
            assert!(parse_uuid(wrong).is_err(), "{wrong}");
        }
    }
}
