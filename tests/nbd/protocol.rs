//! Requests and replies.

use std::io::Write;
use std::os::unix::net::UnixStream;

use lazystore::device::nbd::Served;

use super::client::*;
use super::server::{Server, options, single, tree};
use crate::common::random::Random;

/// Start of file data (docs/design.md, address space).
const DATA: u64 = 128 << 30;

fn expected(server: &Server, offset: u64, len: usize) -> Vec<u8> {
    let mut expected = vec![0; len];
    server.image.read_exact_at(&mut expected, offset).unwrap();
    expected
}

fn connect(server: &Server) -> UnixStream {
    UnixStream::connect(&server.socket).unwrap()
}

/// Ranges with metadata, file data, ends of files, and holes. Some are not aligned.
fn ranges(server: &Server) -> Vec<(u64, usize)> {
    let end = server.image.len_bytes();
    let mut ranges = vec![
        (0, 1),
        (0, 4096),
        (1024, 128),
        (0, 1 << 20),
        (DATA, 4096),
        (DATA + 1, 4095),
        (DATA - 4096, 8192),
        (DATA, 6 << 20),
        (DATA + 999_999, 300_001),
        (end - 4096, 4096),
        (end - 1, 1),
        (64 << 30, 1 << 20),
    ];
    let mut random = Random::new(7);
    for _ in 0..200 {
        let start = [0, DATA][random.index(2)] + random.below(9 << 20);
        ranges.push((start, random.index(600_000) + 1));
    }
    ranges
}

#[test]
fn all_kinds_of_reads_return_the_same_bytes() {
    let server = Server::start();
    let mut chunks = Client::start(connect(&server), "store");
    let mut simple = Client::start_simple(connect(&server), "store");
    for (offset, len) in ranges(&server) {
        let expected = expected(&server, offset, len);
        assert!(
            chunks.read(0, offset, len).unwrap() == expected,
            "{offset} {len}"
        );
        assert!(
            chunks.read(DF, offset, len).unwrap() == expected,
            "{offset} {len}"
        );
        assert!(
            simple.read(0, offset, len).unwrap() == expected,
            "{offset} {len}"
        );
    }
}

#[test]
fn a_read_of_the_maximum_length_succeeds_and_a_longer_one_is_refused() {
    let server = Server::start();
    let longest = 32 << 20;
    let expected = expected(&server, DATA, longest);
    let mut chunks = Client::start(connect(&server), "store");
    let mut simple = Client::start_simple(connect(&server), "store");
    assert!(chunks.read(0, DATA, longest).unwrap() == expected);
    assert!(chunks.read(DF, DATA, longest).unwrap() == expected);
    assert!(simple.read(0, DATA, longest).unwrap() == expected);
    for client in [&mut chunks, &mut simple] {
        assert_eq!(client.read(0, DATA, longest + 1), Err(EINVAL));
        assert!(client.read(0, DATA, 4096).is_ok());
    }
}

#[test]
fn holes_are_sent_as_holes_except_in_unfragmented_replies() {
    let server = Server::start();
    let mut client = Client::start(connect(&server), "store");
    let nowhere = 64 << 30;
    client.request(READ, 0, 1, nowhere, 1 << 20);
    let pieces: Vec<_> = (0..4).map(|_| client.reply(0).1).collect();
    for (index, piece) in (0..).zip(&pieces) {
        let len = 256 << 10;
        let hole = Reply::Hole {
            done: index == 3,
            offset: nowhere + index * u64::from(len),
            len,
        };
        assert_eq!(*piece, hole);
    }
    client.request(READ, DF, 2, nowhere, 1 << 20);
    let (_, whole) = client.reply(0);
    assert!(matches!(whole, Reply::Data { done: true, data, .. } if data == vec![0; 1 << 20]));
}

#[test]
fn block_status_returns_holes_and_data() {
    let server = Server::start();
    let mut client = Client::start(connect(&server), "store");
    let end = server.image.len_bytes();
    let (mut at, mut data_bytes) = (0, 0);
    while at < end {
        let len = u32::try_from((end - at).min(u32::MAX.into())).unwrap();
        for (len, status) in client.status(0, at, len) {
            let len = u64::from(len);
            match status {
                0 => data_bytes += len,
                // A hole that reads as zeros.
                3 => {
                    let looked_at = usize::try_from(len.min(1 << 20)).unwrap();
                    for start in [at, at + len - looked_at as u64] {
                        assert!(expected(&server, start, looked_at).iter().all(|b| *b == 0));
                    }
                }
                other => panic!("{other}"),
            }
            at += len;
        }
    }
    assert_eq!(at, end);
    // Two times 4 MB of files, rounded up to blocks, and their metadata.
    assert!((8_100_000..9_000_000).contains(&data_bytes), "{data_bytes}");
}

#[test]
fn with_req_one_there_is_one_extent_within_the_range() {
    let server = Server::start();
    let mut client = Client::start(connect(&server), "store");
    for (offset, len) in [(0, 512), (100, 1), (DATA, 1 << 30), (DATA - 4096, 8192)] {
        let one = client.status(REQ_ONE, offset, len);
        assert_eq!(one.len(), 1);
        assert!((1..=len).contains(&one[0].0));
        let many = client.status(0, offset, len);
        assert_eq!(many[0].1, one[0].1);
        let but_last: u32 = many[..many.len() - 1].iter().map(|(len, _)| *len).sum();
        assert!(but_last < len);
    }
}

#[test]
fn block_status_without_a_context_is_refused() {
    let server = Server::start();
    let mut client = Client::greet(connect(&server), 3);
    client.option(OPT_STRUCTURED, &[]);
    // For another export than the one that is read afterwards.
    client.option(OPT_SET_CONTEXT, &query("other", &["base:allocation"]));
    client.go("store");
    client.request(BLOCK_STATUS, 0, 9, 0, 4096);
    assert_eq!(client.reply(0), (9, Reply::Error(EINVAL)));
    assert!(client.read(0, 0, 4096).is_ok());
}

#[test]
fn an_invalid_request_fails_and_the_connection_continues() {
    let server = Server::start();
    let end = server.image.len_bytes();
    let cases = [
        (READ, 0, end, 1, EINVAL),
        (READ, 0, end - 1, 2, EINVAL),
        (READ, 0, u64::MAX, 1, EINVAL),
        (READ, 0, u64::MAX - 5, u32::MAX, EINVAL),
        (READ, 0, 0, 0, EINVAL),
        (READ, 1, 0, 1, EINVAL),
        (READ, 0x8000, 0, 1, EINVAL),
        (BLOCK_STATUS, 0, end, 1, EINVAL),
        (BLOCK_STATUS, 0, 0, 0, EINVAL),
        (BLOCK_STATUS, DF, 0, 1, EINVAL),
        (TRIM, 0, 0, 512, EPERM),
        (WRITE_ZEROES, 0, 0, 512, EPERM),
        (CACHE, 0, 0, 512, EINVAL),
        (FLUSH, 1, 0, 0, EINVAL),
        (8, 0, 0, 0, EPERM),
        (99, 0, 0, 0, EINVAL),
        (u16::MAX, u16::MAX, u64::MAX, u32::MAX, EINVAL),
    ];
    let mut chunks = Client::start(connect(&server), "store");
    let mut simple = Client::start_simple(connect(&server), "store");
    for (kind, flags, offset, len, error) in cases {
        for client in [&mut chunks, &mut simple] {
            client.request(kind, flags, 3, offset, len);
            match client.reply(0) {
                (3, Reply::Error(found) | Reply::Simple(found, _)) => assert_eq!(found, error),
                other => panic!("{other:?}"),
            }
        }
    }
    for client in [&mut chunks, &mut simple] {
        client.request(FLUSH, 0, 4, 0, 0);
        assert_eq!(client.reply(0), (4, Reply::Simple(0, Vec::new())));
        assert!(client.read(0, 0, 4096).unwrap() == expected(&server, 0, 4096));
    }
    // The flag DF requires structured replies.
    assert_eq!(simple.read(DF, 0, 4096), Err(EINVAL));
}

#[test]
fn writes_are_discarded_and_refused() {
    let server = Server::start();
    let mut client = Client::start(connect(&server), "store");
    for len in [0, 1, 28, 4096, 1 << 20] {
        client.request(WRITE, 0, 8, 0, len);
        client.send(&vec![0x25; usize::try_from(len).unwrap()]);
        assert_eq!(client.reply(0), (8, Reply::Simple(EPERM, Vec::new())));
    }
    assert!(client.read(0, 0, 4096).unwrap() == expected(&server, 0, 4096));
}

#[test]
fn many_requests_at_once_are_all_answered() {
    let server = Server::start();
    let mut client = Client::start(connect(&server), "store");
    let count = 1000;
    let offset = |cookie: u64| DATA + cookie * 4096 % (4 << 20);
    let requests: Vec<u8> = (0..count)
        .flat_map(|cookie| request_bytes(READ, DF, cookie, offset(cookie), 4096))
        .collect();
    let mut writer = client.stream.try_clone().unwrap();
    let sending = std::thread::spawn(move || writer.write_all(&requests).unwrap());
    let mut seen = vec![false; usize::try_from(count).unwrap()];
    for _ in 0..count {
        let (cookie, reply) = client.reply(0);
        let Reply::Data {
            offset: at,
            data,
            done: true,
        } = reply
        else {
            panic!("{reply:?}");
        };
        assert_eq!(at, offset(cookie));
        assert!(data == expected(&server, at, 4096));
        let seen = &mut seen[usize::try_from(cookie).unwrap()];
        assert!(!*seen, "answered twice");
        *seen = true;
    }
    sending.join().unwrap();
}

#[test]
fn requests_before_a_disconnect_are_answered() {
    let dir = tree();
    let (ours, served) = single(dir.path(), &options());
    let mut client = Client::start(ours, "store");
    client.request(READ, 0, 1, DATA, 4096);
    client.request(BLOCK_STATUS, 0, 2, 0, 4096);
    client.request(DISC, 0, 3, 0, 0);
    let mut cookies = vec![client.reply(0).0, client.reply(0).0];
    cookies.sort_unstable();
    assert_eq!(cookies, [1, 2]);
    assert!(client.is_at_end());
    match served.end.join().unwrap().unwrap() {
        Served::Client(stats) => assert_eq!((stats.requests, stats.errors), (2, 0)),
        Served::NoExport => panic!("it was somebody"),
    }
}

#[test]
fn a_failed_read_is_an_error_and_the_connection_continues() {
    let dir = tree();
    let (ours, served) = single(dir.path(), &options());
    let mut client = Client::start(ours, "store");
    let image = &served.image;
    // This read plans the tree.
    assert!(client.read(0, DATA, 4096).is_ok());
    let file = std::fs::File::options()
        .write(true)
        .open(dir.path().join("one/file3000001"))
        .unwrap();
    file.set_len(10).unwrap();
    let end = DATA + (9 << 20);
    let mut errors = 0;
    for offset in (DATA..end).step_by(1 << 20) {
        let mut expected = vec![0; 1 << 20];
        match image.read_exact_at(&mut expected, offset) {
            Ok(()) => assert!(client.read(0, offset, 1 << 20).unwrap() == expected),
            Err(_) => {
                errors += 1;
                assert_eq!(client.read(0, offset, 1 << 20), Err(EIO));
                assert_eq!(client.read(DF, offset, 1 << 20), Err(EIO));
            }
        }
    }
    assert!((1..=4).contains(&errors), "{errors}");
    drop(client);
    match served.end.join().unwrap().unwrap() {
        Served::Client(stats) => assert_eq!(stats.errors, 2 * errors),
        Served::NoExport => panic!("it was somebody"),
    }
}

#[test]
fn options_are_answered_as_the_protocol_requires() {
    let server = Server::start();
    let mut client = Client::greet(connect(&server), 3);
    let kind = |answers: Vec<Answer>| answers.last().unwrap().kind;
    let listed = client.option(OPT_LIST, &[]);
    let names: Vec<_> = listed.iter().map(|answer| answer.data.clone()).collect();
    assert_eq!(names[0], b"\0\0\0\x05storethe disk store");
    assert_eq!(names[1], b"\0\0\0\x05otherthe disk other");
    assert_eq!(
        listed.iter().map(|a| a.kind).collect::<Vec<_>>(),
        [SERVER, SERVER, ACK]
    );
    assert_eq!(kind(client.option(OPT_LIST, &[0])), INVALID);
    assert_eq!(kind(client.option(OPT_STARTTLS, &[])), POLICY);
    assert_eq!(kind(client.option(99, b"x")), UNSUP);
    assert_eq!(kind(client.option(4, &[])), UNSUP);
    assert_eq!(
        kind(client.option(OPT_INFO, &wanted("no such", &[]))),
        UNKNOWN
    );
    assert_eq!(
        kind(client.option(OPT_GO, &wanted("no such", &[]))),
        UNKNOWN
    );
    assert_eq!(kind(client.option(OPT_GO, b"")), INVALID);
    // Contexts require structured replies.
    let all = ["base:allocation"];
    assert_eq!(
        kind(client.option(OPT_SET_CONTEXT, &query("store", &all))),
        INVALID
    );
    assert_eq!(kind(client.option(OPT_STRUCTURED, &[1])), INVALID);
    assert_eq!(kind(client.option(OPT_STRUCTURED, &[])), ACK);
    for queries in [&[][..], &["base:"], &all, &["x:y", "base:allocation"]] {
        let contexts = client.option(OPT_LIST_CONTEXT, &query("store", queries));
        assert_eq!(contexts.len(), 2, "{queries:?}");
        assert_eq!(contexts[0].kind, CONTEXT);
    }
    for queries in [&[][..], &["base:"], &["x:y"], &["base:allocatio"]] {
        let contexts = client.option(OPT_SET_CONTEXT, &query("store", queries));
        assert_eq!(contexts.len(), 1, "{queries:?}");
    }
    assert_eq!(
        kind(client.option(OPT_SET_CONTEXT, &query("no such", &all))),
        UNKNOWN
    );
    let info = client.option(OPT_INFO, &wanted("", &[1, 2, 3, 77]));
    assert_eq!(info.iter().filter(|a| a.kind == INFO).count(), 4);
    assert_eq!(info[1].data, b"\0\x01store");
    assert_eq!(info[2].data, b"\0\x02the disk store");
    assert_eq!(info[3].data, [0, 3, 0, 0, 0, 1, 0, 0, 16, 0, 2, 0, 0, 0]);
    client.go("");
    assert_eq!(client.len_bytes, server.image.len_bytes());
    // HAS_FLAGS, READ_ONLY, SEND_FLUSH, SEND_DF, CAN_MULTI_CONN.
    assert_eq!(client.flags, 1 | 2 | 4 | 0x80 | 0x100);
}

#[test]
fn a_failed_selection_of_contexts_selects_none() {
    let server = Server::start();
    for fails in [query("no such", &[]), vec![0xff; 9]] {
        let mut client = Client::greet(connect(&server), 3);
        client.option(OPT_STRUCTURED, &[]);
        client.option(OPT_SET_CONTEXT, &query("store", &["base:allocation"]));
        client.option(OPT_SET_CONTEXT, &fails);
        client.go("store");
        client.request(BLOCK_STATUS, 0, 9, 0, 4096);
        assert_eq!(client.reply(0), (9, Reply::Error(EINVAL)));
    }
}

#[test]
fn export_name_works_with_and_without_padding() {
    let server = Server::start();
    for (flags, padding) in [(3, 0), (1, 124), (0, 124), (2, 0)] {
        let mut client = Client::greet(connect(&server), flags);
        client.send_option(OPT_EXPORT_NAME, b"store");
        let len = u64::from_be_bytes(client.bytes());
        assert_eq!(len, server.image.len_bytes());
        assert_eq!(client.bytes(), [1, 7]);
        assert_eq!(client.data(padding), vec![0; padding]);
        assert!(client.read(0, 0, 4096).unwrap() == expected(&server, 0, 4096));
    }
}

#[test]
fn requests_that_come_with_the_last_option_are_answered() {
    let server = Server::start();
    let mut client = Client::greet(connect(&server), 3);
    let both = [
        option_bytes(OPT_EXPORT_NAME, b"other"),
        request_bytes(READ, 0, 6, 1024, 4),
    ];
    client.send(&both.concat());
    client.data(10);
    let magic = 0xe0f5_e1e2u32.to_le_bytes().to_vec();
    assert_eq!(client.reply(4), (6, Reply::Simple(0, magic)));
}

#[test]
fn a_client_that_only_lists_exports_does_not_count() {
    let dir = tree();
    let (ours, served) = single(dir.path(), &options());
    let mut client = Client::greet(ours, 3);
    client.option(OPT_LIST, &[]);
    assert_eq!(client.option(OPT_ABORT, b"bye")[0].kind, ACK);
    assert!(client.is_at_end());
    assert_eq!(served.end.join().unwrap().unwrap(), Served::NoExport);
    let (ours, served) = single(dir.path(), &options());
    drop(ours);
    assert_eq!(served.end.join().unwrap().unwrap(), Served::NoExport);
}
