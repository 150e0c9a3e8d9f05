//! Reads JSON objects key by key: without recursion at any depth, and with duplicate keys reported.

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::error::ListingError;

/// The JSON text being read.
pub(super) struct Json<'a> {
    text: &'a [u8],
    at: usize,
    /// Set after the start of an object: no comma precedes the first key.
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

    /// Reads the start of an object. Its keys follow.
    pub(super) fn begin_object(&mut self) -> Result<(), ListingError> {
        self.punctuation(b'{', "expected an object")?;
        self.first = true;
        Ok(())
    }

    /// Returns the next key of the open object, whose value must be read next, or `None` at the end of the object.
    pub(super) fn next_key(&mut self) -> Result<Option<String>, ListingError> {
        let first = std::mem::replace(&mut self.first, false);
        if self.next() == Some(b'}') {
            self.at += 1;
            return Ok(None);
        }
        if !first {
            self.punctuation(b',', "expected a comma or the end of an object")?;
        }
        let key = self.value("a key")?;
        self.punctuation(b':', "expected a colon")?;
        Ok(Some(key))
    }

    /// Reads a value of type `T`, which must not be an object.
    pub(super) fn value<T: Deserialize<'a>>(&mut self, what: &str) -> Result<T, ListingError> {
        let rest = self.text.get(self.at..).unwrap_or_default();
        let mut values = serde_json::Deserializer::from_slice(rest).into_iter();
        match values.next() {
            Some(Ok(value)) => {
                self.at += values.byte_offset();
                Ok(value)
            }
            _ => Err(self.fault(&format!("expected {what}"))),
        }
    }

    /// Skips any value.
    pub(super) fn skip(&mut self) -> Result<(), ListingError> {
        self.value::<IgnoredAny>("a value").map(|_| ())
    }

    /// Reads a value into `to`, which must be empty.
    pub(super) fn once<T>(
        &mut self,
        to: &mut Option<T>,
        read: impl FnOnce(&mut Self) -> Result<T, ListingError>,
    ) -> Result<(), ListingError> {
        if to.is_some() {
            return Err(self.fault("duplicate key"));
        }
        *to = Some(read(self)?);
        Ok(())
    }

    /// Checks that nothing except white space follows.
    pub(super) fn end(&mut self) -> Result<(), ListingError> {
        match self.next() {
            None => Ok(()),
            Some(_) => Err(self.fault("trailing data")),
        }
    }

    /// Returns an error at the current position.
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

    /// Returns the next byte that is not white space.
    fn next(&mut self) -> Option<u8> {
        let rest = self.text.get(self.at..).unwrap_or_default();
        let is_space = |byte: &&u8| matches!(byte, b' ' | b'\t' | b'\n' | b'\r');
        self.at += rest.iter().take_while(is_space).count();
        self.text.get(self.at).copied()
    }
}
