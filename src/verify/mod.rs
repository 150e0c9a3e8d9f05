//! Verifies that a disk has the same contents as the host.
//!
//! To be independent of the code under test, the disk is read with erofs-rs, and the host without
//! [`source`](crate::source). Names, types, modes, owners, times, sizes, targets and every byte are compared, and the
//! NAR hash computed from the *disk* is compared with the registered one. All of it takes one pass over the data, on
//! all cores.
//!
//! | module | what it does |
//! |---|---|
//! | [`report`] | the result: differences, and counts of what was compared |
//! | `disk` | reads the disk with erofs-rs |
//! | `host` | reads the host's directories |
//! | `expect` | computes the attributes that the disk should have for a host file |
//! | `nar` | computes a NAR's hash during a walk |
//! | `path` | compares one store path on disk and host |
//! | `builtin` | verifies `.lazystore`, which has no counterpart on the host |

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
    /// Compute NAR hashes and compare them with the registered ones.
    pub hash: bool,
    /// Verify only this many paths, evenly spaced and deterministic.
    pub sample: Option<NonZeroUsize>,
    /// Maximum number of differences to report per path; further ones are only counted.
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

/// Why verification cannot start.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// erofs-rs rejects the disk.
    #[error("the disk has no readable root directory: {0}")]
    Disk(#[source] erofs_rs::Error),
    /// The host's directory cannot be read.
    #[error("cannot read {} to compare it with the disk: {error}", path.display())]
    Host {
        /// Its path.
        path: PathBuf,
        /// The kernel's error.
        error: rustix::io::Errno,
    },
}

/// Compares the disk `image` with the host's `closure`, path by path. `image_options` are the options that the disk was
/// built with. `progress` is called with the number of bytes of file contents compared since the last call.
///
/// # Errors
/// The root of the disk or of the host cannot be read. All other faults are in the report.
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

/// Returns the expected entries of the disk's root directory, by name.
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

/// Adds the actual entries of the disk's root directory, expected or not.
fn add_inodes(subjects: &mut BTreeMap<Vec<u8>, Subject>, inodes: Vec<(Vec<u8>, Inode)>) {
    for (name, inode) in inodes {
        let subject = subjects
            .entry(name)
            .or_insert_with_key(|name| Subject::unexpected(name.clone()));
        subject.inode = Some(inode);
    }
}

/// Selects `count` evenly spaced elements of `all`.
fn evenly<T>(all: Vec<T>, count: NonZeroUsize) -> Vec<T> {
    let (len, count) = (all.len(), count.get().min(all.len()));
    // Selects i when i * count / len reaches the next integer.
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
    fn a_sample_is_even_and_has_the_requested_size() {
        for (len, count) in [(10, 3), (10, 10), (3, 10), (1000, 7), (1, 1)] {
            let sample = evenly((0..len).collect(), NonZeroUsize::new(count).unwrap());
            assert_eq!(sample.len(), count.min(len));
            let gaps = sample.windows(2).map(|pair| pair[1] - pair[0]);
            let most = len.div_ceil(count.min(len));
            assert!(gaps.max().unwrap_or(0) <= most, "{sample:?}");
        }
    }
}
