//! Compares one store path: walks the disk and lists the host's directories in parallel.

use std::iter::Peekable;
use std::vec::IntoIter;

use erofs_rs::types::Inode;
use rustix::fs::{FileType, Stat};
use rustix::io::Errno;

use super::VerifyOptions;
use super::disk::{self, Reader, WINDOW_LEN};
use super::expect::{Expect, attribute};
use super::host::{HostDir, OpenFile};
use super::nar::NarHasher;
use super::report::{Attribute, Difference, PathReport, Side};
use crate::closure::StorePath;

/// An entry of the root directory: expected, found on the disk, or both.
pub(super) struct Subject {
    pub(super) name: Vec<u8>,
    pub(super) nar_size: Option<u64>,
    nar_hash: Option<[u8; 32]>,
    /// It should be on the disk.
    expected: bool,
    /// It is not on the host, so only its NAR hash can be verified.
    pub(super) is_remote: bool,
    /// Its inode, if it is on the disk.
    pub(super) inode: Option<Inode>,
}

impl Subject {
    /// Returns the host directory to compare it with; `None` for a remote path.
    fn host<'h>(&self, host: &'h HostDir) -> Option<&'h HostDir> {
        (!self.is_remote).then_some(host)
    }

    pub(super) fn unregistered(name: Vec<u8>) -> Self {
        Self {
            expected: true,
            ..Self::unexpected(name)
        }
    }

    pub(super) fn registered(path: &StorePath) -> Self {
        Self {
            nar_size: path.nar_size,
            nar_hash: path.nar_hash,
            ..Self::unregistered(path.name.to_vec())
        }
    }

    pub(super) fn unexpected(name: Vec<u8>) -> Self {
        Self {
            name,
            nar_size: None,
            nar_hash: None,
            expected: false,
            is_remote: false,
            inode: None,
        }
    }
}

/// What all paths verified by one thread share.
pub(super) struct Task<'t, 'a> {
    pub(super) reader: &'t Reader<'a>,
    pub(super) expect: &'t Expect,
    pub(super) options: &'t VerifyOptions,
    pub(super) progress: &'t (dyn Fn(u64) + Sync),
}

/// Compares the attributes of the root directory itself, without its entries.
pub(super) fn check_root(
    reader: &Reader<'_>,
    host: &HostDir,
    expect: &Expect,
    options: &VerifyOptions,
) -> PathReport {
    let mut report = PathReport::default();
    match (reader.root(), host.stat_self()) {
        (Ok(inode), Ok(stat)) => expect.compare(&inode, &stat, &mut |difference| {
            report.add(options.differences_per_path, b"", difference);
        }),
        (Err(error), _) => return PathReport::unreadable(b"", &error),
        (_, Err(errno)) => report.add(1, b"", unreadable_host(errno)),
    }
    report
}

/// Compares one path of the disk with the host's.
pub(super) fn check_path(task: &Task<'_, '_>, host: &HostDir, subject: &Subject) -> PathReport {
    let mut check = PathCheck::new(task, subject);
    match subject.inode {
        None => match task.reader.why_absent(&subject.name) {
            Some(error) => check.differs(unreadable_disk(&error)),
            None => check.differs(Difference::Missing(Side::Disk)),
        },
        Some(_) if !subject.expected => check.differs(Difference::Missing(Side::Host)),
        Some(inode) => {
            check.node(subject.host(host), &subject.name, inode);
            if inode.is_dir() {
                check.walk(&subject.name);
            }
            check.compare_nar(subject);
        }
    }
    check.report
}

/// A directory that the walk is in.
struct Level {
    /// The directory on the host; `None` if only the disk has it.
    host: Option<HostDir>,
    names: Peekable<IntoIter<Vec<u8>>>,
    /// Length to which to truncate [`PathCheck::path`] when the walk leaves the directory.
    path_len: usize,
}

/// The comparison of one path.
struct PathCheck<'t, 'a> {
    task: &'t Task<'t, 'a>,
    report: PathReport,
    /// `None` if no hash is wanted, or if part of the path could not be read.
    nar: Option<NarHasher>,
    levels: Vec<Level>,
    /// Path of the current file, relative to the store path.
    path: Vec<u8>,
    disk_bytes: Vec<u8>,
    host_bytes: Vec<u8>,
}

impl<'t, 'a> PathCheck<'t, 'a> {
    fn new(task: &'t Task<'t, 'a>, subject: &Subject) -> Self {
        let hash = task.options.hash && subject.nar_hash.is_some();
        Self {
            task,
            report: PathReport {
                name: subject.name.clone(),
                ..PathReport::default()
            },
            nar: hash.then(NarHasher::new),
            levels: Vec::new(),
            path: Vec::new(),
            disk_bytes: Vec::new(),
            host_bytes: Vec::new(),
        }
    }

    fn differs(&mut self, difference: Difference) {
        let limit = self.task.options.differences_per_path;
        self.report.add(limit, &self.path, difference);
    }

    /// Records that the disk cannot be read here, and gives up on the NAR hash.
    fn unreadable(&mut self, error: &erofs_rs::Error) {
        self.nar = None;
        self.differs(unreadable_disk(error));
    }

    /// Compares everything below the path's top directory.
    fn walk(&mut self, name: &[u8]) {
        let mut walk = match self.task.reader.walk(name) {
            Ok(walk) => walk,
            Err(error) => return self.unreadable(&error),
        };
        while let Some(entry) = disk::next(&mut walk) {
            match entry {
                Ok(entry) => {
                    while self.levels.len() > entry.depth {
                        self.leave();
                    }
                    self.entry(entry.dir_entry.file_name(), entry.inode);
                }
                // The position of the walk is undefined after an error.
                Err(error) => return self.unreadable(&error),
            }
        }
        while !self.levels.is_empty() {
            self.leave();
        }
    }

    /// Compares an entry of the innermost directory.
    fn entry(&mut self, name: &[u8], inode: Inode) {
        self.missing_before(Some(name));
        let host = self.levels.last_mut().and_then(|level| {
            let listed = level.names.next_if(|next| next == name);
            listed.and(level.host.clone())
        });
        let len = self.enter_path(name);
        if let Some(nar) = &mut self.nar {
            nar.begin_entry(name);
        }
        if host.is_none() && self.levels.last().is_some_and(|level| level.host.is_some()) {
            self.differs(Difference::Missing(Side::Host));
        }
        self.node(host.as_ref(), name, inode);
        if !inode.is_dir() {
            self.path.truncate(len);
            if let Some(nar) = &mut self.nar {
                nar.end();
            }
        }
    }

    /// Leaves the innermost directory.
    fn leave(&mut self) {
        self.missing_before(None);
        let Some(level) = self.levels.pop() else {
            return;
        };
        self.path.truncate(level.path_len);
        let is_entry = !self.levels.is_empty();
        if let Some(nar) = &mut self.nar {
            nar.end();
            if is_entry {
                nar.end();
            }
        }
    }

    /// Reports the host's names that sort before `name`, or all remaining ones, as missing on the disk.
    fn missing_before(&mut self, name: Option<&[u8]>) {
        while let Some(level) = self.levels.last_mut() {
            let before = |next: &Vec<u8>| name.is_none_or(|name| next.as_slice() < name);
            let Some(missing) = level.names.next_if(before) else {
                return;
            };
            let len = self.enter_path(&missing);
            self.differs(Difference::Missing(Side::Disk));
            self.path.truncate(len);
        }
    }

    /// Appends `name` to the path; returns the previous length.
    fn enter_path(&mut self, name: &[u8]) -> usize {
        let len = self.path.len();
        if len > 0 {
            self.path.push(b'/');
        }
        self.path.extend_from_slice(name);
        len
    }

    /// Compares a file of any type with `name` in `host`. `host` is `None` if there is nothing to compare with.
    fn node(&mut self, host: Option<&HostDir>, name: &[u8], inode: Inode) {
        self.report.tally.files += 1;
        let stat = host.and_then(|dir| self.compare_attributes(dir, name, &inode));
        // A difference of type has been reported already, and the contents cannot be compared then.
        let same_kind = |stat: &Stat| FileType::from_raw_mode(stat.st_mode) == inode.file_type();
        let host = host.filter(|_| stat.as_ref().is_some_and(same_kind));
        match inode.file_type() {
            FileType::Directory => self.directory(host, name),
            FileType::Symlink => self.symlink(host, name, inode),
            FileType::RegularFile => {
                let same_size =
                    stat.is_some_and(|s| u64::try_from(s.st_size) == Ok(inode.data_size()));
                self.regular(host.filter(|_| same_size), name, inode);
            }
            // A NAR cannot contain such files.
            _ => self.nar = None,
        }
    }

    fn compare_attributes(&mut self, dir: &HostDir, name: &[u8], inode: &Inode) -> Option<Stat> {
        let stat = self.host_result(dir.stat(name))?;
        let expect = self.task.expect;
        expect.compare(inode, &stat, &mut |difference| self.differs(difference));
        Some(stat)
    }

    /// Returns the value of a host result; an error is recorded as a difference.
    fn host_result<T>(&mut self, result: Result<T, Errno>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(errno) => {
                self.differs(unreadable_host(errno));
                None
            }
        }
    }

    fn directory(&mut self, host: Option<&HostDir>, name: &[u8]) {
        if let Some(nar) = &mut self.nar {
            nar.begin_directory();
        }
        let host = host.and_then(|dir| self.host_result(dir.dir(name)));
        let names = host.as_ref().and_then(|dir| self.host_result(dir.names()));
        let path_len = self.path.iter().rposition(|byte| *byte == b'/');
        self.levels.push(Level {
            // If listing failed, do not report every entry as missing on the host.
            host: host.filter(|_| names.is_some()),
            names: names.unwrap_or_default().into_iter().peekable(),
            path_len: path_len.unwrap_or(0),
        });
    }

    fn symlink(&mut self, host: Option<&HostDir>, name: &[u8], inode: Inode) {
        let target = match self.task.reader.target(inode) {
            Ok(target) => target,
            Err(error) => return self.unreadable(&error),
        };
        if let Some(nar) = &mut self.nar {
            nar.symlink(&target);
            nar.end();
        }
        let expected = host.and_then(|dir| self.host_result(dir.target(name)));
        if let Some(expected) = expected.filter(|expected| *expected != target) {
            let [disk, expected] = [&target, &expected].map(|t| t.escape_ascii());
            self.differs(attribute(Attribute::Target, disk, expected));
        }
    }

    fn regular(&mut self, host: Option<&HostDir>, name: &[u8], inode: Inode) {
        let size = inode.data_size();
        if let Some(nar) = &mut self.nar {
            use std::os::unix::fs::PermissionsExt;
            nar.begin_file(inode.permissions().mode() & 0o100 != 0, size);
        }
        let host = host.and_then(|dir| self.host_result(dir.file(name)));
        self.contents(host, inode, size);
        if let Some(nar) = &mut self.nar {
            nar.end_contents();
            nar.end();
        }
    }

    /// Reads a file's contents once, for both the comparison and the hash.
    fn contents(&mut self, mut host: Option<OpenFile>, inode: Inode, size: u64) {
        let mut at = 0;
        while at < size {
            let len = usize::try_from(size - at)
                .unwrap_or(WINDOW_LEN)
                .min(WINDOW_LEN);
            if self.disk_bytes.len() < len {
                self.disk_bytes.resize(WINDOW_LEN, 0);
                self.host_bytes.resize(WINDOW_LEN, 0);
            }
            let bytes = &mut self.disk_bytes[..len];
            if let Err(error) = self.task.reader.read(inode, bytes, at) {
                return self.unreadable(&error);
            }
            if let Some(nar) = &mut self.nar {
                nar.contents(bytes);
            }
            // Report only the first difference of a file.
            host = host.filter(|host| self.same_bytes(host, len, at));
            self.report.tally.bytes += len as u64;
            (self.task.progress)(len as u64);
            at += len as u64;
        }
    }

    /// Compares the first `len` bytes of `disk_bytes` with the host's file at offset `at`.
    fn same_bytes(&mut self, host: &OpenFile, len: usize, at: u64) -> bool {
        let read = host.read(&mut self.host_bytes[..len], at);
        let Some(count) = self.host_result(read) else {
            return false;
        };
        if self.disk_bytes[..len] == self.host_bytes[..count] {
            return true;
        }
        let pairs = self.disk_bytes[..len].iter().zip(&self.host_bytes[..count]);
        let same = pairs.take_while(|(disk, host)| disk == host).count();
        self.differs(Difference::Contents {
            offset: at + same as u64,
        });
        false
    }

    fn compare_nar(&mut self, subject: &Subject) {
        let Some((disk, disk_size)) = self.nar.take().map(NarHasher::finish) else {
            return;
        };
        if let Some(registered) = subject.nar_size.filter(|size| *size != disk_size) {
            self.differs(Difference::NarSize {
                disk: disk_size,
                registered,
            });
        }
        match subject.nar_hash {
            Some(registered) if registered != disk => {
                self.differs(Difference::NarHash { disk, registered });
            }
            Some(_) => self.report.tally.nar_hashes += 1,
            None => {}
        }
    }
}

fn unreadable_disk(error: &erofs_rs::Error) -> Difference {
    Difference::Unreadable {
        side: Side::Disk,
        error: error.to_string(),
    }
}

fn unreadable_host(errno: Errno) -> Difference {
    match errno {
        Errno::NOENT => Difference::Missing(Side::Host),
        _ => Difference::Unreadable {
            side: Side::Host,
            error: errno.to_string(),
        },
    }
}
