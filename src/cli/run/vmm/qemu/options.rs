//! Parses QEMU's command line into options with values (QEMU's qemu-options.hx and util/keyval.c).

use std::ffi::OsString;

/// Options without a value in QEMU 7.2 and newer. A test compares the list with the installed QEMU.
const FLAGS: &[&str] = &[
    "S",
    "alt-grab",
    "async-teardown",
    "audio-help",
    "ctrl-grab",
    "daemonize",
    "enable-fips",
    "enable-kvm",
    "enable-sync-profile",
    "full-screen",
    "h",
    "help",
    "mem-prealloc",
    "no-acpi",
    "no-fd-bootchk",
    "no-hpet",
    "no-kvm",
    "no-quit",
    "no-reboot",
    "no-shutdown",
    "no-user-config",
    "nodefaults",
    "nographic",
    "nouserconfig",
    "old-param",
    "one-insn-per-tb",
    "only-migratable",
    "portrait",
    "preconfig",
    "s",
    "semihosting",
    "singlestep",
    "snapshot",
    "usb",
    "version",
    "win2k-hack",
    "xen-attach",
    "xen-domid-restrict",
];

/// Returns whether an option, given without dashes, takes no value.
pub fn is_flag(name: &str) -> bool {
    FLAGS.contains(&name)
}

/// The options of a command line, in order.
#[derive(Debug)]
pub struct Options(Vec<(String, String)>);

impl Options {
    /// Parses all options. Arguments that are not options are disk images, and are ignored.
    pub fn parse(args: &[OsString]) -> Self {
        let mut options = Vec::new();
        let mut args = args.iter().map(|arg| arg.to_string_lossy());
        while let Some(arg) = args.next() {
            let Some(name) = arg.strip_prefix('-') else {
                continue;
            };
            let name = name.strip_prefix('-').unwrap_or(name);
            let value = match is_flag(name) {
                true => String::new(),
                false => args.next().unwrap_or_default().into_owned(),
            };
            options.push((name.to_owned(), value));
        }
        Self(options)
    }

    pub fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(option, _)| option == name)
    }

    /// Returns the values of one option.
    pub fn values(&self, name: &str) -> impl DoubleEndedIterator<Item = &str> {
        let found = self.0.iter().filter(move |(option, _)| option == name);
        found.map(|(_, value)| value.as_str())
    }

    /// Returns the properties of all occurrences of an option. `implied` is the key of a first property without key.
    pub fn properties(&self, name: &str, implied: &str) -> Vec<Properties> {
        self.values(name)
            .map(|value| Properties::parse(value, implied))
            .collect()
    }
}

/// Properties of an option: `a=b,c=d`, or the equivalent JSON object.
#[derive(Debug, Default)]
pub struct Properties(Vec<(String, String)>);

impl Properties {
    pub fn parse(text: &str, implied: &str) -> Self {
        match serde_json::from_str(text) {
            Ok(serde_json::Value::Object(object)) => Self(
                object
                    .iter()
                    .map(|(key, value)| (key.clone(), plain(value)))
                    .collect(),
            ),
            _ => Self::of_parts(&split(text), implied),
        }
    }

    fn of_parts(parts: &[String], implied: &str) -> Self {
        let pair = |(index, part): (usize, &String)| match part.split_once('=') {
            Some((key, value)) => (key.to_owned(), value.to_owned()),
            None if index == 0 => (implied.to_owned(), part.clone()),
            None => (part.clone(), "on".to_owned()),
        };
        Self(parts.iter().enumerate().map(pair).collect())
    }

    /// Returns the value of a property; the last occurrence wins.
    pub fn get(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().rev().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str())
    }
}

/// Returns the last value of a property in several option strings.
pub fn last<'a>(all: &'a [Properties], name: &str) -> Option<&'a str> {
    all.iter().rev().find_map(|properties| properties.get(name))
}

/// Splits at single commas; a doubled comma is a literal one.
fn split(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut chars = text.chars().peekable();
    while let Some(char) = chars.next() {
        let is_end = char == ',' && chars.next_if_eq(&',').is_none();
        match parts.last_mut() {
            Some(part) if !is_end => part.push(char),
            _ => parts.push(String::new()),
        }
    }
    parts
}

fn plain(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::String(text) => text.clone(),
        serde_json::Value::Bool(true) => "on".to_owned(),
        serde_json::Value::Bool(false) => "off".to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::tests::os;
    use super::*;

    #[test]
    fn values_may_look_like_options() {
        let options = Options::parse(&os(&[
            "-nographic",
            "-append",
            "-m 3",
            "--m",
            "512",
            "disk.img",
            "-S",
            "-M",
            "q35",
        ]));
        assert_eq!(options.values("m").collect::<Vec<_>>(), ["512"]);
        assert_eq!(options.values("M").collect::<Vec<_>>(), ["q35"]);
        assert!(options.has("S") && options.has("nographic"));
    }

    #[test]
    fn doubled_commas_are_literal() {
        let properties = Properties::parse("file,path=/a,,b,share", "kind");
        assert_eq!(properties.get("kind"), Some("file"));
        assert_eq!(properties.get("path"), Some("/a,b"));
        assert_eq!(properties.get("share"), Some("on"));
        assert_eq!(properties.get("none"), None);
    }

    #[test]
    fn json_is_parsed() {
        let text = r#"{"qom-type":"memory-backend-memfd","id":"m","size":1024,"share":false}"#;
        let properties = Properties::parse(text, "qom-type");
        assert_eq!(properties.get("size"), Some("1024"));
        assert_eq!(properties.get("share"), Some("off"));
    }

    /// Returns the option at the start of a line of QEMU's help.
    fn name(line: &str) -> Option<&str> {
        let line = line.strip_prefix("--").or(line.strip_prefix('-'))?;
        let end = line.find(|char: char| char.is_whitespace() || "[/".contains(char));
        Some(&line[..end.unwrap_or(line.len())]).filter(|name| !name.is_empty())
    }

    #[test]
    #[ignore = "needs QEMU"]
    fn the_installed_qemu_has_the_same_options_without_a_value() {
        let qemu = |args: &[&str]| {
            std::process::Command::new("qemu-system-x86_64")
                .args(args)
                .output()
                .expect("qemu-system-x86_64 is missing: apt-get install qemu-system-x86")
        };
        let help = String::from_utf8(qemu(&["-help"]).stdout).unwrap();
        let mut names: Vec<_> = help.lines().filter_map(name).collect();
        names.dedup();
        assert!(names.len() > 80, "{names:?}");
        for name in names {
            // If a value is missing, QEMU fails while it parses its arguments.
            let output = qemu(&["-M", "help", &format!("-{name}")]);
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert_eq!(
                is_flag(name),
                !stderr.contains("requires an argument"),
                "-{name}: {stderr}"
            );
        }
    }
}
