//! Formats numbers and errors for people.

use std::io::IsTerminal;

/// `1 path`, `2 paths`.
pub fn counted(count: impl TryInto<u64>, what: &str) -> String {
    match count.try_into() {
        Ok(1) => format!("1 {what}"),
        Ok(count) => format!("{count} {what}s"),
        Err(_) => format!("many {what}s"),
    }
}

/// Returns a number of bytes in decimal units, as disks and networks count: `512 bytes`, `10.4 MB`.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["kB", "MB", "GB", "TB", "PB", "EB"];
    if count < 1000 {
        return counted(count, "byte");
    }
    // Only one decimal is shown, so the loss of precision does not matter.
    #[expect(clippy::cast_precision_loss)]
    let mut value = count as f64 / 1e3;
    let mut unit = 0;
    // A value that would be rounded to 1000.0 is shown as 1.0 of the next unit.
    while value >= 999.95 && unit + 1 < UNITS.len() {
        value /= 1e3;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// Removes Rust's ` (os error 2)` from `text`, because the words before it say the same.
pub fn without_errno(text: &str) -> String {
    const START: &str = " (os error ";
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once(START) {
        out.push_str(before);
        let digits = after.bytes().take_while(u8::is_ascii_digit).count();
        match after[digits..].strip_prefix(')') {
            Some(tail) if digits > 0 => rest = tail,
            _ => {
                out.push_str(START);
                rest = after;
            }
        }
    }
    out.push_str(rest);
    out
}

/// Returns whether to use colours on `stream`: it is a terminal with colours, and NO_COLOR (no-color.org) is not set.
pub fn is_coloured(stream: &impl IsTerminal) -> bool {
    let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    stream.is_terminal() && !is_set("NO_COLOR") && !is_dumb
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_have_a_plural() {
        assert_eq!(counted(1_u64, "path"), "1 path");
        assert_eq!(counted(0_usize, "path"), "0 paths");
        assert_eq!(counted(-1, "path"), "many paths");
    }

    #[test]
    fn bytes_have_units() {
        let cases = [
            (0, "0 bytes"),
            (1, "1 byte"),
            (999, "999 bytes"),
            (1000, "1.0 kB"),
            (10_400_000, "10.4 MB"),
            (999_949_999, "999.9 MB"),
            (999_950_000, "1.0 GB"),
            (6_200_000_000, "6.2 GB"),
            (u64::MAX, "18.4 EB"),
        ];
        for (count, text) in cases {
            assert_eq!(bytes(count), text);
        }
    }

    #[test]
    fn errno_numbers_are_removed() {
        let error = std::io::Error::from_raw_os_error(2);
        assert_eq!(
            without_errno(&format!("a: {error}; b: {error}")),
            "a: No such file or directory; b: No such file or directory"
        );
        for text in [
            "",
            "x (os error )",
            "x (os error 2",
            "(os error 2)",
            "é (os error x) y",
        ] {
            assert_eq!(without_errno(text), text);
        }
    }
}
