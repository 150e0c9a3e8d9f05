//! Numbers on the command line, and what is said of text that is none.

use std::num::NonZeroUsize;
use std::ops::RangeInclusive;

/// A parser for whole numbers of `range`, which fit `N`.
pub fn whole<N: TryFrom<u64>>(
    range: RangeInclusive<u64>,
) -> impl Fn(&str) -> Result<N, String> + Clone {
    move |text| {
        let number = text.parse().ok().filter(|number| range.contains(number));
        let number = number.and_then(|number| N::try_from(number).ok());
        number.ok_or_else(|| expected(&range))
    }
}

/// A parser for whole numbers from 1 to `max`.
pub fn positive(max: u64) -> impl Fn(&str) -> Result<NonZeroUsize, String> + Clone {
    move |text| {
        let number = whole::<usize>(1..=max)(text)?;
        NonZeroUsize::new(number).ok_or_else(|| expected(&(1..=max)))
    }
}

fn expected(range: &RangeInclusive<u64>) -> String {
    let (min, max) = (range.start(), range.end());
    match *max > u32::MAX.into() {
        // Nobody reaches such a bound by accident.
        true => format!("expected a whole number from {min} on"),
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
    fn zero_is_no_count() {
        let parse = positive(u64::MAX);
        assert_eq!(parse("7").map(NonZeroUsize::get), Ok(7));
        assert_eq!(
            parse("0"),
            Err("expected a whole number from 1 on".to_owned())
        );
    }
}
