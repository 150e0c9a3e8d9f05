//! Parses a NAR in one pass. A small buffer holds the current string; file contents are skipped.

use std::io::{BufRead, BufReader, ErrorKind, Read, Take};

use super::builder::{Builder, NAME_MAX, TARGET_MAX};
use super::error::{NarError, TreeFault};
use super::{NarTree, tokens};
use crate::closure::shown;

/// Bytes requested from the reader at once.
const READ_BYTES: usize = 64 << 10;

pub(super) fn parse(reader: impl Read, nar_size: u64) -> Result<NarTree, NarError> {
    // One byte more than expected, to detect trailing data.
    let reader = reader.take(nar_size.saturating_add(1));
    let mut parser = NarParser {
        reader: BufReader::with_capacity(READ_BYTES, reader),
        at: 0,
        string: Vec::new(),
        builder: Builder::new(nar_size),
    };
    parser.expect(&[tokens::MAGIC], "\"nix-archive-1\"")?;
    parser.node()?;
    while parser.builder.is_open() {
        parser.entry_or_end()?;
    }
    let found = parser.at;
    if found == nar_size && !parser.fill()?.is_empty() {
        return Err(NarError::Trailing { at: found });
    }
    if found != nar_size {
        let expected = nar_size;
        return Err(NarError::Size { found, expected });
    }
    Ok(parser.builder.finish())
}

struct NarParser<R> {
    reader: BufReader<Take<R>>,
    /// Number of bytes read.
    at: u64,
    /// The last string read.
    string: Vec<u8>,
    builder: Builder,
}

impl<R: Read> NarParser<R> {
    /// Reads a node; for a directory only its start.
    fn node(&mut self) -> Result<(), NarError> {
        self.expect(&tokens::BEGIN_NODE, "a node")?;
        let start = self.word()?;
        match &self.string[..] {
            tokens::DIRECTORY => return self.built(Builder::directory),
            tokens::REGULAR => self.regular()?,
            tokens::SYMLINK => self.symlink()?,
            _ => return Err(self.unexpected(start, "a file type")),
        }
        self.end_node()
    }

    /// Reads the next entry of the open directory, or its end.
    fn entry_or_end(&mut self) -> Result<(), NarError> {
        let start = self.word()?;
        match &self.string[..] {
            tokens::ENTRY => {
                self.expect(&tokens::BEFORE_NAME, "a name")?;
                self.read_string(NAME_MAX)?;
                let name = std::mem::take(&mut self.string);
                self.built(|builder| builder.entry(&name))?;
                self.string = name;
                self.expect(&[tokens::BEFORE_NODE], "\"node\"")?;
                self.node()
            }
            tokens::END => {
                self.built(Builder::end_directory)?;
                self.end_entry()
            }
            _ => Err(self.unexpected(start, "an entry or the end of the directory")),
        }
    }

    fn regular(&mut self) -> Result<(), NarError> {
        let start = self.word()?;
        let executable = self.string == tokens::EXECUTABLE;
        if executable {
            let rest = [tokens::EXECUTABLE_VALUE, tokens::CONTENTS];
            self.expect(&rest, "\"contents\"")?;
        } else if self.string != tokens::CONTENTS {
            return Err(self.unexpected(start, "\"contents\""));
        }
        let size_bytes = self.length()?;
        let offset = self.built(|builder| builder.regular(size_bytes, executable))?;
        debug_assert_eq!(offset, self.at);
        self.skip(size_bytes)?;
        self.padding(size_bytes)
    }

    fn symlink(&mut self) -> Result<(), NarError> {
        self.expect(&[tokens::TARGET], "\"target\"")?;
        self.read_string(TARGET_MAX)?;
        let target = std::mem::take(&mut self.string);
        self.built(|builder| builder.symlink(&target))?;
        self.string = target;
        Ok(())
    }

    fn end_node(&mut self) -> Result<(), NarError> {
        self.expect(&[tokens::END], "the end of a file")?;
        self.end_entry()
    }

    /// Reads the end of the entry that contains the node. The root is not in an entry.
    fn end_entry(&mut self) -> Result<(), NarError> {
        match self.builder.is_open() {
            true => self.expect(&[tokens::END], "the end of an entry"),
            false => Ok(()),
        }
    }

    fn built<T>(
        &mut self,
        build: impl FnOnce(&mut Builder) -> Result<T, TreeFault>,
    ) -> Result<T, NarError> {
        let at = self.at;
        build(&mut self.builder).map_err(|fault| NarError::Tree { at, fault })
    }

    /// Reads exactly these words.
    fn expect(&mut self, words: &[&[u8]], expected: &'static str) -> Result<(), NarError> {
        for word in words {
            let start = self.word()?;
            if self.string != *word {
                return Err(self.unexpected(start, expected));
            }
        }
        Ok(())
    }

    fn unexpected(&self, at: u64, expected: &'static str) -> NarError {
        let found = format!("\"{}\"", shown(&self.string));
        NarError::Unexpected {
            at,
            expected,
            found,
        }
    }

    /// Reads a word of the format into `string`. Returns its offset.
    fn word(&mut self) -> Result<u64, NarError> {
        let start = self.at;
        self.read_string(tokens::WORD_MAX)?;
        Ok(start)
    }

    /// Reads a string of at most `max` bytes.
    fn read_string(&mut self, max: usize) -> Result<(), NarError> {
        let at = self.at;
        let length = self.length()?;
        let len = usize::try_from(length).ok().filter(|len| *len <= max);
        let Some(len) = len else {
            return Err(NarError::Unexpected {
                at,
                expected: "a short string",
                found: format!("one of {length} bytes (at most {max})"),
            });
        };
        self.string.resize(len, 0);
        let mut string = std::mem::take(&mut self.string);
        self.read_exact(&mut string)?;
        self.string = string;
        self.padding(length)
    }

    fn length(&mut self) -> Result<u64, NarError> {
        let mut length = [0; 8];
        self.read_exact(&mut length)?;
        Ok(u64::from_le_bytes(length))
    }

    /// Reads the zero padding after a string of `len_bytes`.
    fn padding(&mut self, len_bytes: u64) -> Result<(), NarError> {
        let mut padding = [0; 8];
        let missing = len_bytes.wrapping_neg() % tokens::ALIGNMENT;
        let padding = &mut padding[..usize::try_from(missing).unwrap_or(0)];
        self.read_exact(padding)?;
        match padding.iter().all(|byte| *byte == 0) {
            true => Ok(()),
            false => Err(NarError::Padding { at: self.at }),
        }
    }

    fn read_exact(&mut self, to: &mut [u8]) -> Result<(), NarError> {
        let mut filled = 0;
        while filled < to.len() {
            let bytes = self.fill()?;
            let len = bytes.len().min(to.len() - filled);
            to[filled..filled + len].copy_from_slice(&bytes[..len]);
            filled += len;
            self.consume(len)?;
        }
        Ok(())
    }

    fn skip(&mut self, mut len_bytes: u64) -> Result<(), NarError> {
        while len_bytes > 0 {
            let len = self.fill()?.len();
            let len = usize::try_from(len_bytes).unwrap_or(len).min(len);
            len_bytes -= len as u64;
            self.consume(len)?;
        }
        Ok(())
    }

    /// Returns buffered bytes, after a read if the buffer is empty. Empty only at the end of the file.
    fn fill(&mut self) -> Result<&[u8], NarError> {
        loop {
            match self.reader.fill_buf() {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
                Ok(_) => break,
            }
        }
        Ok(self.reader.buffer())
    }

    /// Consumes `len` bytes; fails if `len` is 0, which means the end of the file.
    fn consume(&mut self, len: usize) -> Result<(), NarError> {
        if len == 0 {
            return Err(NarError::Truncated { at: self.at });
        }
        self.reader.consume(len);
        self.at += len as u64;
        Ok(())
    }
}
