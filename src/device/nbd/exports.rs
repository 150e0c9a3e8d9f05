//! The exports of a server: disks with names.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::image::Image;

/// Maximum length of a name, and of any other string (`doc/proto.md`, "Values").
pub const NAME_LEN_MAX_BYTES: usize = 4096;

/// Name of an export: not empty, at most [`NAME_LEN_MAX_BYTES`] long, without control characters.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ExportName(Cow<'static, str>);

/// Why a text is not the name of an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ExportNameError {
    /// The empty name means the default export.
    #[error("the name of an export is empty")]
    Empty,
    /// The protocol limits the length of strings.
    #[error("the name of an export is {len_bytes} bytes long, and NBD allows {NAME_LEN_MAX_BYTES}")]
    TooLong {
        /// Its length.
        len_bytes: usize,
    },
    /// Names appear in logs and on terminals.
    #[error("the name of an export contains a control character")]
    Control,
}

/// Why disks cannot be exported together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExportsError {
    /// There is no disk.
    #[error("there is no disk to export")]
    None,
    /// Two disks have the same name.
    #[error("two exports have the name \"{name}\"")]
    SameName {
        /// That name.
        name: ExportName,
    },
    /// A description is longer than a string of the protocol may be.
    #[error("the description of export \"{name}\" is longer than {NAME_LEN_MAX_BYTES} bytes")]
    LongDescription {
        /// The export's name.
        name: ExportName,
    },
}

/// A disk with a name.
#[derive(Debug, Clone)]
pub struct Export {
    /// Its name.
    pub name: ExportName,
    /// A description for people, one line.
    pub description: String,
    /// The disk.
    pub image: Arc<Image>,
}

/// The disks that a client can choose from: at least one, with unique names.
#[derive(Debug, Clone)]
pub struct Exports {
    all: Arc<[Export]>,
    has_default: bool,
}

impl FromStr for ExportName {
    type Err = ExportNameError;

    fn from_str(text: &str) -> Result<Self, ExportNameError> {
        match text.len() {
            0 => Err(ExportNameError::Empty),
            len_bytes if len_bytes > NAME_LEN_MAX_BYTES => {
                Err(ExportNameError::TooLong { len_bytes })
            }
            _ if text.contains(char::is_control) => Err(ExportNameError::Control),
            _ => Ok(Self(Cow::Owned(text.to_owned()))),
        }
    }
}

impl ExportName {
    /// The name of the main disk, which clients also get without asking for a name.
    pub const MAIN: Self = Self(Cow::Borrowed("nix-store"));

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl fmt::Display for ExportName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Exports {
    /// Exports `all`. The first disk is the default export, for clients that ask for no name.
    ///
    /// # Errors
    /// There is no disk, two have the same name, or a description is too long.
    pub fn new(all: Vec<Export>) -> Result<Self, ExportsError> {
        if all.is_empty() {
            return Err(ExportsError::None);
        }
        if let Some(name) = first_duplicate(all.iter().map(|export| &export.name)) {
            return Err(ExportsError::SameName { name: name.clone() });
        }
        let is_long = |export: &&Export| export.description.len() > NAME_LEN_MAX_BYTES;
        if let Some(Export { name, .. }) = all.iter().find(is_long) {
            return Err(ExportsError::LongDescription { name: name.clone() });
        }
        Ok(Self {
            all: all.into(),
            has_default: true,
        })
    }

    /// The same disks without a default export: clients must ask for a name.
    #[must_use]
    pub fn without_default(self) -> Self {
        Self {
            has_default: false,
            ..self
        }
    }

    /// All disks, in the order in which they are listed.
    pub fn all(&self) -> &[Export] {
        &self.all
    }

    /// The export for clients that ask for no name.
    pub fn default_export(&self) -> Option<&Export> {
        self.all.first().filter(|_| self.has_default)
    }

    /// Index of an export in [`all`](Self::all).
    pub fn index_of(&self, name: &ExportName) -> Option<usize> {
        self.all.iter().position(|export| export.name == *name)
    }

    /// The export with this name; the empty name is the default export.
    pub(super) fn find(&self, name: &[u8]) -> Option<&Export> {
        match name {
            [] => self.default_export(),
            name => self
                .all
                .iter()
                .find(|export| export.name.as_bytes() == name),
        }
    }
}

/// The first name that occurred before.
pub fn first_duplicate<'n>(
    names: impl IntoIterator<Item = &'n ExportName>,
) -> Option<&'n ExportName> {
    let mut seen = HashSet::new();
    names.into_iter().find(|name| !seen.insert(*name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::testing::tree_image;

    fn export(name: &str) -> Export {
        let dir = tempfile::tempdir().unwrap();
        Export {
            name: name.parse().unwrap(),
            description: String::new(),
            image: Arc::new(tree_image(dir.path())),
        }
    }

    #[test]
    fn names_fit_the_protocol_and_a_terminal() {
        let longest = "n".repeat(NAME_LEN_MAX_BYTES);
        for name in ["a", "web server/1", "größer", &longest] {
            assert_eq!(name.parse::<ExportName>().unwrap().as_str(), name);
        }
        let len_bytes = NAME_LEN_MAX_BYTES + 1;
        for (name, error) in [
            ("", ExportNameError::Empty),
            (
                &*"n".repeat(len_bytes),
                ExportNameError::TooLong { len_bytes },
            ),
            ("a\nb", ExportNameError::Control),
            ("a\u{9b}b", ExportNameError::Control),
        ] {
            assert_eq!(name.parse::<ExportName>(), Err(error));
        }
    }

    #[test]
    fn names_of_exports_are_unique() {
        assert_eq!(Exports::new(Vec::new()).unwrap_err(), ExportsError::None);
        let twice = Exports::new(vec![export("a"), export("b"), export("a")]);
        let name = "a".parse().unwrap();
        assert_eq!(twice.unwrap_err(), ExportsError::SameName { name });
        let mut long = export("a");
        long.description = "d".repeat(NAME_LEN_MAX_BYTES + 1);
        let error = Exports::new(vec![long]).unwrap_err();
        assert!(matches!(error, ExportsError::LongDescription { .. }));
    }

    #[test]
    fn the_first_disk_is_the_default_export_unless_disabled() {
        let found = |exports: &Exports, name: &[u8]| {
            let found = exports.find(name)?;
            exports.index_of(&found.name)
        };
        let exports = Exports::new(vec![export("a"), export("b")]).unwrap();
        let named = exports.clone().without_default();
        assert_eq!((found(&exports, b""), found(&named, b"")), (Some(0), None));
        for exports in [exports, named] {
            assert_eq!(found(&exports, b"a"), Some(0));
            assert_eq!(found(&exports, b"b"), Some(1));
            for name in [b"c".as_slice(), b"A", b"aa", b"a\0"] {
                assert_eq!(found(&exports, name), None);
            }
        }
    }
}
