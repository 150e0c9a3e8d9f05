//! Writes the few macros of man(7) that the pages need.

use super::sections::Entries;

/// Escapes text so that nothing in it is a roff request or escape.
fn escaped(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-");
    match text.starts_with(['.', '\'']) {
        true => format!("\\&{text}"),
        false => text,
    }
}

fn line(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(text.as_bytes());
    out.push(b'\n');
}

/// Adds paragraphs to the current section. In `text` each paragraph is one line.
pub fn paragraphs(out: &mut Vec<u8>, text: &str) {
    for paragraph in text.split("\n\n").filter(|text| !text.is_empty()) {
        line(out, ".PP");
        line(out, &escaped(paragraph));
    }
}

/// A section of terms and their meanings; nothing if there are none.
pub fn entries(out: &mut Vec<u8>, headline: &str, entries: Entries) {
    if entries.is_empty() {
        return;
    }
    line(out, &format!(".SH \"{headline}\""));
    for (term, meaning) in entries {
        line(out, ".TP");
        line(out, &format!("\\fB{}\\fR", escaped(term)));
        line(out, &escaped(meaning));
    }
}

/// A section of preformatted lines.
pub fn preformatted(out: &mut Vec<u8>, headline: &str, text: &str) {
    if text.is_empty() {
        return;
    }
    line(out, &format!(".SH \"{headline}\""));
    line(out, ".nf");
    for one in text.lines() {
        line(out, &escaped(one.strip_prefix("  ").unwrap_or(one)));
    }
    line(out, ".fi");
}

/// A section with a comma-separated list of names.
pub fn list<'a>(out: &mut Vec<u8>, headline: &str, names: impl Iterator<Item = &'a str>) {
    let names: Vec<_> = names.map(escaped).collect();
    if !names.is_empty() {
        line(out, &format!(".SH \"{headline}\""));
        line(out, &names.join(", "));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_not_a_request() {
        assert_eq!(escaped(".B a\\b --x"), "\\&.B a\\eb \\-\\-x");
        assert_eq!(escaped("'x"), "\\&'x");
    }

    #[test]
    fn empty_sections_have_no_headline() {
        let mut out = Vec::new();
        entries(&mut out, "FILES", &[]);
        preformatted(&mut out, "EXAMPLES", "");
        list(&mut out, "SEE ALSO", [].into_iter());
        paragraphs(&mut out, "");
        assert!(out.is_empty());
    }
}
