//! The dirty log of guest memory: exactly the pages that the device writes are marked. And invalid logs.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::common::frontend::{
    F_LOG_ALL, F_PROTOCOL_FEATURES, F_VERSION_1, Frontend, Guest, SLOTS,
};
use crate::common::process::wait_for;
use crate::common::server::{Server, tree};

const FEATURES: u64 = F_VERSION_1 | F_PROTOCOL_FEATURES;
/// A bit for each page of the guest.
const LOG_LEN: usize = 32;
const LOG_BYTES: u64 = LOG_LEN as u64;
/// Address of the guest's used ring.
const USED_PAGE: usize = 2;

/// Memory for a log, like that of a frontend.
struct Log(File);

impl Log {
    fn new() -> Self {
        let file = tempfile::tempfile().unwrap();
        file.set_len(LOG_BYTES).unwrap();
        Self(file)
    }

    /// Returns the marked pages, and clears the log.
    fn take(&self) -> BTreeSet<usize> {
        let mut bytes = [0; LOG_LEN];
        self.0.read_exact_at(&mut bytes, 0).unwrap();
        self.0.write_all_at(&[0; LOG_LEN], 0).unwrap();
        let is_marked = |page: &usize| bytes[page / 8] & 1 << (page % 8) != 0;
        (0..bytes.len() * 8).filter(is_marked).collect()
    }
}

/// Type, sector and length of requests: reads of metadata and of file data, one beyond the end of the disk, one of part
/// of a sector, GET_ID, FLUSH, a write, and an unknown type.
const REQUESTS: [(u32, u64, u32); 8] = [
    (0, 0, 0x3000),
    (0, (128 << 30) / 512, 0x3000),
    (0, u64::MAX / 512, 512),
    (0, 0, 100),
    (8, 0, 20),
    (4, 0, 0),
    (1, 0, 512),
    (99, 0, 512),
];

/// Makes requests of all kinds. Returns the pages that the device has changed, and those that it may have changed.
fn serve(guest: &mut Guest, frontend: &Frontend) -> [BTreeSet<usize>; 2] {
    let mut allowed = BTreeSet::from([USED_PAGE]);
    // The device may check the ring at any time. It must not complete requests before the memory has been copied.
    frontend.stop_queue();
    for (slot, (kind, sector, len)) in (0..SLOTS).zip(REQUESTS) {
        guest.submit(slot, kind, sector, len);
        allowed.extend(Guest::pages(slot, len.into()));
    }
    let before = guest.bytes();
    frontend.start_queue();
    frontend.enable_queue();
    frontend.kick();
    guest.wait();
    frontend.stop_queue();
    let after = guest.bytes();
    frontend.start_queue();
    frontend.enable_queue();
    let pages = before.chunks(4096).zip(after.chunks(4096)).enumerate();
    let changed = pages.filter(|(_, (before, after))| before != after);
    [changed.map(|(page, _)| page).collect(), allowed]
}

/// Compares the log with the changes of the memory.
fn assert_marked(guest: &mut Guest, frontend: &Frontend, log: &Log) {
    log.take();
    let [changed, allowed] = serve(guest, frontend);
    let marked = log.take();
    assert!(changed.len() > 8, "{changed:?}");
    assert!(
        changed.is_subset(&marked),
        "changed {changed:?}, marked {marked:?}"
    );
    assert!(
        marked.is_subset(&allowed),
        "marked {marked:?}, allowed {allowed:?}"
    );
}

#[test]
fn written_pages_are_marked_while_logging_is_on() {
    let tree = tree();
    let server = Server::start(tree.path(), &[]);
    let mut guest = Guest::new();
    let frontend = Frontend::start(&server.socket, &guest, FEATURES);
    let log = Log::new();
    assert!(frontend.set_log(&log.0, LOG_BYTES, 0));
    serve(&mut guest, &frontend);
    assert_eq!(log.take(), BTreeSet::new(), "the log is off");
    frontend.set_features(FEATURES | F_LOG_ALL);
    assert_marked(&mut guest, &frontend, &log);
    // The vhost crate loses the log here.
    frontend.share_in_parts(&guest);
    assert_marked(&mut guest, &frontend, &log);
    let next = Log::new();
    assert!(frontend.set_log(&next.0, LOG_BYTES, 0));
    // Each check of the ring marks the used ring, and the device may have checked until now.
    log.take();
    assert_marked(&mut guest, &frontend, &next);
    assert_eq!(log.take(), BTreeSet::new(), "the log has been replaced");
    frontend.set_features(FEATURES);
    next.take();
    serve(&mut guest, &frontend);
    assert_eq!(next.take(), BTreeSet::new(), "the log is off again");
    frontend.set_features(FEATURES | F_LOG_ALL);
    assert_marked(&mut guest, &frontend, &next);
}

/// A killed process may have published completions without marking the page, so its successor marks the used ring at
/// once.
#[test]
fn a_new_worker_marks_what_its_predecessor_has_published() {
    let tree = tree();
    let server = Server::start(tree.path(), &[]);
    let guest = Guest::new();
    let frontend = Frontend::start(&server.socket, &guest, FEATURES);
    frontend.stop_queue();
    let log = Log::new();
    assert!(frontend.set_log(&log.0, LOG_BYTES, 0));
    frontend.set_features(FEATURES | F_LOG_ALL);
    frontend.start_queue();
    frontend.enable_queue();
    wait_for("a look at the ring", || {
        (log.take() == BTreeSet::from([USED_PAGE])).then_some(())
    });
}

#[test]
fn a_frontend_that_sets_log_all_without_a_log_is_served() {
    let tree = tree();
    let server = Server::start(tree.path(), &[]);
    let mut guest = Guest::new();
    let frontend = Frontend::start(&server.socket, &guest, FEATURES | F_LOG_ALL);
    let [changed, _] = serve(&mut guest, &frontend);
    assert!(changed.len() > 8, "{changed:?}");
}

#[test]
fn an_impossible_log_ends_only_its_own_connection() {
    let tree = tree();
    let server = Server::start(tree.path(), &[]);
    let mut other = Guest::new();
    let stays = Frontend::start(&server.socket, &other, FEATURES);
    let log = Log::new();
    let (pipe, _) = std::io::pipe().unwrap();
    let readable = File::open("/dev/null").unwrap();
    type Attempt<'a> = &'a dyn Fn(&Frontend) -> bool;
    let attempts: [Attempt<'_>; 8] = [
        &|frontend| frontend.set_log(&log.0, LOG_BYTES - 1, 0),
        &|frontend| frontend.set_log(&log.0, 0, 0),
        &|frontend| frontend.set_log(&log.0, u64::MAX, 0),
        &|frontend| frontend.set_log(&log.0, 1 << 50, 0),
        &|frontend| frontend.set_log(&log.0, LOG_BYTES, 7),
        &|frontend| frontend.set_log(&log.0, LOG_BYTES, u64::MAX - 4095),
        &|frontend| frontend.set_log(&pipe, LOG_BYTES, 0),
        &|frontend| frontend.set_log(&readable, LOG_BYTES, 0),
    ];
    for (number, attempt) in attempts.iter().enumerate() {
        let guest = Guest::new();
        let frontend = Frontend::start(&server.socket, &guest, FEATURES);
        assert!(!attempt(&frontend), "attempt {number}");
        assert!(frontend.is_closed(), "attempt {number}");
    }
    serve(&mut other, &stays);
}

/// The worker gets SIGBUS, like when the memory itself is truncated. Others are unaffected.
#[test]
fn a_truncated_log_ends_only_its_own_worker() {
    let tree = tree();
    let server = Server::start(tree.path(), &[]);
    let mut other = Guest::new();
    let stays = Frontend::start(&server.socket, &other, FEATURES);
    let mut guest = Guest::new();
    let frontend = Frontend::start(&server.socket, &guest, FEATURES);
    let log = Log::new();
    assert!(frontend.set_log(&log.0, LOG_BYTES, 0));
    log.0.set_len(0).unwrap();
    guest.submit(0, 0, 0, 512);
    // It may end before it completes the request, because each check of the ring marks pages.
    let _ = frontend.try_set_features(FEATURES | F_LOG_ALL);
    frontend.kick();
    assert!(frontend.is_closed());
    serve(&mut other, &stays);
    wait_for("the other worker to be alone", || {
        (server.workers().len() == 1).then_some(())
    });
}
