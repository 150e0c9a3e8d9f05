//! Help text after the options: examples, and notes in the long help and the manual page.
//!
//! A paragraph of notes is a single line, because clap wraps it to the width of the terminal.

use clap::Command;

/// Returns the text for `after_long_help`.
pub fn long(examples: &str, notes: &str) -> String {
    format!("{examples}\n\n{notes}")
}

/// Splits a command's help into the examples, without their headline, and the notes.
pub fn parts(command: &Command) -> (String, String) {
    let text =
        |help: Option<&clap::builder::StyledStr>| help.map(ToString::to_string).unwrap_or_default();
    let short = text(command.get_after_help());
    let long = text(command.get_after_long_help());
    match short.strip_prefix(HEADLINE) {
        Some(examples) => {
            let notes = long.strip_prefix(&short).unwrap_or(&long);
            (examples.to_owned(), notes.trim().to_owned())
        }
        None => (String::new(), [short, long].join("\n\n").trim().to_owned()),
    }
}

/// The first line of the examples.
const HEADLINE: &str = "Examples:\n";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_is_split_into_examples_and_notes() {
        let examples = "Examples:\n  a\n  b";
        let both = Command::new("x")
            .after_help(examples)
            .after_long_help(long(examples, "one\n\ntwo"));
        let (found, notes) = parts(&both);
        assert_eq!((found.as_str(), notes.as_str()), ("  a\n  b", "one\n\ntwo"));
        let (found, notes) = parts(&Command::new("x").after_help("only"));
        assert_eq!((found.as_str(), notes.as_str()), ("", "only"));
    }
}
