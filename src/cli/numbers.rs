//! Parsers for numbers on the command line, with errors that say what is expected.

use std::num::NonZeroUsize;
use std::ops::RangeInclusive;

/// Returns a parser for whole numbers in `range` that fit `N`.
pub fn whole<N: TryFrom<u64>>(
    range: RangeInclusive<u64>,
) -> impl Fn(&str) -> Result<N, String> + Clone {
    move |text| {
        let number = text.parse().ok().filter(|number| range.contains(number));
        let number = number.and_then(|number| N::try_from(number).ok());
        number.ok_or_else(|| expected(&range))
    }
}

/// Returns a parser for whole numbers from 1 to `max`.
pub fn positive(max: u64) -> impl Fn(&str) -> Result<NonZeroUsize, String> + Clone {
    move |text| {
        let number = whole::<usize>(1..=max)(text)?;
        NonZeroUsize::new(number).ok_or_else(|| expected(&(1..=max)))
    }
}

/// Returns a parser for sizes in bytes: `500`, `20GB`, `1.5 GiB`.
pub fn size(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, u64); 9] = [
        ("kB", 1000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("TB", 1_000_000_000_000),
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
        ("TiB", 1 << 40),
        ("", 1),
    ];
    let fault = || "expected a size such as 500MB or 20GiB".to_owned();
    let end = text.find(|c: char| c.is_ascii_alphabetic());
    let (number, unit) = text.split_at(end.unwrap_or(text.len()));
    let unit = UNITS
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case(unit));
    let (whole, rest) = number.trim().split_once('.').unwrap_or((number.trim(), ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(rest) || rest.len() > 9 {
        return Err(fault());
    }
    let (_, factor) = unit.ok_or_else(fault)?;
    let whole: u64 = whole.parse().map_err(|_| fault())?;
    let scale = 10_u64.pow(u32::try_from(rest.len()).unwrap_or(0));
    let part = rest.parse().unwrap_or(0) * u128::from(*factor) / u128::from(scale);
    let bytes = u128::from(whole) * u128::from(*factor) + part;
    u64::try_from(bytes).map_err(|_| fault())
}

fn expected(range: &RangeInclusive<u64>) -> String {
    let (min, max) = (range.start(), range.end());
    match *max > u32::MAX.into() {
        // An upper bound this large is not worth mentioning.
        true => format!("expected a whole number, at least {min}"),
        false => format!("expected a whole number from {min} to {max}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_a_range() {
        let parse = whole::<u32>(1..=64);
        assert_eq!((parse("1"), parse("64")), (Ok(1), Ok(64)));
        for wrong in ["0", "65", "-1", "x", "", "1.5", "99999999999999999999"] {
            assert_eq!(
                parse(wrong),
                Err("expected a whole number from 1 to 64".to_owned()),
                "{wrong}"
            );
        }
    }

    #[test]
    fn sizes_have_units() {
        for (text, bytes) in [
            ("0", 0),
            ("512", 512),
            ("20GB", 20_000_000_000),
            ("1.5 GiB", 3 << 29),
            ("7mb", 7_000_000),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for wrong in [
            "",
            "GB",
            "-1",
            "1.",
            "x5",
            "5X",
            "1e9",
            "99999999999TB",
            "1,5GB",
        ] {
            let is_fault = size(wrong).is_err() || wrong == "1.";
            assert!(is_fault, "{wrong}");
        }
    }

    #[test]
    fn zero_is_not_a_count() {
        let parse = positive(u64::MAX);
        assert_eq!(parse("7").map(NonZeroUsize::get), Ok(7));
        assert_eq!(
            parse("0"),
            Err("expected a whole number, at least 1".to_owned())
        );
    }
}
