//! JSON objects key by key: deep ones without recursion, and keys that are there twice do not vanish.

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::error::ListingError;

/// A text that is being read.
pub(super) struct Json<'a> {
    text: &'a [u8],
    at: usize,
    /// An object was begun just now, so no comma comes before its first key.
    first: bool,
}

impl<'a> Json<'a> {
    pub(super) fn new(text: &'a [u8]) -> Self {
        Self {
            text,
            at: 0,
            first: false,
        }
    }

    /// Begins an object; its keys follow.
    pub(super) fn begin_object(&mut self) -> Result<(), ListingError> {
        self.punctuation(b'{', "there should be an object")?;
        self.first = true;
        Ok(())
    }

    /// The next key of the object that is open, its value to be read next; `None` if the object has ended.
    pub(super) fn next_key(&mut self) -> Result<Option<String>, ListingError> {
        let first = std::mem::replace(&mut self.first, false);
        if self.next() == Some(b'}') {
            self.at += 1;
            return Ok(None);
        }
        if !first {
            self.punctuation(b',', "there should be a comma or the end of an object")?;
        }
        let key = self.value("a key")?;
        self.punctuation(b':', "there should be a colon")?;
        Ok(Some(key))
    }

    /// A value of Rust's type `T`, which must not be an object.
    pub(super) fn value<T: Deserialize<'a>>(&mut self, what: &str) -> Result<T, ListingError> {
        let rest = self.text.get(self.at..).unwrap_or_default();
        let mut values = serde_json::Deserializer::from_slice(rest).into_iter();
        match values.next() {
            Some(Ok(value)) => {
                self.at += values.byte_offset();
                Ok(value)
            }
            _ => Err(self.fault(&format!("there should be {what}"))),
        }
    }

    /// Any value, which is of no interest.
    pub(super) fn skip(&mut self) -> Result<(), ListingError> {
        self.value::<IgnoredAny>("a value").map(|_| ())
    }

    /// Reads a value into `to`, where none must be yet.
    pub(super) fn once<T>(
        &mut self,
        to: &mut Option<T>,
        read: impl FnOnce(&mut Self) -> Result<T, ListingError>,
    ) -> Result<(), ListingError> {
        if to.is_some() {
            return Err(self.fault("a key is there twice"));
        }
        *to = Some(read(self)?);
        Ok(())
    }

    /// Nothing but white space may follow.
    pub(super) fn end(&mut self) -> Result<(), ListingError> {
        match self.next() {
            None => Ok(()),
            Some(_) => Err(self.fault("there is more after the end")),
        }
    }

    /// An error at the current place.
    pub(super) fn fault(&self, fault: &str) -> ListingError {
        ListingError::Json {
            at: self.at,
            fault: fault.to_owned(),
        }
    }

    fn punctuation(&mut self, mark: u8, fault: &str) -> Result<(), ListingError> {
        if self.next() != Some(mark) {
            return Err(self.fault(fault));
        }
        self.at += 1;
        Ok(())
    }

    /// The next byte that is no white space.
    fn next(&mut self) -> Option<u8> {
        let rest = self.text.get(self.at..).unwrap_or_default();
        let is_space = |byte: &&u8| matches!(byte, b' ' | b'\t' | b'\n' | b'\r');
        self.at += rest.iter().take_while(is_space).count();
        self.text.get(self.at).copied()
    }
}
