//! Input of an NBD client: options, then requests. Either the input's raw bytes, or messages generated from them.

use std::cell::OnceCell;
use std::sync::Arc;

use lazystore::device::nbd::disk::NbdDisk;
use lazystore::device::nbd::execute::{Action, ReplyProgress, dispatch};
use lazystore::device::nbd::negotiation::{
    Encryption, Negotiation, OPTION_DATA_MAX_BYTES, OPTIONS_MAX, Session, Step,
};
use lazystore::device::nbd::reply::ReplyBuffer;
use lazystore::device::nbd::request::{Parsed, Request, parse};
use lazystore::device::nbd::{Export, Exports};
use lazystore::image::Image;
use lazystore::source::IoMode;

use super::disk::disk;
use super::input::Input;

#[path = "nbd/replies.rs"]
mod replies;

thread_local! {
    static EXPORTS: OnceCell<Exports> = const { OnceCell::new() };
}

/// Maximum length of a generated read: more than two chunks.
const READ_BYTES: u32 = 600_000;

/// These bits select such a long read. Comparing one takes as long as twenty short reads, so few inputs select it.
const LONG_READ: u8 = 0x3c;

/// Maximum length of the replies to one option: two disks, each with its name and description.
const ANSWER_MAX_BYTES: usize = 1024;

/// Must not panic. A separate strict reader checks all replies.
pub fn run(data: &[u8]) {
    EXPORTS.with(|exports| {
        let exports = exports.get_or_init(two_disks);
        let mut input = Input(data);
        let kind = input.byte();
        let encryption = match kind / 4 % 3 {
            0 => Encryption::NotOffered,
            1 => Encryption::Required,
            _ => Encryption::Active,
        };
        let session = match kind % 4 {
            0 => {
                let part = usize::from(input.byte()) + 1;
                negotiate(exports, encryption, input.0, part)
            }
            1 => {
                let bytes = made_options(&mut input);
                negotiate(exports, encryption, &bytes, 1 << 20)
            }
            flags => Some(a_session(exports, flags == 2)),
        };
        if let Some(session) = session {
            transmit(&session, &mut input);
        }
    });
}

fn two_disks() -> Exports {
    let export = |name: &str, seed| Export {
        name: name.parse().unwrap(),
        description: "a disk".to_owned(),
        image: disk(seed),
    };
    Exports::new(vec![export("a", 0), export("b", 1)]).unwrap()
}

/// The session of a well-behaved client: with structured replies for one disk, without for the other.
fn a_session(exports: &Exports, structured: bool) -> Session {
    let option =
        |number: u32, data: &[u8]| option(number, u32::try_from(data.len()).unwrap(), data);
    let mut bytes = 3u32.to_be_bytes().to_vec();
    if structured {
        bytes.extend(option(8, &[]));
        bytes.extend(option(
            10,
            b"\0\0\0\x01a\0\0\0\x01\0\0\0\x0fbase:allocation",
        ));
    }
    let go = match structured {
        true => b"\0\0\0\x01a\0\0",
        false => b"\0\0\0\x01b\0\0",
    };
    bytes.extend(option(7, go));
    let session = negotiate(exports, Encryption::NotOffered, &bytes, bytes.len()).unwrap();
    assert_eq!(
        (session.structured, session.base_allocation),
        (structured, structured)
    );
    session
}

fn option(number: u32, len: u32, data: &[u8]) -> Vec<u8> {
    let header = [number.to_be_bytes(), len.to_be_bytes()].concat();
    [b"IHAVEOPT", &header[..], data].concat()
}

/// Flags and options with the right magic and mostly right lengths.
fn made_options(input: &mut Input<'_>) -> Vec<u8> {
    let mut bytes = u32::from(input.byte() % 4).to_be_bytes().to_vec();
    for _ in 0..input.byte() % 80 {
        let number = input.byte() % 12;
        let len = usize::from(input.byte());
        let lies = input.byte() == 0xff;
        let data = input.take(len).to_vec();
        let len = match lies {
            true => input.word32(),
            false => u32::try_from(data.len()).unwrap(),
        };
        bytes.extend(option(number.into(), len, &data));
    }
    bytes
}

/// Processes `bytes` in parts of length `part`. After STARTTLS, the following bytes count as encrypted.
fn negotiate(
    exports: &Exports,
    encryption: Encryption,
    bytes: &[u8],
    part: usize,
) -> Option<Session> {
    let mut out = Vec::new();
    let mut negotiation = Negotiation::begin(exports, encryption, &mut out);
    let mut before_tls = encryption == Encryption::Required;
    assert_eq!(out.len(), 18);
    let (mut start, mut end, mut answers) = (0, 0, 0);
    loop {
        out.clear();
        match negotiation.step(&bytes[start..end], &mut out) {
            Ok(Step::NeedMore) => {
                assert!(out.is_empty());
                assert!(end - start <= OPTION_DATA_MAX_BYTES + 16);
                if end == bytes.len() {
                    return None;
                }
                end = bytes.len().min(end + part);
            }
            Ok(Step::Consumed(count)) => {
                assert!((1..=end - start).contains(&count));
                assert!(out.len() <= ANSWER_MAX_BYTES);
                answers += replies::check_answers(&out, before_tls, false);
                assert!(answers <= OPTIONS_MAX);
                start += count;
            }
            Ok(Step::StartTls(count)) => {
                assert!(before_tls);
                assert_eq!(count, 16);
                answers += replies::check_answers(&out, true, true);
                start += count;
                negotiation.tls_started();
                before_tls = false;
            }
            Ok(Step::Transmission(count, session)) => {
                assert!(!before_tls);
                assert!(count <= end - start);
                let export = asked_for(exports, &bytes[start..start + count]);
                assert!(Arc::ptr_eq(&session.export.image, &export.image));
                assert!(session.structured || !session.base_allocation);
                return Some(session);
            }
            Ok(Step::Abort) => {
                replies::check_answers(&out, before_tls, true);
                return None;
            }
            Err(error) => {
                assert_eq!(error.to_string().lines().count(), 1);
                return None;
            }
        }
    }
}

/// The disk that an option `EXPORT_NAME` or `GO` names.
fn asked_for<'e>(exports: &'e Exports, option: &[u8]) -> &'e Export {
    let (header, data) = option.split_at(16);
    let name = match header[11] {
        1 => data,
        _ => &data[4..][..usize::from(data[3])],
    };
    match name {
        b"" | b"a" => &exports.all()[0],
        b"b" => &exports.all()[1],
        other => panic!("there is no {}", other.escape_ascii()),
    }
}

fn transmit(session: &Session, input: &mut Input<'_>) {
    let image = &session.export.image;
    let disk = NbdDisk::new(Arc::clone(image));
    let mut out = ReplyBuffer::default();
    while !input.is_empty() {
        let bytes = request(input, image);
        let Ok(parsed) = parse(&bytes, session) else {
            assert_ne!(bytes[..4], 0x2560_9513u32.to_be_bytes());
            return;
        };
        out.clear(usize::MAX);
        match dispatch(&parsed, &mut out) {
            Action::Disconnect => return,
            Action::Answered | Action::Refused(_) => {}
            Action::Execute(mut work) => {
                while work.advance(&disk, IoMode::Blocking, &mut out).unwrap()
                    == ReplyProgress::More
                {}
            }
        }
        check(&parsed, out.bytes(), image);
    }
}

/// The next 28 bytes, or a generated request near a boundary.
fn request(input: &mut Input<'_>, image: &Image) -> [u8; 28] {
    let made = input.byte();
    if made == 0xff {
        return input.bytes();
    }
    let offset = match made % 4 {
        0 => u64::from(input.word16()),
        1 => (128 << 30) + u64::from(input.word16()),
        2 => image.len_bytes() - u64::from(input.word16()),
        _ => input.word64(),
    };
    let len = match made & LONG_READ {
        LONG_READ => input.word32() % READ_BYTES,
        _ => input.word16().into(),
    };
    let flags = u16::from(input.byte());
    let kind = u16::from(input.byte() % 10);
    let mut bytes = [0; 28];
    let parts: [&[u8]; 6] = [
        &0x2560_9513u32.to_be_bytes(),
        &(flags & 0xc).to_be_bytes(),
        &kind.to_be_bytes(),
        &input.bytes::<8>(),
        &offset.to_be_bytes(),
        &len.to_be_bytes(),
    ];
    bytes.copy_from_slice(&parts.concat());
    bytes
}

fn check(parsed: &Parsed, bytes: &[u8], image: &Image) {
    let cookie = parsed.cookie;
    match parsed.request {
        Request::Read {
            offset,
            len_bytes,
            unfragmented,
        } => {
            let len = usize::try_from(len_bytes).unwrap();
            let mut expected = vec![0; len];
            image.read_exact_at(&mut expected, offset).unwrap();
            let found = match parsed.structured {
                true => replies::data_of_chunks(bytes, cookie, offset, len, unfragmented),
                false => replies::simple(bytes, cookie, 0).to_vec(),
            };
            assert!(found == expected, "{len} bytes at {offset}");
        }
        Request::BlockStatus {
            offset,
            len_bytes,
            one_extent,
        } => {
            for (at, len, hole) in replies::extents(bytes, cookie, offset, len_bytes, one_extent) {
                let looked_at = len.min(8192);
                let mut bytes = vec![1; usize::try_from(looked_at).unwrap()];
                image.read_exact_at(&mut bytes, at).unwrap();
                assert!(!hole || bytes.iter().all(|byte| *byte == 0));
            }
        }
        Request::Flush => assert!(replies::simple(bytes, cookie, 0).is_empty()),
        Request::Refused(refusal) => {
            let code = refusal.code().number();
            assert!([1, 22].contains(&code));
            match parsed.structured {
                true => replies::error_chunk(bytes, cookie, code),
                false => assert!(replies::simple(bytes, cookie, code).is_empty()),
            }
        }
        Request::Disconnect => panic!("there is no answer"),
    }
}
