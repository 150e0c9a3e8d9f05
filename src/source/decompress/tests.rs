use super::*;

use std::io::Write;

use Compression::{Brotli, Bzip2, Gzip, None, Xz, Zstd};

/// Compresses well.
fn text(repeat: usize) -> Vec<u8> {
    (0..repeat)
        .flat_map(|n| format!("line {n}\n").into_bytes())
        .collect()
}

/// Returns a brotli stream that stores `bytes` as they are (RFC 7932, 9.2), at most 2^16 of them.
fn stored_brotli(bytes: &[u8]) -> Vec<u8> {
    // One bit: a window of 2^16. Then a block that is not the last (1 bit), 4 nibbles of length (2 bits), the length
    // less one (16 bits), not compressed (1 bit), and padding up to a byte.
    let length = u32::try_from(bytes.len() - 1).unwrap();
    let header = (length << 4 | 1 << 20).to_le_bytes();
    // The last block, empty: 1 bit, 1 bit.
    [&header[..3], bytes, &[0b11]].concat()
}

fn compressed(compression: Compression, bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    match compression {
        None => out.extend_from_slice(bytes),
        Xz => drop(liblzma::read::XzEncoder::new(bytes, 6).read_to_end(&mut out)),
        Zstd => out = zstd::encode_all(bytes, 3).unwrap(),
        Brotli => out = stored_brotli(bytes),
        Bzip2 => {
            let level = bzip2::Compression::fast();
            drop(bzip2::read::BzEncoder::new(bytes, level).read_to_end(&mut out));
        }
        Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(&mut out, flate2::Compression::fast());
            encoder.write_all(bytes).unwrap();
            encoder.finish().unwrap();
        }
    }
    out
}

fn read(compression: Compression, bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    decompress(compression, bytes)?.read_to_end(&mut out)?;
    Ok(out)
}

const ALL: [Compression; 5] = [Xz, Zstd, Brotli, Bzip2, Gzip];

#[test]
fn compressed_data_round_trips() {
    for compression in ALL.into_iter().chain([None]) {
        for bytes in [text(1), text(5000)] {
            let packed = compressed(compression, &bytes);
            assert_eq!(
                read(compression, &packed).unwrap(),
                bytes,
                "{compression:?}"
            );
        }
    }
}

#[test]
fn concatenated_streams_are_one() {
    let [a, b] = [text(3), text(700)];
    for compression in [Xz, Zstd, Bzip2, Gzip] {
        let both = [compressed(compression, &a), compressed(compression, &b)].concat();
        assert_eq!(
            read(compression, &both).unwrap(),
            [&a[..], &b].concat(),
            "{compression:?}"
        );
    }
    let both = [stored_brotli(&a), stored_brotli(&b)].concat();
    assert!(read(Brotli, &both).is_err());
}

#[test]
fn a_stream_truncated_anywhere_is_an_error() {
    for compression in ALL {
        let whole = compressed(compression, &text(200));
        // One complete stream less a byte, and a truncated second one.
        for (streams, from) in [
            (whole.clone(), 0),
            ([&whole[..], &whole].concat(), whole.len() + 1),
        ] {
            for len in from..streams.len() {
                let result = read(compression, &streams[..len]);
                assert!(
                    result.is_err(),
                    "{compression:?} cut to {len} of {}",
                    streams.len()
                );
            }
        }
    }
}

#[test]
fn trailing_garbage_is_an_error() {
    for compression in ALL {
        for len in [1, 7, READ_BYTES + 1] {
            let bytes = [compressed(compression, &text(200)), vec![b'x'; len]].concat();
            assert!(
                read(compression, &bytes).is_err(),
                "{compression:?} and {len} bytes"
            );
        }
    }
}

#[test]
fn a_corrupt_byte_gives_an_error_or_other_bytes() {
    for compression in ALL {
        let whole = compressed(compression, &text(40));
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x55;
            let mut out = Vec::new();
            let mut reader = decompress(compression, &bytes[..]).unwrap().take(1 << 20);
            drop(reader.read_to_end(&mut out));
        }
    }
}

#[test]
fn windows_over_the_limit_are_refused() {
    // A zstd frame with a window of 2^28 bytes (RFC 8878, 3.1.1.1.2), one empty block.
    let frame = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 18 << 3, 0x01, 0x00, 0x00];
    let refused = read(Zstd, &frame).unwrap_err().to_string();
    assert!(refused.contains("memory"), "{refused}");
    let within = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 17 << 3, 0x01, 0x00, 0x00];
    assert_eq!(read(Zstd, &within).unwrap(), b"");
    // Large windows of brotli begin like this.
    assert!(read(Brotli, &[0x11, 30, 0x03]).is_err());
    let mut options = liblzma::stream::LzmaOptions::new_preset(6).unwrap();
    options.dict_size(256 << 20);
    let mut filters = liblzma::stream::Filters::new();
    filters.lzma2(&options);
    let stream = Stream::new_stream_encoder(&filters, liblzma::stream::Check::Crc32).unwrap();
    let mut packed = Vec::new();
    let bytes = text(10);
    liblzma::read::XzEncoder::new_stream(&bytes[..], stream)
        .read_to_end(&mut packed)
        .unwrap();
    let refused = read(Xz, &packed).unwrap_err().to_string();
    assert!(refused.contains("memory"), "{refused}");
}

#[test]
fn compressions_have_the_names_of_nix_and_http() {
    let names = [
        ("none", None),
        ("xz", Xz),
        ("zstd", Zstd),
        ("br", Brotli),
        ("bzip2", Bzip2),
    ];
    for (name, compression) in names.into_iter().chain([("gzip", Gzip), ("", Bzip2)]) {
        assert_eq!(Compression::from_narinfo(name), Some(compression));
    }
    assert_eq!(Compression::from_narinfo("lzma"), Option::None);
    for (name, compression) in [
        ("BR", Brotli),
        (" x-gzip", Gzip),
        ("identity", None),
        ("zstd", Zstd),
    ] {
        assert_eq!(Compression::from_content_encoding(name), Some(compression));
    }
}
