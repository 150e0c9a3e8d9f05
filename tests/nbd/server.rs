//! A server in this process.

use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use lazystore::device::nbd::{Export, Exports, NbdError, NbdOptions, Served, serve_connection};
use lazystore::image::Image;
use tempfile::TempDir;

use crate::common;
pub use crate::common::server::tree;

/// Options with short timeouts.
pub fn options() -> NbdOptions {
    NbdOptions {
        negotiation: Duration::from_secs(60),
        ..NbdOptions::default()
    }
}

pub fn export(name: &str, image: Arc<Image>) -> Export {
    Export {
        name: name.parse().unwrap(),
        description: format!("the disk {name}"),
        image,
    }
}

/// A socket at which two disks are served: `store`, and the smaller `other`. Dropping it ends the server.
pub struct Server {
    pub image: Arc<Image>,
    pub socket: PathBuf,
    _dir: TempDir,
    tree: TempDir,
}

impl Server {
    pub fn start() -> Self {
        let tree = tree();
        let image = Arc::new(common::tree_image(tree.path()));
        let other = Arc::new(common::tree_image(&tree.path().join("one")));
        let exports = vec![export("store", Arc::clone(&image)), export("other", other)];
        let exports = Exports::new(exports).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("nbd.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        // Detached: the test program need not wait for its connections.
        thread::spawn(move || {
            for connection in listener.incoming() {
                let exports = exports.clone();
                let connection = connection.unwrap();
                thread::spawn(move || {
                    serve_connection(
                        connection.into(),
                        &exports,
                        &options(),
                        options().meter().unwrap(),
                        |_| (),
                    )
                });
            }
        });
        Self {
            image,
            socket,
            _dir: dir,
            tree,
        }
    }

    /// The directory that `store` shows.
    pub fn tree(&self) -> &Path {
        self.tree.path()
    }

    /// The NBD URI of a disk.
    pub fn uri(&self, name: &str) -> String {
        format!("nbd+unix:///{name}?socket={}", self.socket.display())
    }
}

/// One connection to the disk of `dir`, and its result.
pub struct Single {
    pub image: Arc<Image>,
    pub end: thread::JoinHandle<Result<Served, NbdError>>,
}

/// Serves the disk of `dir` to the other end of the returned socket.
pub fn single(dir: &Path, options: &NbdOptions) -> (UnixStream, Single) {
    let image = Arc::new(common::tree_image(dir));
    let exports = Exports::new(vec![export("store", Arc::clone(&image))]).unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let options = options.clone();
    let end = thread::spawn(move || {
        let meter = options.meter().unwrap();
        serve_connection(theirs.into(), &exports, &options, meter, |_| ())
    });
    (ours, Single { image, end })
}
