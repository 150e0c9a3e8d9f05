//! Writes the NAR of a path like `nix-store --dump` (Nix thesis, figure 5.2), and its listing like `nix copy`.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::{Map, Value, json};

/// Length of the NAR of `path`.
pub fn size_bytes(path: &Path) -> u64 {
    let mut out = Counted::new(io::sink());
    node(path, &mut out).unwrap();
    out.count
}

/// Writes the NAR of `path`.
pub fn write(path: &Path, out: &mut dyn Write) -> io::Result<()> {
    node(path, &mut Counted::new(out)).map(drop)
}

/// The NAR of `path` and its listing. JSON cannot represent names that are not UTF-8, so they are wrong in the listing.
pub fn with_listing(path: &Path) -> (Vec<u8>, Value) {
    let mut nar = Vec::new();
    let root = node(path, &mut Counted::new(&mut nar)).unwrap();
    (nar, json!({"version": 1, "root": root}))
}

/// A writer that counts bytes.
struct Counted<W> {
    out: W,
    count: u64,
}

impl<W: Write> Counted<W> {
    fn new(out: W) -> Self {
        Self { out, count: 0 }
    }
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let len = self.out.write(bytes)?;
        self.count += len as u64;
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn node<W: Write>(path: &Path, out: &mut Counted<W>) -> io::Result<Value> {
    if out.count == 0 {
        string(b"nix-archive-1", out)?;
    }
    let metadata = fs::symlink_metadata(path)?;
    strings(&[b"(", b"type"], out)?;
    let listed = if metadata.is_dir() {
        directory(path, out)?
    } else if metadata.is_symlink() {
        let target = fs::read_link(path)?;
        strings(&[b"symlink", b"target", target.as_os_str().as_bytes()], out)?;
        json!({"type": "symlink", "target": target.to_string_lossy()})
    } else {
        let executable = metadata.permissions().mode() & 0o100 != 0;
        regular(path, metadata.len(), executable, out)?
    };
    string(b")", out)?;
    Ok(listed)
}

fn directory<W: Write>(path: &Path, out: &mut Counted<W>) -> io::Result<Value> {
    string(b"directory", out)?;
    let mut entries: Vec<_> = fs::read_dir(path)?.collect::<Result<_, _>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    let mut listed = Map::new();
    for entry in entries {
        let name = entry.file_name();
        strings(&[b"entry", b"(", b"name", name.as_bytes(), b"node"], out)?;
        listed.insert(name.to_string_lossy().into(), node(&entry.path(), out)?);
        string(b")", out)?;
    }
    Ok(json!({"type": "directory", "entries": listed}))
}

fn regular<W: Write>(
    path: &Path,
    size: u64,
    executable: bool,
    out: &mut Counted<W>,
) -> io::Result<Value> {
    string(b"regular", out)?;
    if executable {
        strings(&[b"executable", b""], out)?;
    }
    string(b"contents", out)?;
    out.write_all(&size.to_le_bytes())?;
    let offset = out.count;
    io::copy(&mut File::open(path)?, out)?;
    pad(size, out)?;
    let mut listed = json!({"type": "regular", "size": size, "narOffset": offset});
    if executable {
        listed["executable"] = true.into();
    }
    Ok(listed)
}

fn strings(all: &[&[u8]], out: &mut dyn Write) -> io::Result<()> {
    all.iter().try_for_each(|bytes| string(bytes, out))
}

fn string(bytes: &[u8], out: &mut dyn Write) -> io::Result<()> {
    out.write_all(&(bytes.len() as u64).to_le_bytes())?;
    out.write_all(bytes)?;
    pad(bytes.len() as u64, out)
}

fn pad(len_bytes: u64, out: &mut dyn Write) -> io::Result<()> {
    let missing = len_bytes.next_multiple_of(8) - len_bytes;
    out.write_all(&[0; 8][..usize::try_from(missing).unwrap()])
}
