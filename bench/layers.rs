//! Measures the cost of each layer without a guest: `cargo bench --bench layers`.
//!
//! All files are in a temporary directory and in the page cache.
#![allow(clippy::unwrap_used, missing_docs)]

use std::fs;
use std::path::Path;
use std::sync::Arc;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use lazystore::closure::{Closure, Contents, StorePath};
use lazystore::device::vhost_blk::execute::BlkDisk;
use lazystore::device::vhost_blk::guest::{Memory, View};
use lazystore::device::vhost_blk::request::parse;
use lazystore::erofs::layout::attributes::{Attributes, Origin};
use lazystore::erofs::layout::bounds::Limits;
use lazystore::erofs::layout::plan::Plan;
use lazystore::erofs::layout::planner::Planner;
use lazystore::image::{Image, ImageOptions};
use lazystore::tree::{FileKind, Listing, Stat};
use tempfile::TempDir;
use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::mock::MockSplitQueue;
use vm_memory::{Bytes, GuestAddress};

const BLOCK: u64 = 4096;

/// A store path called `0` with `files` files of one block, 1,000 to a directory.
fn tree(files: usize) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for index in 0..files {
        let parent = dir.path().join("0").join(format!("{}", index / 1000));
        if index % 1000 == 0 {
            fs::create_dir_all(&parent).unwrap();
        }
        // The files are holes, because planning uses only their sizes.
        let file = fs::File::create(parent.join(format!("{index}"))).unwrap();
        file.set_len(BLOCK).unwrap();
    }
    dir
}

fn image(dir: &Path, paths: Vec<StorePath>) -> Image {
    let closure = Closure {
        dir: dir.to_owned(),
        store_dir: "/nix/store".into(),
        contents: Contents::StorePaths(paths),
    };
    Image::new(&closure, &ImageOptions::default()).unwrap()
}

fn path(name: String, nar_size: u64) -> StorePath {
    StorePath {
        name: name.into_bytes().into(),
        nar_size: Some(nar_size),
        nar_hash: None,
    }
}

/// Length of the NAR of an empty directory; an entry of one adds 96 if its name has up to 8 bytes.
const EMPTY_NAR: u64 = 96;

/// The disk of [`tree`].
fn one(dir: &TempDir, files: usize) -> Image {
    let files = files as u64;
    let nar_size = EMPTY_NAR + files.div_ceil(1000) * (96 + 72) + files * (96 + 88 + BLOCK);
    image(dir.path(), vec![path("0".into(), nar_size)])
}

fn planning(criterion: &mut Criterion) {
    let files = 10_000;
    let dir = tree(files);
    let mut group = criterion.benchmark_group("planning");
    group.sample_size(10);
    group.throughput(Throughput::Elements(files as u64));
    group.bench_function("per inode", |bencher| {
        bencher.iter_with_setup(
            || one(&dir, files),
            |image| image.file_ranges(&mut |_, _| {}),
        );
    });
    group.finish();
}

/// The plan of a path with so many files of one block, 1,000 to a directory, without the files.
fn plan(files: usize) -> Plan {
    let attributes = Attributes::new(Origin::Nar);
    let dir = Stat::of_kind(FileKind::Directory);
    let file = Stat {
        size_bytes: BLOCK,
        ..Stat::of_kind(FileKind::Regular)
    };
    let listing = |count: usize, stat: &Stat| {
        let mut listing = Listing::default();
        (0..count).for_each(|index| listing.push(format!("{index:05}").as_bytes(), *stat, b""));
        listing
    };
    let limits = Limits::NONE;
    let mut planner = Planner::new(b"0", attributes, limits, &dir, b"").unwrap();
    planner.push(&listing(files / 1000, &dir)).unwrap();
    let files = listing(1000, &file);
    while planner.next_dir().is_some() {
        planner.push(&files).unwrap();
    }
    planner.into_plan()
}

/// Looks up the node of a block in one plan, without reading. 10 million files take half a gigabyte of memory here.
fn extent(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("extent");
    for extents in [1_000, 100_000, 10_000_000] {
        let plan = plan(extents);
        let blocks = plan.data_blocks();
        // A stride that visits all blocks in an order that defeats the CPU's caches and prefetchers.
        let stride = blocks / 13 * 8 + 1;
        let mut block = 0;
        group.bench_function(BenchmarkId::new("extents", extents), |bencher| {
            bencher.iter(|| {
                block = (block + stride) % blocks;
                plan.data_position(block)
            });
        });
    }
    group.finish();
}

/// Reading one block of a planned path: the extent's lookup, and one `pread` that is the same for all sizes.
fn lookup(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("lookup");
    for extents in [1_000, 100_000] {
        let dir = tree(extents);
        let image = one(&dir, extents);
        let mut start = 0;
        image.file_ranges(&mut |at, _| start = at).unwrap();
        let mut buf = [0; 4096];
        group.bench_function(BenchmarkId::new("extents", extents), |bencher| {
            let at = start + extents as u64 / 2 * BLOCK;
            bencher.iter(|| image.read_exact_at(&mut buf, at));
        });
    }
    group.finish();
}

fn metadata(criterion: &mut Criterion) {
    let dir = tree(10_000);
    let image = one(&dir, 10_000);
    image.file_ranges(&mut |_, _| {}).unwrap();
    let start = u64::from(image.space().region(0).meta.start);
    let mut buf = [0; 4096];
    criterion.bench_function("render a metadata block", |bencher| {
        bencher.iter(|| image.read_exact_at(&mut buf, (start + 20) * BLOCK));
    });
}

fn start(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("superblock and root directory");
    group.sample_size(10);
    for paths in [1_000, 100_000] {
        let dir = tempfile::tempdir().unwrap();
        let mut all = Vec::new();
        for index in 0..paths {
            fs::create_dir(dir.path().join(format!("{index:06}"))).unwrap();
            all.push(path(format!("{index:06}"), EMPTY_NAR));
        }
        group.throughput(Throughput::Elements(paths));
        let mut buf = [0; 8192];
        group.bench_function(BenchmarkId::new("paths", paths), |bencher| {
            bencher.iter(|| image(dir.path(), all.clone()).read_exact_at(&mut buf, 0));
        });
    }
    group.finish();
}

fn request(criterion: &mut Criterion) {
    let dir = tree(1_000);
    let image = Arc::new(one(&dir, 1_000));
    let mut data = 0;
    image.file_ranges(&mut |at, _| data = at).unwrap();
    let disk_len = image.len_bytes();
    let disk = BlkDisk {
        image,
        serial: [0; 20],
        log: Arc::default(),
    };
    let memory = Memory::from_ranges(&[(GuestAddress(0), 0x20000)]).unwrap();
    let view = View::new(&memory);
    let queue = MockSplitQueue::new(&memory, 16);
    let parts = [(0x8000, 16, 1), (0x10000, 4096, 3), (0x9000, 1, 2)];
    let chain: Vec<RawDescriptor> = (1..)
        .zip(parts)
        .map(|(next, (address, len, flags))| Descriptor::new(address, len, flags, next).into())
        .collect();
    memory.write_obj(0u64, GuestAddress(0x8000)).unwrap();
    memory.write_obj(data / 512, GuestAddress(0x8008)).unwrap();
    let chain = queue.build_desc_chain(&chain).unwrap();
    criterion.bench_function("4 KiB request, parse to finish", |bencher| {
        bencher.iter(|| disk.try_execute(&|| true, &parse(chain.clone(), disk_len), &view));
    });
}

criterion_group!(layers, planning, extent, lookup, metadata, start, request);
criterion_main!(layers);
