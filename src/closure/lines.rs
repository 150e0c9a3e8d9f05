//! Iterates over the lines of a file as bytes and counts them.

use std::io::{self, BufRead};

use super::error::{ClosureError, ClosureFile, Fault};

/// A line reader that keeps only the current line in memory.
pub(super) struct Lines<R> {
    input: ClosureFile,
    reader: R,
    line: Vec<u8>,
    number: u64,
}

impl<R: BufRead> Lines<R> {
    /// Starts before the first line of `reader`. Errors name the file `input`.
    pub(super) fn new(input: ClosureFile, reader: R) -> Self {
        Self {
            input,
            reader,
            line: Vec::new(),
            number: 0,
        }
    }

    /// Returns the name of the file.
    pub(super) fn input(&self) -> &ClosureFile {
        &self.input
    }

    /// Returns the current line, without its newline.
    pub(super) fn line(&self) -> &[u8] {
        &self.line
    }

    /// Returns the number of the current line, counted from 1.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// Advances to the next line; returns false at the end of the file. The last newline is optional. A line that ends
    /// with a carriage return is an error: no store path contains one, and it would be invisible in messages.
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

    /// Advances to the next line, and fails at the end of the file. `what` describes the expected line in the error.
    pub(super) fn require(&mut self, what: &'static str) -> Result<&[u8], ClosureError> {
        if self.advance()? {
            return Ok(&self.line);
        }
        Err(self.malformed(Fault::Truncated { missing: what }))
    }

    /// Skips the next line without copying it if it starts with `byte`. Otherwise returns false and consumes nothing.
    pub(super) fn skip_if(&mut self, byte: u8) -> Result<bool, ClosureError> {
        let skipped =
            skip_line_if(&mut self.reader, byte).map_err(|error| self.unreadable(error))?;
        self.number += u64::from(skipped);
        Ok(skipped)
    }

    /// Returns an error about the current line.
    pub(super) fn malformed(&self, fault: Fault) -> ClosureError {
        self.malformed_at(self.number, fault)
    }

    /// Returns an error about the line with number `line`.
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
