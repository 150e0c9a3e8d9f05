//! Reads a disk back through erofs-rs, an independent implementation, and compares it with the host.

use std::fs::{self, Metadata};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use erofs_rs::Error;
use erofs_rs::r#async::EroFS;
use erofs_rs::backend::AsyncImage;
use erofs_rs::types::Inode;
use lazystore::image::Image;

/// The disk as a source of erofs-rs.
pub struct Disk(pub Arc<Image>);

impl AsyncImage for Disk {
    async fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> erofs_rs::Result<()> {
        self.0
            .read_exact_at(buf, offset)
            .map_err(|error| Error::OutOfBounds(error.to_string()))
    }
}

/// Number of names to look up at the beginning of a large directory. Of the rest, only samples are looked up, because
/// erofs-rs searches every block of a directory. Another test has the kernel look up all names.
const LOOK_UPS: usize = 100;

/// Runs a future that never yields.
pub fn now<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("a read from memory waited"),
    }
}

/// The attributes that the guest should see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// Canonical modes, root, mtime 1.
    Nar,
    /// Those of the host.
    Host,
}

/// Opens the disk.
pub fn open(image: &Arc<Image>) -> EroFS<Disk> {
    now(EroFS::new(Disk(image.clone()))).unwrap()
}

/// Compares `/` of the disk with the directory `host`, entry by entry. Returns the number of entries.
pub fn compare(image: &Arc<Image>, host: &Path, expect: Expect) -> usize {
    let fs = open(image);
    compare_dir(&fs, b"/", host, expect)
}

fn compare_dir(fs: &EroFS<Disk>, path: &[u8], host: &Path, expect: Expect) -> usize {
    let mut names: Vec<_> = fs::read_dir(host)
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    names.sort();
    let mut names = names.into_iter();
    let mut count = 0;
    let mut entries = now(fs.read_dir(path)).unwrap();
    while let Some(entry) = now(entries.next_entry()) {
        let entry = entry.unwrap();
        let name = names
            .next()
            .expect("more entries on the disk than on the host");
        assert_eq!(
            entry.dir_entry.file_name(),
            name.as_bytes(),
            "in {}",
            host.display()
        );
        let (host, path) = (host.join(&name), join(path, name.as_bytes()));
        compare_inode(fs, entry.inode, &host, expect);
        if count < LOOK_UPS || count % (20 * LOOK_UPS) == 0 {
            look_up(fs, &path, &entry.inode);
        }
        count += 1;
        if entry.inode.is_dir() {
            count += compare_dir(fs, &path, &host, expect);
        }
    }
    assert_eq!(
        names.next(),
        None,
        "missing on the disk, in {}",
        host.display()
    );
    count
}

fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    let mut path = dir.to_vec();
    if path != b"/" {
        path.push(b'/');
    }
    path.extend_from_slice(name);
    path
}

/// Checks that a lookup of the name finds the inode, and not only a listing.
fn look_up(fs: &EroFS<Disk>, path: &[u8], inode: &Inode) {
    match now(fs.open(path)) {
        Ok(file) => assert_eq!(file.size(), inode.data_size()),
        Err(Error::NotAFile(message)) => {
            assert!(message.contains(&inode.id().to_string()), "{message}");
        }
        Err(error) => panic!("{}: {error}", String::from_utf8_lossy(path)),
    }
}

fn compare_inode(fs: &EroFS<Disk>, inode: Inode, host: &Path, expect: Expect) {
    let metadata = fs::symlink_metadata(host).unwrap();
    let place = host.display();
    let (permissions, owner, mtime) = expected(&metadata, expect);
    assert_eq!(
        inode.permissions().mode() & 0o7777,
        permissions,
        "mode of {place}"
    );
    assert_eq!((inode.uid(), inode.gid()), owner, "owner of {place}");
    assert_eq!(inode.modified_unix(), mtime, "mtime of {place}");
    assert_eq!(inode.is_dir(), metadata.is_dir(), "type of {place}");
    if metadata.is_file() {
        compare_contents(fs, inode, host);
    } else if metadata.is_symlink() {
        let target = now(fs.read_link_inode(inode)).unwrap();
        assert_eq!(
            target.as_bytes(),
            fs::read_link(host).unwrap().as_os_str().as_bytes(),
            "{place}"
        );
    }
}

fn expected(metadata: &Metadata, expect: Expect) -> (u32, (u32, u32), (i64, u32)) {
    if expect == Expect::Host {
        let nsec = u32::try_from(metadata.mtime_nsec()).unwrap();
        return (
            metadata.mode() & 0o7777,
            (metadata.uid(), metadata.gid()),
            (metadata.mtime(), nsec),
        );
    }
    let permissions = match metadata {
        m if m.is_symlink() => 0o777,
        m if m.is_dir() || m.mode() & 0o100 != 0 => 0o555,
        _ => 0o444,
    };
    (permissions, (0, 0), (1, 0))
}

fn compare_contents(fs: &EroFS<Disk>, inode: Inode, host: &Path) {
    let file = fs::File::open(host).unwrap();
    let on_disk = fs.open_inode_file(inode).unwrap();
    assert_eq!(
        on_disk.size(),
        file.metadata().unwrap().len(),
        "size of {}",
        host.display()
    );
    let (mut theirs, mut ours) = (vec![0; 65_536], vec![0; 65_536]);
    let mut at = 0;
    while at < on_disk.size() {
        let count = now(on_disk.read_at(&mut ours, at)).unwrap();
        assert!(count > 0);
        file.read_exact_at(&mut theirs[..count], at).unwrap();
        assert!(
            ours[..count] == theirs[..count],
            "{} differs at {at}",
            host.display()
        );
        at += count as u64;
    }
}
