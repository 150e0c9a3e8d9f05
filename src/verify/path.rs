//! One store path: the disk's walk and the host's directories side by side.

use std::iter::Peekable;
use std::vec::IntoIter;

use erofs_rs::types::Inode;
use rustix::fs::{FileType, Stat};
use rustix::io::Errno;

use super::VerifyOptions;
use super::disk::{self, Reader, WINDOW_LEN};
use super::expect::{Expect, attribute};
use super::host::{HostDir, HostFile};
use super::nar::Nar;
use super::report::{Attribute, Difference, PathReport, Side};
use crate::closure::StorePath;

/// An entry of the root directory, of the disk or of what should be on it.
pub(super) struct Subject {
    pub(super) name: Vec<u8>,
    pub(super) nar_size: Option<u64>,
    nar_hash: Option<[u8; 32]>,
    /// It should be there.
    expected: bool,
    /// It is not on the host: only its hash tells what it should be.
    pub(super) is_remote: bool,
    /// It is there.
    pub(super) inode: Option<Inode>,
}

impl Subject {
    /// What to compare it with.
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

/// What every path of a thread has in common.
pub(super) struct Task<'t, 'a> {
    pub(super) reader: &'t Reader<'a>,
    pub(super) expect: &'t Expect,
    pub(super) options: &'t VerifyOptions,
    pub(super) progress: &'t (dyn Fn(u64) + Sync),
}

/// The root directory itself, without what is in it. Only a tree's root is a host directory.
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
    let mut check = Check::new(task, subject);
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

/// A directory of the host that the walk is in; none if only the disk has it.
struct Level {
    host: Option<HostDir>,
    names: Peekable<IntoIter<Vec<u8>>>,
    /// Length of the path up to this directory.
    path_len: usize,
}

/// One path's comparison.
struct Check<'t, 'a> {
    task: &'t Task<'t, 'a>,
    report: PathReport,
    /// None if the hash is not wanted, or cannot be right any more.
    nar: Option<Nar>,
    levels: Vec<Level>,
    /// The file that is compared, below the store path.
    path: Vec<u8>,
    disk_bytes: Vec<u8>,
    host_bytes: Vec<u8>,
}

impl<'t, 'a> Check<'t, 'a> {
    fn new(task: &'t Task<'t, 'a>, subject: &Subject) -> Self {
        let hash = task.options.hash && subject.nar_hash.is_some();
        Self {
            task,
            report: PathReport {
                name: subject.name.clone(),
                ..PathReport::default()
            },
            nar: hash.then(Nar::new),
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

    /// The disk does not give what is needed: there is no hash without it.
    fn unreadable(&mut self, error: &erofs_rs::Error) {
        self.nar = None;
        self.differs(unreadable_disk(error));
    }

    /// Everything below the path's top directory, which is open.
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
                // Where the walk would go on is not known.
                Err(error) => return self.unreadable(&error),
            }
        }
        while !self.levels.is_empty() {
            self.leave();
        }
    }

    /// An entry of the innermost directory.
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

    /// Ends the innermost directory.
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

    /// Reports the host's names that come before `name`, or all that are left.
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

    /// Adds `name` to the path; returns its length before.
    fn enter_path(&mut self, name: &[u8]) -> usize {
        let len = self.path.len();
        if len > 0 {
            self.path.push(b'/');
        }
        self.path.extend_from_slice(name);
        len
    }

    /// A file of any type, which is `name` in `host` if it should be on the disk at all.
    fn node(&mut self, host: Option<&HostDir>, name: &[u8], inode: Inode) {
        self.report.tally.files += 1;
        let stat = host.and_then(|dir| self.examine(dir, name, &inode));
        // A file of another type has been reported, and there is nothing to compare it with.
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
            // No NAR has such files.
            _ => self.nar = None,
        }
    }

    fn examine(&mut self, dir: &HostDir, name: &[u8], inode: &Inode) -> Option<Stat> {
        let stat = self.host_answer(dir.stat(name))?;
        let expect = self.task.expect;
        expect.compare(inode, &stat, &mut |difference| self.differs(difference));
        Some(stat)
    }

    /// What the host said, unless it refused, which is a difference.
    fn host_answer<T>(&mut self, answer: Result<T, Errno>) -> Option<T> {
        match answer {
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
        let host = host.and_then(|dir| self.host_answer(dir.dir(name)));
        let names = host.as_ref().and_then(|dir| self.host_answer(dir.names()));
        let path_len = self.path.iter().rposition(|byte| *byte == b'/');
        self.levels.push(Level {
            // Without a list of names nothing can be said of what is in it.
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
        let expected = host.and_then(|dir| self.host_answer(dir.target(name)));
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
        let host = host.and_then(|dir| self.host_answer(dir.file(name)));
        self.contents(host, inode, size);
        if let Some(nar) = &mut self.nar {
            nar.end_contents();
            nar.end();
        }
    }

    /// Reads a file's contents once, for the comparison and for the hash.
    fn contents(&mut self, mut host: Option<HostFile>, inode: Inode, size: u64) {
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
            // One difference a file is enough.
            host = host.filter(|host| self.same_bytes(host, len, at));
            self.report.tally.bytes += len as u64;
            (self.task.progress)(len as u64);
            at += len as u64;
        }
    }

    /// Compares `len` bytes, which have been read from the disk, with the host's at `at`.
    fn same_bytes(&mut self, host: &HostFile, len: usize, at: u64) -> bool {
        let read = host.read(&mut self.host_bytes[..len], at);
        let Some(count) = self.host_answer(read) else {
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
        let Some((disk, disk_size)) = self.nar.take().map(Nar::finish) else {
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
