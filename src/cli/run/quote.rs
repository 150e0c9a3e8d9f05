//! Quotes a command for a shell.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

/// Joins the words with spaces and quotes those that a POSIX shell would change.
pub fn for_shell(command: &[OsString]) -> Vec<u8> {
    let words: Vec<_> = command.iter().map(|word| quoted(word.as_bytes())).collect();
    words.join(&b' ')
}

fn quoted(word: &[u8]) -> Vec<u8> {
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_./,:=+@%".contains(byte);
    if !word.is_empty() && word.iter().all(is_plain) {
        return word.to_vec();
    }
    let mut out = vec![b'\''];
    for byte in word {
        match byte {
            b'\'' => out.extend_from_slice(b"'\\''"),
            other => out.push(*other),
        }
    }
    out.push(b'\'');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_parses_the_same_words() {
        let words = [
            "plain-1",
            "",
            "two words",
            "it's",
            "$HOME;`x`",
            "tab\t*",
            "a=b,c",
            "~",
            "#",
        ];
        let command: Vec<_> = words.iter().map(OsString::from).collect();
        let mut script = b"printf '%s\\n' ".to_vec();
        script.extend(for_shell(&command));
        let shell = std::process::Command::new("sh")
            .arg("-c")
            .arg(String::from_utf8(script).unwrap())
            .output()
            .unwrap();
        assert_eq!(shell.stdout, (words.join("\n") + "\n").as_bytes());
    }
}
