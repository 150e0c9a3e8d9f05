//! Clients that violate the protocol, send wrong lengths, flood the server, or stop within a message.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use lazystore::device::nbd::{NbdError, NbdOptions, Served};

use super::client::*;
use super::server::{Server, Single, options, single, tree};
use crate::common::process::Deadline;

/// The error with which the connection ended.
fn error(served: Single) -> NbdError {
    served.end.join().unwrap().unwrap_err()
}

fn impatient() -> NbdOptions {
    NbdOptions {
        negotiation: Duration::from_millis(50),
        ..options()
    }
}

#[test]
fn protocol_violations_end_the_connection() {
    let dir = tree();
    let (ours, served) = single(dir.path(), &options());
    let mut client = Client::greet(ours, 4 | 1);
    assert!(client.is_at_end());
    assert!(matches!(error(served), NbdError::Flags { flags: 5 }));

    let (ours, served) = single(dir.path(), &options());
    let mut client = Client::greet(ours, 3);
    client.send(b"GET / HTTP/1.1\r\n");
    assert!(client.is_at_end());
    assert!(matches!(error(served), NbdError::OptionMagic { .. }));

    // Without the fixed newstyle handshake there are no error replies.
    let (ours, served) = single(dir.path(), &options());
    let mut client = Client::greet(ours, 0);
    client.send_option(OPT_LIST, &[]);
    assert!(client.is_at_end());
    assert!(matches!(error(served), NbdError::NotFixed { option: 3 }));

    let (ours, served) = single(dir.path(), &options());
    let mut client = Client::greet(ours, 3);
    client.send_option(OPT_EXPORT_NAME, b"no\nsuch");
    assert!(client.is_at_end());
    let text = error(served).to_string();
    assert!(text.contains("no\\nsuch"), "{text}");

    let (ours, served) = single(dir.path(), &options());
    let mut client = Client::start(ours, "store");
    client.send(&[0x77; 28]);
    assert!(client.is_at_end());
    assert!(matches!(error(served), NbdError::RequestMagic { .. }));
}

#[test]
fn disconnecting_within_a_message_is_an_error() {
    let dir = tree();
    let option = option_bytes(OPT_GO, &wanted("store", &[]));
    for sent in 1..option.len() {
        let (ours, served) = single(dir.path(), &options());
        let mut client = Client::greet(ours, 3);
        client.send(&option[..sent]);
        drop(client);
        assert!(matches!(error(served), NbdError::UnexpectedEof), "{sent}");
    }
    let request = request_bytes(READ, 0, 1, 0, 512);
    for sent in 1..request.len() {
        let (ours, served) = single(dir.path(), &options());
        let mut client = Client::start(ours, "store");
        client.send(&request[..sent]);
        drop(client);
        assert!(matches!(error(served), NbdError::UnexpectedEof), "{sent}");
    }
    let (ours, served) = single(dir.path(), &options());
    let mut client = Client::start(ours, "store");
    client.request(WRITE, 0, 1, 0, 1000);
    client.send(&[0; 999]);
    drop(client);
    assert!(matches!(error(served), NbdError::UnexpectedEof));
}

#[test]
fn messages_may_come_byte_by_byte() {
    let server = Server::start();
    let mut client = Client::greet(UnixStream::connect(&server.socket).unwrap(), 3);
    for byte in option_bytes(OPT_GO, &wanted("store", &[])) {
        client.send(&[byte]);
    }
    assert_eq!(client.answers(OPT_GO).last().unwrap().kind, ACK);
    for byte in request_bytes(READ, 0, 1, 1024, 512) {
        client.send(&[byte]);
    }
    let (_, reply) = client.reply(512);
    let mut expected = vec![0; 512];
    server.image.read_exact_at(&mut expected, 1024).unwrap();
    assert_eq!(reply, Reply::Simple(0, expected));
}

#[test]
fn a_handshake_without_progress_times_out() {
    let dir = tree();
    // Silent; an incomplete option; endless oversized options.
    let (_ours, served) = single(dir.path(), &impatient());
    assert!(matches!(error(served), NbdError::HandshakeTimeout { .. }));

    let (ours, served) = single(dir.path(), &impatient());
    let mut client = Client::greet(ours, 3);
    client.send(b"IHAVEOP");
    assert!(matches!(error(served), NbdError::HandshakeTimeout { .. }));

    let (ours, served) = single(dir.path(), &impatient());
    let mut client = Client::greet(ours, 3);
    client.send(b"IHAVEOPT\0\0\0\x03\xff\xff\xff\xff");
    let junk = [0; 65_536];
    while client.stream.write_all(&junk).is_ok() {}
    assert!(matches!(error(served), NbdError::HandshakeTimeout { .. }));
}

#[test]
fn a_handshake_whose_replies_are_not_read_times_out() {
    let dir = tree();
    let (mut ours, served) = single(dir.path(), &impatient());
    ours.write_all(&3u32.to_be_bytes()).unwrap();
    // The maximum number of options. Their replies contain long names and exceed the sockets' buffers.
    let long = option_bytes(99, &vec![0; 60_000]);
    while ours.write_all(&long).is_ok() {}
    let error = error(served);
    let is_end = matches!(
        error,
        NbdError::HandshakeTimeout { .. } | NbdError::TooManyOptions { .. }
    );
    assert!(is_end, "{error}");
}

#[test]
fn the_number_of_options_is_limited() {
    let dir = tree();
    let (ours, served) = single(dir.path(), &options());
    let mut client = Client::greet(ours, 3);
    for _ in 0..64 {
        client.option(OPT_LIST, &[]);
    }
    client.send_option(OPT_LIST, &[]);
    assert!(client.is_at_end());
    assert!(matches!(
        error(served),
        NbdError::TooManyOptions { max: 64 }
    ));
}

#[test]
fn an_oversized_option_is_discarded() {
    let server = Server::start();
    let mut client = Client::connect(&server.socket);
    let long = vec![b'x'; (64 << 10) + 1];
    assert_eq!(client.option(OPT_INFO, &long)[0].kind, TOO_BIG);
    assert_eq!(client.option(OPT_SET_CONTEXT, &long[1..])[0].kind, INVALID);
    client.go("store");
    assert!(client.read(0, 0, 4096).is_ok());

    let dir = tree();
    let (ours, served) = single(dir.path(), &options());
    let mut client = Client::greet(ours, 3);
    client.send(b"IHAVEOPT\0\0\0\x01\xff\xff\xff\xff");
    assert!(client.is_at_end());
    assert!(matches!(error(served), NbdError::UnknownExport { .. }));
}

#[test]
fn the_server_stops_receiving_from_a_client_that_reads_no_replies() {
    let dir = tree();
    let (ours, served) = single(dir.path(), &options());
    let mut client = Client::start(ours, "store");
    client
        .stream
        .set_write_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    // All kinds of requests: short reads, long unfragmented reads, block status.
    let flood: Vec<u8> = (0..64u64)
        .flat_map(|cookie| match cookie % 4 {
            0 => request_bytes(READ, 0, cookie, 128 << 30, 4096),
            1 => request_bytes(READ, DF, cookie, 128 << 30, 32 << 20),
            2 => request_bytes(BLOCK_STATUS, 0, cookie, 0, u32::MAX),
            _ => request_bytes(WRITE_ZEROES, 0, cookie, 0, 1),
        })
        .collect();
    let mut rounds = 0;
    while client.stream.write_all(&flood).is_ok() {
        rounds += 1;
        assert!(rounds < 100_000, "it is read without end");
    }
    drop(client);
    let _limit = Deadline::new("the connection to end", Duration::from_secs(60));
    // The connection may have ended within a message.
    match served.end.join().unwrap() {
        Ok(Served::Client(_)) | Err(NbdError::UnexpectedEof) => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_client_that_shuts_down_sending_still_gets_the_replies() {
    let dir = tree();
    let (ours, served) = single(dir.path(), &options());
    let mut client = Client::start(ours, "store");
    client.request(READ, DF, 1, 128 << 30, 4 << 20);
    client.stream.shutdown(Shutdown::Write).unwrap();
    let (_, reply) = client.reply(0);
    assert!(matches!(reply, Reply::Data { done: true, .. }));
    assert!(client.is_at_end());
    assert!(served.end.join().unwrap().is_ok());
}

#[test]
fn disconnecting_within_a_long_reply_leaks_nothing() {
    let dir = tree();
    for flags in [0, DF] {
        let (ours, served) = single(dir.path(), &options());
        let mut client = Client::start(ours, "store");
        for cookie in 0..8 {
            client.request(READ, flags, cookie, 128 << 30, 8 << 20);
        }
        client.stream.read_exact(&mut [0; 100_000]).unwrap();
        drop(client);
        let _limit = Deadline::new("the connection to end", Duration::from_secs(60));
        match served.end.join().unwrap() {
            Ok(Served::Client(_)) => {}
            other => panic!("{other:?}"),
        }
    }
}
