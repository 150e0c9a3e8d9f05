//! The NAR of a path, as `nix-store --dump` writes it (Nix thesis, figure 5.2).

use std::fs;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Length of the NAR of `path`.
pub fn size_bytes(path: &Path) -> u64 {
    struct Counter(u64);
    impl Write for Counter {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 += bytes.len() as u64;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut counter = Counter(0);
    write(path, &mut counter).unwrap();
    counter.0
}

/// Writes the NAR of `path`.
pub fn write(path: &Path, out: &mut dyn Write) -> io::Result<()> {
    string(b"nix-archive-1", out)?;
    node(path, out)
}

fn node(path: &Path, out: &mut dyn Write) -> io::Result<()> {
    let metadata = fs::symlink_metadata(path)?;
    strings(&[b"(", b"type"], out)?;
    if metadata.is_dir() {
        string(b"directory", out)?;
        let mut entries: Vec<_> = fs::read_dir(path)?.collect::<Result<_, _>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            strings(
                &[
                    b"entry",
                    b"(",
                    b"name",
                    entry.file_name().as_bytes(),
                    b"node",
                ],
                out,
            )?;
            node(&entry.path(), out)?;
            string(b")", out)?;
        }
    } else if metadata.is_symlink() {
        strings(
            &[
                b"symlink",
                b"target",
                fs::read_link(path)?.as_os_str().as_bytes(),
            ],
            out,
        )?;
    } else {
        string(b"regular", out)?;
        if metadata.permissions().mode() & 0o100 != 0 {
            strings(&[b"executable", b""], out)?;
        }
        string(b"contents", out)?;
        string(&fs::read(path)?, out)?;
    }
    string(b")", out)
}

fn strings(all: &[&[u8]], out: &mut dyn Write) -> io::Result<()> {
    all.iter().try_for_each(|bytes| string(bytes, out))
}

fn string(bytes: &[u8], out: &mut dyn Write) -> io::Result<()> {
    out.write_all(&(bytes.len() as u64).to_le_bytes())?;
    out.write_all(bytes)?;
    let padding = bytes.len().next_multiple_of(8) - bytes.len();
    out.write_all(&[0; 8][..padding])
}
