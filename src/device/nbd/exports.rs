//! The disks of a server, by name.

use std::sync::Arc;

use crate::image::Image;

/// Longest name, and longest string of any kind (`doc/proto.md`, "Values": strings).
pub const NAME_LEN_MAX_BYTES: usize = 4096;

/// A disk and what it is called.
#[derive(Debug, Clone)]
pub struct Export {
    /// UTF-8, and not longer than [`NAME_LEN_MAX_BYTES`].
    pub name: String,
    /// One line for people.
    pub description: String,
    /// The disk.
    pub image: Arc<Image>,
}

/// Disks that clients choose from. The first one is also what a client gets that asks for none by name.
#[derive(Debug, Clone)]
pub struct Exports(Vec<Export>);

impl Exports {
    /// None if there is no disk, a name is too long, or two are the same.
    pub fn new(all: Vec<Export>) -> Option<Self> {
        let is_fine = |(index, export): (usize, &Export)| {
            export.name.len() <= NAME_LEN_MAX_BYTES
                && export.description.len() <= NAME_LEN_MAX_BYTES
                && all[..index].iter().all(|other| other.name != export.name)
        };
        let fine = !all.is_empty() && all.iter().enumerate().all(is_fine);
        fine.then_some(Self(all))
    }

    /// One disk.
    pub fn one(name: &str, description: &str, image: Arc<Image>) -> Option<Self> {
        Self::new(vec![Export {
            name: name.to_owned(),
            description: description.to_owned(),
            image,
        }])
    }

    pub(super) fn all(&self) -> &[Export] {
        &self.0
    }

    /// Which one `name` is.
    pub(super) fn find(&self, name: &[u8]) -> Option<&Export> {
        let named = self.0.iter().find(|export| export.name.as_bytes() == name);
        named.or_else(|| self.0.first().filter(|_| name.is_empty()))
    }
}
