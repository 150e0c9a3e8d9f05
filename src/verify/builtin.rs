//! Verifies the directory `.lazystore`, which the disk has in addition to the closure.

use erofs_rs::types::Inode;

use super::disk::{self, Reader};
use super::expect::{Expect, attribute};
use super::report::{Attribute, Difference, PathReport, Side};
use crate::image::{BUILTIN_DIR, REGISTRATION_NAME};

/// Verifies `.lazystore`: it must contain one file with the contents `text`. `inode` is `None` if it is absent.
pub(super) fn check_builtin(
    reader: &Reader<'_>,
    expect: &Expect,
    inode: Option<Inode>,
    text: &[u8],
) -> PathReport {
    let mut check = BuiltinCheck {
        reader,
        expect,
        report: PathReport {
            name: BUILTIN_DIR.as_bytes().to_vec(),
            ..PathReport::default()
        },
    };
    match inode {
        Some(inode) => check.dir(&inode, text),
        None => check.differs(b"", Difference::Missing(Side::Disk)),
    }
    check.report
}

struct BuiltinCheck<'r, 'a> {
    reader: &'r Reader<'a>,
    expect: &'r Expect,
    report: PathReport,
}

impl BuiltinCheck<'_, '_> {
    fn differs(&mut self, file: &[u8], difference: Difference) {
        self.report.add(10, file, difference);
    }

    fn dir(&mut self, inode: &Inode, text: &[u8]) {
        self.attributes(b"", inode, 0o040_555);
        let mut found = false;
        let entries = self.reader.walk(BUILTIN_DIR.as_bytes());
        let mut entries = match entries {
            Ok(entries) => entries,
            Err(error) => return self.unreadable(b"", &error),
        };
        while let Some(entry) = disk::next(&mut entries) {
            match entry {
                Ok(entry) if entry.dir_entry.file_name() == REGISTRATION_NAME.as_bytes() => {
                    found = true;
                    self.file(entry.inode, text);
                }
                Ok(entry) => {
                    self.differs(entry.dir_entry.file_name(), Difference::Missing(Side::Host));
                }
                Err(error) => return self.unreadable(b"", &error),
            }
        }
        if !found {
            self.differs(
                REGISTRATION_NAME.as_bytes(),
                Difference::Missing(Side::Disk),
            );
        }
    }

    fn file(&mut self, inode: Inode, text: &[u8]) {
        let name = REGISTRATION_NAME.as_bytes();
        self.attributes(name, &inode, 0o100_444);
        let (disk, expected) = (inode.data_size(), text.len() as u64);
        if disk != expected {
            return self.differs(name, attribute(Attribute::Size, disk, expected));
        }
        let mut bytes = vec![0; text.len()];
        if let Err(error) = self.reader.read(inode, &mut bytes, 0) {
            return self.unreadable(name, &error);
        }
        self.report.tally.bytes += expected;
        if let Some(offset) = bytes.iter().zip(text).position(|(a, b)| a != b) {
            let offset = offset as u64;
            self.differs(name, Difference::Contents { offset });
        }
    }

    fn attributes(&mut self, name: &[u8], inode: &Inode, mode: u32) {
        self.report.tally.files += 1;
        let (expect, report) = (self.expect, &mut self.report);
        expect.compare_canonical(inode, mode, &mut |difference| {
            report.add(10, name, difference);
        });
    }

    fn unreadable(&mut self, name: &[u8], error: &erofs_rs::Error) {
        let (side, error) = (Side::Disk, error.to_string());
        self.differs(name, Difference::Unreadable { side, error });
    }
}
