//! SHA-256 hashes of NARs in Nix's notations: base16, nix32 and base64.
//!
//! Accepts what `nix-store --load-db` accepts (`Hash::parseAny` in Nix's `src/libutil/hash.cc`): an optional `sha256:`
//! and then digits, whose number determines the notation. SRI hashes (`sha256-` and base64) are accepted too.

const BASE16: &[u8; 16] = b"0123456789abcdef";
/// Nix's own base32, without e, o, t and u.
const NIX32: &[u8; 32] = b"0123456789abcdfghijklmnpqrsvwxyz";
const BASE64: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Maps a byte to its value as a digit, if it is one.
struct Digits([Option<u8>; 256]);

static BASE16_DIGITS: Digits = Digits::new(BASE16);
static NIX32_DIGITS: Digits = Digits::new(NIX32);
static BASE64_DIGITS: Digits = Digits::new(BASE64);

impl Digits {
    const fn new(alphabet: &[u8]) -> Self {
        let mut values = [None; 256];
        let mut value: u8 = 0;
        while (value as usize) < alphabet.len() {
            values[alphabet[value as usize] as usize] = Some(value);
            value += 1;
        }
        Self(values)
    }

    fn value(&self, digit: u8) -> Option<u8> {
        self.0[usize::from(digit)]
    }
}

/// Parses a SHA-256. `None` if `text` is not a hash, or a hash of another algorithm.
pub fn decode(text: &[u8]) -> Option<[u8; 32]> {
    if let Some(digits) = text.strip_prefix(b"sha256-") {
        return base64(digits);
    }
    let digits = text.strip_prefix(b"sha256:").unwrap_or(text);
    match digits.len() {
        64 => base16(digits),
        52 => nix32(digits),
        44 => base64(digits),
        _ => None,
    }
}

/// Formats `hash` in nix32, as closureInfo does.
pub fn encode(hash: &[u8]) -> String {
    let digit = |place: usize| {
        let (byte, shift) = (place * 5 / 8, place * 5 % 8);
        let next = hash.get(byte + 1).copied().unwrap_or(0);
        let bits = u16::from_le_bytes([hash[byte], next]) >> shift & 31;
        char::from(NIX32[usize::from(bits)])
    };
    (0..(hash.len() * 8).div_ceil(5)).rev().map(digit).collect()
}

/// Returns whether `digit` belongs to Nix's base32 alphabet.
pub(super) fn is_nix32(digit: u8) -> bool {
    NIX32_DIGITS.value(digit).is_some()
}

fn base16(digits: &[u8]) -> Option<[u8; 32]> {
    let mut hash = [0; 32];
    for (byte, pair) in hash.iter_mut().zip(digits.chunks_exact(2)) {
        for digit in pair {
            *byte = *byte << 4 | BASE16_DIGITS.value(digit.to_ascii_lowercase())?;
        }
    }
    Some(hash)
}

/// In nix32 the last digit holds the lowest five bits of byte 0, and the first digit the highest bit of byte 31.
fn nix32(digits: &[u8]) -> Option<[u8; 32]> {
    let mut hash = [0; 32];
    for (place, &digit) in digits.iter().rev().enumerate() {
        let (byte, shift) = (place * 5 / 8, place * 5 % 8);
        let [low, high] = (u16::from(NIX32_DIGITS.value(digit)?) << shift).to_le_bytes();
        hash[byte] |= low;
        match hash.get_mut(byte + 1) {
            Some(next) => *next |= high,
            // 52 digits have 260 bits: the top four must be zero.
            None if high != 0 => return None,
            None => {}
        }
    }
    Some(hash)
}

/// Decodes base64: highest bits first, padded with `=` to a multiple of four digits.
pub(super) fn base64<const LEN: usize>(text: &[u8]) -> Option<[u8; LEN]> {
    let (digits, padding) = text.split_at_checked((LEN * 8).div_ceil(6))?;
    if padding.iter().any(|byte| *byte != b'=') || padding.len() != digits.len().wrapping_neg() % 4
    {
        return None;
    }
    let mut hash = [0; LEN];
    for (place, &digit) in digits.iter().enumerate() {
        let (byte, shift) = (place * 6 / 8, place * 6 % 8);
        // Put the digit into the top six of 16 bits, then shift it to its position within the byte.
        let [high, low] = ((u16::from(BASE64_DIGITS.value(digit)?) << 10) >> shift).to_be_bytes();
        hash[byte] |= high;
        match hash.get_mut(byte + 1) {
            Some(next) => *next |= low,
            None if low != 0 => return None,
            None => {}
        }
    }
    Some(hash)
}

/// `bytes` in base64, with padding (RFC 4648, section 4).
pub(crate) fn to_base64(bytes: &[u8]) -> String {
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let mut padded = [0; 4];
        padded[1..=three.len()].copy_from_slice(three);
        let number = u32::from_be_bytes(padded);
        for place in 0..4 {
            let digit = BASE64[(number >> (18 - 6 * place) & 63) as usize];
            text.push(if place > three.len() {
                '='
            } else {
                digit.into()
            });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Of the files `abc` and of an empty one, as `nix-hash --type sha256 --flat` of Nix 2.8 prints
    /// them, with `--base32`, and as `nix hash to-sri` does.
    const VECTORS: [[&str; 3]; 2] = [
        [
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
            "1b8m03r63zqhnjf7l5wnldhh7c134ap5vpj0850ymkq1iyzicy5s",
            "ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0=",
        ],
        [
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73",
            "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=",
        ],
    ];

    #[test]
    fn every_notation_decodes_to_the_same_hash() {
        for [base16, nix32, base64] in VECTORS {
            let hash = decode(base16.as_bytes()).unwrap();
            let hex: String = hash.iter().map(|b| format!("{b:02x}")).collect();
            assert_eq!(hex, base16);
            for text in [base16, nix32, base64, &base16.to_uppercase()] {
                assert_eq!(decode(text.as_bytes()), Some(hash), "{text}");
                assert_eq!(
                    decode(format!("sha256:{text}").as_bytes()),
                    Some(hash),
                    "{text}"
                );
            }
            assert_eq!(decode(format!("sha256-{base64}").as_bytes()), Some(hash));
            assert_eq!(encode(&hash), nix32);
            assert_eq!(to_base64(&hash), base64);
        }
    }

    #[test]
    fn other_texts_are_not_hashes() {
        let [base16, nix32, base64] = VECTORS[0];
        let long = "0".repeat(128);
        let not_hashes = [
            "",
            "sha256:",
            "sha256-",
            &base16[1..],
            &nix32[1..],
            &base64[1..],
            &format!("{base16}0"),
            &format!("sha256-{nix32}"),
            &format!("sha512:{long}"),
            &format!("sha1:{}", &base16[..40]),
            &base16.replace('b', "g"),
            // e, o, t and u are not among the digits.
            &nix32.replace('m', "e"),
            &nix32.to_uppercase(),
            // More than 256 bits.
            &format!("2{}", &nix32[1..]),
            &base64.replace("0=", "1="),
            &base64.replace('=', "A"),
        ];
        for text in not_hashes {
            assert_eq!(decode(text.as_bytes()), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn encoded_hashes_decode(hash in any::<[u8; 32]>()) {
            prop_assert_eq!(decode(encode(&hash).as_bytes()), Some(hash));
        }

        #[test]
        fn decoding_never_panics(text in proptest::collection::vec(any::<u8>(), 0..80)) {
            decode(&text);
        }
    }
}
