//! Parser for NAR sizes, hashes and references as written by `nix-store --dump-db` and `closureInfo` (`registration`).
//!
//! The file is a sequence of records, written by `Store::makeValidityRegistration` and read by `decodeValidPathInfo` in
//! Nix's `src/libstore/store-api.cc`. The lines of a record: the store path, the hash of its NAR, the NAR's size in
//! bytes, the deriver or an empty line, the number of references, then one reference per line. `closureInfo` writes the
//! hash as `sha256:` and nix32, `--dump-db` in base16 without prefix. `nix-store --load-db` accepts both, and so do we.
//!
//! The registration of a big store has 80 MB, of which nine tenths are references. So we stream it and keep only
//! records of listed store paths, with references as indexes.

use std::io::BufRead;

use super::error::{ClosureError, Fault, shown};
use super::hash;
use super::lines::Lines;
use super::name::StoreDir;
use super::references::{Collector, Index, References};

/// Nix counts references in an `int`.
const MAX_REFERENCES: u64 = i32::MAX.unsigned_abs() as u64;

/// The record of a store path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Registered {
    /// In bytes; 0 if unknown to Nix.
    pub(super) nar_size: u64,
    pub(super) nar_hash: [u8; 32],
    /// Number of the record's first line, counted from 1.
    line: u64,
}

/// Reads the records of `names`, which are sorted and without duplicates, and the references between them. The records
/// are in the order of `names`.
pub(super) fn read<R: BufRead>(
    lines: Lines<R>,
    store_dir: StoreDir<'_>,
    names: &[Box<[u8]>],
) -> Result<(Vec<Option<Registered>>, References), ClosureError> {
    let mut parser = RegistrationParser {
        lines,
        store_dir,
        names,
        index: Index::new(names),
        found: vec![None; names.len()],
        references: Collector::default(),
        next: 0,
    };
    while parser.record()? {}
    Ok((parser.found, parser.references.finish(names.len())))
}

struct RegistrationParser<'a, R> {
    lines: Lines<R>,
    store_dir: StoreDir<'a>,
    names: &'a [Box<[u8]>],
    index: Index<'a>,
    found: Vec<Option<Registered>>,
    references: Collector,
    /// The index after the last name found. Nix writes records in sorted order too, so the next name is usually here
    /// and needs no search.
    next: usize,
}

impl<R: BufRead> RegistrationParser<'_, R> {
    /// Reads one record; returns false at the end of the file.
    fn record(&mut self) -> Result<bool, ClosureError> {
        if !self.lines.advance()? {
            return Ok(false);
        }
        let line = self.lines.number();
        let index = self.listed()?;
        let nar_hash = self.nar_hash()?;
        let nar_size = self.number("the NAR size", u64::MAX)?;
        self.deriver()?;
        self.references(index)?;
        if let Some(index) = index {
            self.keep(
                index,
                Registered {
                    nar_size,
                    nar_hash,
                    line,
                },
            )?;
        }
        Ok(true)
    }

    /// Returns the index of the store path on the current line, if it is listed.
    fn listed(&mut self) -> Result<Option<usize>, ClosureError> {
        let path = self.lines.line();
        if path.is_empty() {
            let (what, found) = ("a store path", String::new());
            return Err(self.lines.malformed(Fault::NotAPath { what, found }));
        }
        let name = self.store_dir.name_of(path);
        let name = name.map_err(|fault| self.lines.malformed(fault))?;
        let index = self.index.find(name, self.next);
        self.next = index.map_or(self.next, |index| index + 1);
        Ok(index)
    }

    fn nar_hash(&mut self) -> Result<[u8; 32], ClosureError> {
        let text = self.lines.require("the NAR hash")?;
        if let Some(hash) = hash::decode(text) {
            return Ok(hash);
        }
        // exportReferencesGraph writes records without hash and size; the deriver follows the path.
        let fault = match text {
            [] | [b'/', ..] => Fault::NoHash { found: shown(text) },
            _ => Fault::BadHash { hash: shown(text) },
        };
        Err(self.lines.malformed(fault))
    }

    fn number(&mut self, what: &'static str, max: u64) -> Result<u64, ClosureError> {
        let text = self.lines.require(what)?;
        parse_number(text, what, max).map_err(|fault| self.lines.malformed(fault))
    }

    fn deriver(&mut self) -> Result<(), ClosureError> {
        let what = "the deriver or an empty line";
        match self.lines.require(what)? {
            [] | [b'/', ..] => Ok(()),
            found => {
                let found = shown(found);
                Err(self.lines.malformed(Fault::NotAPath { what, found }))
            }
        }
    }

    /// Reads the references of path `from`, or skips them if the path is not listed (`None`).
    fn references(&mut self, from: Option<usize>) -> Result<(), ClosureError> {
        for _ in 0..self.number("the number of references", MAX_REFERENCES)? {
            let Some(from) = from else {
                if !self.lines.skip_if(b'/')? {
                    self.reference()?;
                }
                continue;
            };
            self.reference()?;
            let path = self.lines.line();
            match self.index.find_path(path, self.store_dir) {
                Some(to) => self.references.add(from, to),
                None => self.references.add_outside(from, path),
            }
        }
        Ok(())
    }

    /// Advances to the next line, which must be a reference.
    fn reference(&mut self) -> Result<(), ClosureError> {
        let what = "a reference";
        let line = self.lines.require(what)?;
        if line.starts_with(b"/") {
            return Ok(());
        }
        let found = shown(line);
        Err(self.lines.malformed(Fault::NotAPath { what, found }))
    }

    /// Stores a record. An earlier record of the same path with another size or hash is an error.
    fn keep(&mut self, index: usize, new: Registered) -> Result<(), ClosureError> {
        let old = *self.found[index].get_or_insert(new);
        if (old.nar_size, old.nar_hash) == (new.nar_size, new.nar_hash) {
            return Ok(());
        }
        let path = self.store_dir.shown_path(&self.names[index]);
        Err(self.lines.malformed_at(
            new.line,
            Fault::Contradiction {
                path,
                first: old.line,
            },
        ))
    }
}

/// Parses decimal digits; signs and spaces are errors.
fn parse_number(text: &[u8], what: &'static str, max: u64) -> Result<u64, Fault> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return Err(Fault::NotANumber {
            what,
            text: shown(text),
        });
    }
    text.iter()
        .try_fold(0_u64, |n, digit| {
            n.checked_mul(10)?.checked_add(u64::from(digit - b'0'))
        })
        .filter(|&number| number <= max)
        .ok_or_else(|| Fault::NumberTooLarge {
            what,
            text: shown(text),
            max,
        })
}

#[cfg(test)]
mod tests;
