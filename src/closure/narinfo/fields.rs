//! Parses lines of `Key: value`.

use super::content_address;
use super::error::NarinfoError;
use super::signature::Signature;
use super::{Compression, NARINFO_MAX_BYTES};
use crate::closure::error::shown;
use crate::closure::hash;
use crate::closure::name::{StoreDir, is_nix_name};

/// Keys and values. Unknown keys are ignored.
pub(super) struct Fields<'a>(Vec<(&'a str, &'a str)>);

impl<'a> Fields<'a> {
    pub(super) fn read(text: &'a [u8]) -> Result<Self, NarinfoError> {
        if text.len() > NARINFO_MAX_BYTES {
            let max = NARINFO_MAX_BYTES;
            return Err(NarinfoError::TooLong { max });
        }
        let text = str::from_utf8(text).map_err(|_| NarinfoError::NotText)?;
        let lines = match text.strip_suffix('\n') {
            Some(text) => text.split('\n').enumerate(),
            None => return Err(NarinfoError::Truncated),
        };
        let field = |(index, line): (usize, &'a str)| match line.split_once(':') {
            Some((key, value)) => Ok((key, value.strip_prefix(' ').unwrap_or(value))),
            None => Err(NarinfoError::NoColon {
                line: index + 1,
                text: shown(line.as_bytes()),
            }),
        };
        lines.map(field).collect::<Result<_, _>>().map(Self)
    }

    fn all(&self, key: &str) -> impl Iterator<Item = &'a str> {
        let fields = self.0.iter().filter(move |(other, _)| *other == key);
        fields.map(|(_, value)| *value)
    }

    /// Returns the value of `field`, if present. A second occurrence is an error.
    pub(super) fn single(&self, field: &'static str) -> Result<Option<&'a str>, NarinfoError> {
        let mut values = self.all(field);
        let value = values.next();
        match values.next() {
            Some(_) => Err(NarinfoError::Duplicate { field }),
            None => Ok(value),
        }
    }

    fn required(&self, field: &'static str) -> Result<&'a str, NarinfoError> {
        self.single(field)?.ok_or(NarinfoError::Missing { field })
    }

    /// Applies `read` to `field`, unless the field is absent or empty.
    pub(super) fn optional<T>(
        &self,
        field: &'static str,
        read: impl FnOnce(&Self, &'static str) -> Result<T, NarinfoError>,
    ) -> Result<Option<T>, NarinfoError> {
        match self.single(field)? {
            None | Some("") => Ok(None),
            Some(_) => read(self, field).map(Some),
        }
    }

    /// Returns the base name of the store path in `field`.
    pub(super) fn store_path(
        &self,
        field: &'static str,
        store_dir: StoreDir<'_>,
    ) -> Result<Box<[u8]>, NarinfoError> {
        let path = self.required(field)?.as_bytes();
        let name = store_dir.name_of(path).map_err(NarinfoError::StorePath)?;
        nix_name(field, name)
    }

    /// Returns the base names, sorted and without duplicates.
    pub(super) fn references(&self) -> Result<Vec<Box<[u8]>>, NarinfoError> {
        let field = "References";
        let text = self.single(field)?.unwrap_or_default();
        let names = text.split(' ').filter(|name| !name.is_empty());
        let names = names.map(|name| nix_name(field, name.as_bytes()));
        let mut names = names.collect::<Result<Vec<_>, _>>()?;
        names.sort();
        names.dedup();
        Ok(names)
    }

    /// Returns the SHA-256 in `field`, which is required.
    pub(super) fn hash(&self, field: &'static str) -> Result<[u8; 32], NarinfoError> {
        let text = self.required(field)?;
        hash::decode(text.as_bytes()).ok_or_else(|| NarinfoError::Hash {
            field,
            text: shown(text.as_bytes()),
        })
    }

    pub(super) fn number(&self, field: &'static str) -> Result<u64, NarinfoError> {
        let text = self.required(field)?;
        let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let number = text.parse().ok().filter(|_| is_number);
        number.ok_or_else(|| NarinfoError::Number {
            field,
            text: shown(text.as_bytes()),
        })
    }

    pub(super) fn nar_size(&self) -> Result<u64, NarinfoError> {
        match self.number("NarSize")? {
            0 => Err(NarinfoError::Empty),
            size => Ok(size),
        }
    }

    pub(super) fn compression(&self) -> Result<Compression, NarinfoError> {
        let text = self.single("Compression")?.unwrap_or_default();
        Compression::from_narinfo(text).ok_or_else(|| NarinfoError::Compression {
            text: shown(text.as_bytes()),
        })
    }

    /// Returns the URL. Rejects characters that are not allowed in an HTTP request line, and `..`, which could leave the
    /// cache's directory.
    pub(super) fn url(&self) -> Result<String, NarinfoError> {
        let url = self.required("URL")?;
        let printable = url.bytes().all(|byte| byte.is_ascii_graphic());
        let leads_up = url.split(['/', '\\', '?', '#']).any(|part| part == "..");
        if url.is_empty() || !printable || leads_up {
            let text = shown(url.as_bytes());
            return Err(NarinfoError::Url { text });
        }
        Ok(url.to_owned())
    }

    pub(super) fn content_hash(&self) -> Result<Option<[u8; 32]>, NarinfoError> {
        let value = self.single("CA")?;
        Ok(value.and_then(content_address::content_hash))
    }

    /// Returns the signatures. Malformed ones are ignored.
    pub(super) fn signatures(&self) -> Vec<Signature> {
        self.all("Sig").filter_map(Signature::parse).collect()
    }
}

fn nix_name(field: &'static str, name: &[u8]) -> Result<Box<[u8]>, NarinfoError> {
    match is_nix_name(name) {
        true => Ok(name.into()),
        false => Err(NarinfoError::Name {
            field,
            name: shown(name),
        }),
    }
}
