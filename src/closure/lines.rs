//! Lines of a file as bytes, one at a time, with their numbers.

use std::io::{self, BufRead};

use super::error::{ClosureError, Fault, Input};

/// Reads lines; never holds more than one.
pub(super) struct Lines<R> {
    input: Input,
    reader: R,
    line: Vec<u8>,
    number: u64,
}

impl<R: BufRead> Lines<R> {
    /// Stands before the first line of `reader`, which errors will call `input`.
    pub(super) fn new(input: Input, reader: R) -> Self {
        Self {
            input,
            reader,
            line: Vec::new(),
            number: 0,
        }
    }

    /// The name of the file.
    pub(super) fn input(&self) -> &Input {
        &self.input
    }

    /// The current line, without its newline.
    pub(super) fn line(&self) -> &[u8] {
        &self.line
    }

    /// The number of the current line, counted from 1.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// Goes to the next line; false at the file's end. The last newline is optional. No line may end with a carriage
    /// return: a name that has one looks like another in a message, and no store path has one.
    pub(super) fn advance(&mut self) -> Result<bool, ClosureError> {
        self.line.clear();
        let read = self.reader.read_until(b'\n', &mut self.line);
        let read = read.map_err(|error| self.unreadable(error))?;
        if self.line.last() == Some(&b'\n') {
            self.line.pop();
        }
        self.number += 1;
        if self.line.last() == Some(&b'\r') {
            return Err(self.malformed(Fault::CarriageReturn));
        }
        Ok(read > 0)
    }

    /// Goes to the next line, which has to be there: `what` it is, for the error.
    pub(super) fn require(&mut self, what: &'static str) -> Result<&[u8], ClosureError> {
        if self.advance()? {
            return Ok(&self.line);
        }
        Err(self.malformed(Fault::Truncated { missing: what }))
    }

    /// Goes past the next line without copying it, if it starts with `byte`; else does nothing and
    /// returns false.
    pub(super) fn skip_if(&mut self, byte: u8) -> Result<bool, ClosureError> {
        let skipped =
            skip_line_if(&mut self.reader, byte).map_err(|error| self.unreadable(error))?;
        self.number += u64::from(skipped);
        Ok(skipped)
    }

    /// The error that says what is wrong with the current line.
    pub(super) fn malformed(&self, fault: Fault) -> ClosureError {
        self.malformed_at(self.number, fault)
    }

    /// The error that says what is wrong with an earlier line.
    pub(super) fn malformed_at(&self, line: u64, fault: Fault) -> ClosureError {
        ClosureError::Malformed {
            input: self.input.clone(),
            line,
            fault,
        }
    }

    fn unreadable(&self, error: io::Error) -> ClosureError {
        ClosureError::Read {
            input: self.input.clone(),
            error,
        }
    }
}

fn skip_line_if(reader: &mut impl BufRead, byte: u8) -> io::Result<bool> {
    if reader.fill_buf()?.first() != Some(&byte) {
        return Ok(false);
    }
    reader.skip_until(b'\n')?;
    Ok(true)
}
