//! Proof that a disk shows what the host has.
//!
//! The disk is read by erofs-rs, which this project did not write, and the host without [`source`](crate::source):
//! names, types, modes, owners, times, sizes, targets and every byte are compared, and the NAR hash of what the
//! *disk* shows is compared with the registered one. All of it is one pass over the data, on all cores.
//!
//! | module | what it does |
//! |---|---|
//! | [`report`] | differences, and what was compared |
//! | `disk` | the disk as erofs-rs wants it |
//! | `host` | the host's directories, by descriptor |
//! | `expect` | what the disk should say of a host file |
//! | `nar` | a NAR's hash, from a walk |
//! | `path` | one store path: disk and host side by side |
//! | `builtin` | what the disk carries besides |

mod builtin;
mod disk;
mod expect;
mod host;
mod nar;
mod path;
pub mod report;

use std::collections::{BTreeMap, HashSet};
use std::num::NonZeroUsize;
use std::path::PathBuf;

use erofs_rs::types::Inode;

use crate::closure::{Closure, Contents};
use crate::image::{BUILTIN_DIR, Image, ImageOptions};
use crate::parallel;

pub use report::{Difference, PathReport, Report, Side, Tally};

use builtin::check_builtin;
use disk::Reader;
use expect::Expect;
use host::HostDir;
use path::{Subject, Task, check_path, check_root};

/// What to verify.
#[derive(Debug, Clone, Copy)]
pub struct VerifyOptions {
    /// Compute NAR hashes where they are registered.
    pub hash: bool,
    /// This many paths only, evenly chosen, always the same ones.
    pub sample: Option<NonZeroUsize>,
    /// How many differences of one path are kept; the rest is counted.
    pub differences_per_path: usize,
}

impl Default for VerifyOptions {
    fn default() -> Self {
        Self {
            hash: true,
            sample: None,
            differences_per_path: 10,
        }
    }
}

/// Why nothing can be verified.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The independent reader does not take the disk.
    #[error("the disk has no readable root directory: {0}")]
    Disk(#[source] erofs_rs::Error),
    /// The host's directory cannot be read.
    #[error("{}: cannot be read to compare the disk with: {error}", path.display())]
    Host {
        /// Where.
        path: PathBuf,
        /// Why.
        error: rustix::io::Errno,
    },
}

/// Compares the disk `image` with the host's `closure`, path by path. `image_options` are those that the disk was
/// made with. `progress` is told of every few bytes of file contents that have been compared.
///
/// # Errors
/// When the root of either cannot be read. All else that is wrong is in the report.
pub fn verify(
    image: &Image,
    closure: &Closure,
    image_options: &ImageOptions,
    options: &VerifyOptions,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Report, VerifyError> {
    let host_error = |error| VerifyError::Host {
        path: closure.dir.clone(),
        error,
    };
    let host = HostDir::open(&closure.dir).map_err(host_error)?;
    let names = host.names().map_err(host_error)?;
    let expect = Expect::new(&closure.contents, image_options);
    let reader = Reader::open(image).map_err(VerifyError::Disk)?;
    let on_host: HashSet<Vec<u8>> = names.iter().cloned().collect();
    let mut subjects = subjects(&closure.contents, names);
    if let Some(remote) = image.remote() {
        for subject in subjects.values_mut() {
            subject.is_remote = !on_host.contains(&subject.name) && remote.has(&subject.name);
        }
    }
    let inodes = reader.root_entries(subjects.len());
    add_inodes(&mut subjects, inodes.map_err(VerifyError::Disk)?);
    let builtin = image_options.registration.as_deref().map(|text| {
        let subject = subjects.remove(BUILTIN_DIR.as_bytes());
        check_builtin(&reader, &expect, subject.and_then(|s| s.inode), text)
    });
    let root = check_root(&reader, &host, &expect, options);
    let mut subjects: Vec<Subject> = subjects.into_values().collect();
    if let Some(sample) = options.sample {
        subjects = evenly(subjects, sample);
    }
    subjects.sort_by_key(|subject| std::cmp::Reverse(subject.nar_size));
    let paths = parallel::for_each(
        subjects.len(),
        || Reader::open(image),
        |reader, index| match reader {
            Ok(reader) => {
                let task = Task {
                    reader,
                    expect: &expect,
                    options,
                    progress,
                };
                check_path(&task, &host, &subjects[index])
            }
            Err(error) => PathReport::unreadable(&subjects[index].name, error),
        },
    );
    Ok(Report::new(paths, [root].into_iter().chain(builtin)))
}

/// What should be on the disk.
fn subjects(contents: &Contents, host_names: Vec<Vec<u8>>) -> BTreeMap<Vec<u8>, Subject> {
    let listed = match contents {
        Contents::Tree => host_names.into_iter().map(Subject::unregistered).collect(),
        Contents::StorePaths(paths) => paths.iter().map(Subject::registered).collect::<Vec<_>>(),
    };
    listed
        .into_iter()
        .map(|subject| (subject.name.clone(), subject))
        .collect()
}

/// What is on the disk, expected or not.
fn add_inodes(subjects: &mut BTreeMap<Vec<u8>, Subject>, inodes: Vec<(Vec<u8>, Inode)>) {
    for (name, inode) in inodes {
        let subject = subjects
            .entry(name)
            .or_insert_with_key(|name| Subject::unexpected(name.clone()));
        subject.inode = Some(inode);
    }
}

/// `count` of `all`, from the first on at equal distances.
fn evenly<T>(all: Vec<T>, count: NonZeroUsize) -> Vec<T> {
    let (len, count) = (all.len(), count.get().min(all.len()));
    // Number i is taken when a multiple of the distance falls on it.
    let taken = |i: usize| (i * count) / len != ((i + 1) * count) / len;
    all.into_iter()
        .enumerate()
        .filter_map(|(i, subject)| taken(i).then_some(subject))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_even_and_as_large_as_asked_for() {
        for (len, count) in [(10, 3), (10, 10), (3, 10), (1000, 7), (1, 1)] {
            let sample = evenly((0..len).collect(), NonZeroUsize::new(count).unwrap());
            assert_eq!(sample.len(), count.min(len));
            let gaps = sample.windows(2).map(|pair| pair[1] - pair[0]);
            let most = len.div_ceil(count.min(len));
            assert!(gaps.max().unwrap_or(0) <= most, "{sample:?}");
        }
    }
}
