//! The negotiation: what the client wants to read, and how. Bytes in, bytes out; no socket.
//!
//! The server greets, the client answers with flags, and then sends options until one of them starts the transmission.

use super::error::NbdError;
use super::exports::{Export, ExportName, Exports};
use super::option::{ClientOption, ContextQuery, Wanted, parse};
use super::wire::{
    BASE_ALLOCATION, BASE_ALLOCATION_ID, GREETING_MAGIC, OPTION_LEN_BYTES, OPTION_MAGIC,
    OPTION_REPLY_MAGIC, handshake, info, option, option_reply, transmission,
};

/// Most bytes of an option's data: some names of 4,096 bytes. A longer one is thrown away and refused.
pub const OPTION_DATA_MAX_BYTES: usize = 64 << 10;

/// Most options of one client. libnbd and QEMU send fewer than ten.
pub const OPTIONS_MAX: u32 = 64;

/// Most bytes of one read. Clients that have not asked count on this much (`doc/proto.md`, "Block size constraints").
pub const READ_MAX_BYTES: u32 = 32 << 20;

/// Any byte can be read alone.
const BLOCK_MIN_BYTES: u32 = 1;

/// What the disk's own blocks are.
const BLOCK_PREFERRED_BYTES: u32 = 4096;

/// Zeros after the answer to `EXPORT_NAME`, unless both sides can do without.
const PADDING: [u8; 124] = [0; 124];

/// The client's flags.
const FLAGS_LEN_BYTES: usize = 4;

/// What was agreed on.
#[derive(Debug, Clone)]
pub struct Session {
    /// The disk.
    pub export: Export,
    /// Requests are answered in chunks.
    pub structured: bool,
    /// The client may ask what is allocated.
    pub base_allocation: bool,
}

/// How far the bytes at hand lead.
#[derive(Debug)]
pub enum Step {
    /// They are no whole message: more are needed.
    More,
    /// So many of them are done with.
    Took(usize),
    /// So many of them are done with; those that follow are requests.
    Chosen(usize, Session),
    /// So many of them are done with; the client begins with TLS as soon as it has the answer.
    Encrypt(usize),
    /// The client has said that it leaves.
    Left,
}

/// Whether what is said is encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encryption {
    /// No, and it cannot be.
    NotOffered,
    /// Not yet: until it is, the client gets to know nothing.
    Required,
    /// Yes.
    Active,
}

/// What comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expected {
    Flags,
    Option,
    /// So many bytes of an option that is too long, and then the next one.
    Rest(u64),
}

/// One client's negotiation.
#[derive(Debug)]
pub struct Negotiation<'e> {
    exports: &'e Exports,
    encryption: Encryption,
    expected: Expected,
    fixed: bool,
    padding: bool,
    structured: bool,
    /// Name of the disk whose allocation the client wants to know.
    context_of: Option<ExportName>,
    options: u32,
}

impl<'e> Negotiation<'e> {
    /// A negotiation about `exports`. Writes the greeting to `out`.
    pub fn begin(exports: &'e Exports, encryption: Encryption, out: &mut Vec<u8>) -> Self {
        out.extend_from_slice(&GREETING_MAGIC.to_be_bytes());
        out.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
        let flags = handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES;
        out.extend_from_slice(&flags.to_be_bytes());
        Self {
            exports,
            encryption,
            expected: Expected::Flags,
            fixed: false,
            padding: true,
            structured: false,
            context_of: None,
            options: 0,
        }
    }

    /// From here on all is encrypted. Nothing was agreed on before.
    pub fn encrypted(&mut self) {
        self.encryption = Encryption::Active;
    }

    /// Whether nothing has been received yet that makes sense.
    pub fn is_untouched(&self) -> bool {
        self.expected == Expected::Flags
    }

    /// Takes one message from the beginning of `input`, and appends the answer to `out`.
    ///
    /// # Errors
    /// When this cannot go on; the connection is to be closed.
    pub fn step(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<Step, NbdError> {
        match self.expected {
            Expected::Flags => self.take_flags(input),
            Expected::Rest(left) => Ok(self.throw_away(left, input)),
            Expected::Option => self.take_option(input, out),
        }
    }

    fn take_flags(&mut self, input: &[u8]) -> Result<Step, NbdError> {
        let Some((flags, _)) = input.split_first_chunk() else {
            return Ok(Step::More);
        };
        let flags = u32::from_be_bytes(*flags);
        let fixed = u32::from(handshake::FIXED_NEWSTYLE);
        let no_zeroes = u32::from(handshake::NO_ZEROES);
        if flags & !(fixed | no_zeroes) != 0 {
            return Err(NbdError::Flags { flags });
        }
        self.fixed = flags & fixed != 0;
        self.padding = flags & no_zeroes == 0;
        self.expected = Expected::Option;
        Ok(Step::Took(FLAGS_LEN_BYTES))
    }

    fn throw_away(&mut self, left: u64, input: &[u8]) -> Step {
        let here = left.min(input.len() as u64);
        self.expected = match left - here {
            0 => Expected::Option,
            rest => Expected::Rest(rest),
        };
        match usize::try_from(here) {
            Ok(1..) => Step::Took(input.len().min(usize::try_from(here).unwrap_or(usize::MAX))),
            _ => Step::More,
        }
    }

    fn take_option(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<Step, NbdError> {
        let Some((header, rest)) = input.split_first_chunk::<OPTION_LEN_BYTES>() else {
            return Ok(Step::More);
        };
        let (number, len_bytes) = read_header(header)?;
        if !self.fixed && number != option::EXPORT_NAME {
            return Err(NbdError::NotFixed { option: number });
        }
        let len = usize::try_from(len_bytes).unwrap_or(usize::MAX);
        if len > OPTION_DATA_MAX_BYTES {
            self.count()?;
            return self.refuse_long(number, len_bytes, out);
        }
        let Some(data) = rest.get(..len) else {
            return Ok(Step::More);
        };
        self.count()?;
        let taken = OPTION_LEN_BYTES + len;
        let asked = parse(number, data);
        match self.encryption {
            Encryption::Required => Self::answer_in_clear(number, &asked, taken, out),
            _ => self.answer(number, asked, taken, out),
        }
    }

    /// What may be said before TLS.
    fn answer_in_clear(
        number: u32,
        asked: &ClientOption,
        taken: usize,
        out: &mut Vec<u8>,
    ) -> Result<Step, NbdError> {
        match asked {
            ClientOption::StartTls => {
                reply(out, number, option_reply::ACK, &[]);
                return Ok(Step::Encrypt(taken));
            }
            ClientOption::Abort => {
                reply(out, number, option_reply::ACK, &[]);
                return Ok(Step::Left);
            }
            ClientOption::ExportName(_) => return Err(NbdError::NotEncrypted),
            _ if number == option::STARTTLS => malformed(number, &mut None, out),
            _ => {
                let words = "nothing is told without TLS";
                reply_error(out, number, option_reply::ERR_TLS_REQD, words);
            }
        }
        Ok(Step::Took(taken))
    }

    fn count(&mut self) -> Result<(), NbdError> {
        self.options += 1;
        if self.options > OPTIONS_MAX {
            return Err(NbdError::TooManyOptions { max: OPTIONS_MAX });
        }
        Ok(())
    }

    /// The answer goes out before the data have come: a client that waits for it is not waited for.
    fn refuse_long(
        &mut self,
        number: u32,
        len_bytes: u32,
        out: &mut Vec<u8>,
    ) -> Result<Step, NbdError> {
        if number == option::EXPORT_NAME {
            return Err(NbdError::UnknownExport {
                name: format!("({len_bytes} bytes long)"),
            });
        }
        reply_error(
            out,
            number,
            option_reply::ERR_TOO_BIG,
            "the option is too long",
        );
        self.expected = Expected::Rest(len_bytes.into());
        Ok(Step::Took(OPTION_LEN_BYTES))
    }

    fn answer(
        &mut self,
        number: u32,
        asked: ClientOption,
        taken: usize,
        out: &mut Vec<u8>,
    ) -> Result<Step, NbdError> {
        match asked {
            ClientOption::ExportName(name) => return self.start(&name, taken, out),
            ClientOption::Go(wanted) => {
                if let Some(export) = self.tell(number, &wanted, out) {
                    return Ok(Step::Chosen(taken, self.session(export)));
                }
            }
            ClientOption::Abort => {
                reply(out, number, option_reply::ACK, &[]);
                return Ok(Step::Left);
            }
            ClientOption::Info(wanted) => _ = self.tell(number, &wanted, out),
            ClientOption::List => self.list(number, out),
            ClientOption::StructuredReply => {
                self.structured = true;
                reply(out, number, option_reply::ACK, &[]);
            }
            ClientOption::ListMetaContext(query) => self.list_contexts(number, &query, out),
            ClientOption::SetMetaContext(query) => self.set_contexts(number, &query, out),
            ClientOption::StartTls if self.encryption == Encryption::Active => {
                let words = "TLS is in use already";
                reply_error(out, number, option_reply::ERR_INVALID, words);
            }
            ClientOption::StartTls => {
                let words = "TLS is not offered";
                reply_error(out, number, option_reply::ERR_POLICY, words);
            }
            ClientOption::Unknown => {
                reply_error(out, number, option_reply::ERR_UNSUP, "unknown option");
            }
            ClientOption::Malformed => malformed(number, &mut self.context_of, out),
        }
        Ok(Step::Took(taken))
    }

    /// `EXPORT_NAME`: the oldest way to begin.
    fn start(&self, name: &[u8], taken: usize, out: &mut Vec<u8>) -> Result<Step, NbdError> {
        let export = self
            .exports
            .find(name)
            .ok_or_else(|| NbdError::UnknownExport {
                name: name.escape_ascii().to_string(),
            })?;
        out.extend_from_slice(&export.image.len_bytes().to_be_bytes());
        out.extend_from_slice(&self.flags().to_be_bytes());
        if self.padding {
            out.extend_from_slice(&PADDING);
        }
        Ok(Step::Chosen(taken, self.session(export)))
    }

    fn session(&self, export: &Export) -> Session {
        Session {
            export: export.clone(),
            structured: self.structured,
            base_allocation: self.context_of.as_ref() == Some(&export.name),
        }
    }

    fn flags(&self) -> u16 {
        let always = transmission::HAS_FLAGS
            | transmission::READ_ONLY
            | transmission::SEND_FLUSH
            | transmission::CAN_MULTI_CONN;
        match self.structured {
            true => always | transmission::SEND_DF,
            false => always,
        }
    }

    /// `INFO` and `GO`: what there is to say of a disk.
    fn tell(&self, number: u32, wanted: &Wanted, out: &mut Vec<u8>) -> Option<&'e Export> {
        let Some(export) = self.exports.find(&wanted.name) else {
            unknown_export(number, &wanted.name, out);
            return None;
        };
        let len = export.image.len_bytes().to_be_bytes();
        let parts = [
            &info::EXPORT.to_be_bytes()[..],
            &len,
            &self.flags().to_be_bytes(),
        ];
        reply(out, number, option_reply::INFO, &parts);
        if wanted.canonical_name {
            let parts = [&info::NAME.to_be_bytes(), export.name.as_bytes()];
            reply(out, number, option_reply::INFO, &parts);
        }
        if wanted.description {
            let parts = [
                &info::DESCRIPTION.to_be_bytes(),
                export.description.as_bytes(),
            ];
            reply(out, number, option_reply::INFO, &parts);
        }
        if wanted.block_size {
            let sizes = [BLOCK_MIN_BYTES, BLOCK_PREFERRED_BYTES, READ_MAX_BYTES];
            let [min, preferred, max] = sizes.map(u32::to_be_bytes);
            let sizes = [min, preferred, max].concat();
            let parts = [&info::BLOCK_SIZE.to_be_bytes()[..], &sizes];
            reply(out, number, option_reply::INFO, &parts);
        }
        reply(out, number, option_reply::ACK, &[]);
        Some(export)
    }

    fn list(&self, number: u32, out: &mut Vec<u8>) {
        for export in self.exports.all() {
            let name = export.name.as_bytes();
            let len = u32::try_from(name.len()).unwrap_or(0).to_be_bytes();
            let parts = [&len, name, export.description.as_bytes()];
            reply(out, number, option_reply::SERVER, &parts);
        }
        reply(out, number, option_reply::ACK, &[]);
    }

    fn list_contexts(&self, number: u32, query: &ContextQuery, out: &mut Vec<u8>) {
        if self.exports.find(&query.name).is_none() {
            return unknown_export(number, &query.name, out);
        }
        if query.is_empty || query.base || query.base_allocation {
            context(out, number, 0);
        }
        reply(out, number, option_reply::ACK, &[]);
    }

    fn set_contexts(&mut self, number: u32, query: &ContextQuery, out: &mut Vec<u8>) {
        self.context_of = None;
        if !self.structured {
            let words = "NBD_OPT_STRUCTURED_REPLY must come first";
            return reply_error(out, number, option_reply::ERR_INVALID, words);
        }
        let Some(export) = self.exports.find(&query.name) else {
            return unknown_export(number, &query.name, out);
        };
        if query.base_allocation {
            self.context_of = Some(export.name.clone());
            context(out, number, BASE_ALLOCATION_ID);
        }
        reply(out, number, option_reply::ACK, &[]);
    }
}

/// Number and length of an option.
fn read_header(header: &[u8; OPTION_LEN_BYTES]) -> Result<(u32, u32), NbdError> {
    let [m0, m1, m2, m3, m4, m5, m6, m7, n0, n1, n2, n3, len @ ..] = *header;
    let magic = u64::from_be_bytes([m0, m1, m2, m3, m4, m5, m6, m7]);
    if magic != OPTION_MAGIC {
        return Err(NbdError::OptionMagic { magic });
    }
    Ok((
        u32::from_be_bytes([n0, n1, n2, n3]),
        u32::from_be_bytes(len),
    ))
}

fn context(out: &mut Vec<u8>, number: u32, id: u32) {
    let parts = [&id.to_be_bytes(), BASE_ALLOCATION];
    reply(out, number, option_reply::META_CONTEXT, &parts);
}

/// A `SET_META_CONTEXT` that fails leaves no context, either.
fn malformed(number: u32, context_of: &mut Option<ExportName>, out: &mut Vec<u8>) {
    if number == option::SET_META_CONTEXT {
        *context_of = None;
    }
    let words = "the option's data make no sense";
    reply_error(out, number, option_reply::ERR_INVALID, words);
}

fn unknown_export(number: u32, name: &[u8], out: &mut Vec<u8>) {
    let words = match name {
        [] => "there is no default export: ask for one by its name",
        _ => "there is no export of that name",
    };
    reply_error(out, number, option_reply::ERR_UNKNOWN, words);
}

fn reply_error(out: &mut Vec<u8>, number: u32, kind: u32, words: &str) {
    reply(out, number, kind, &[words.as_bytes()]);
}

fn reply(out: &mut Vec<u8>, number: u32, kind: u32, parts: &[&[u8]]) {
    let len: usize = parts.iter().map(|part| part.len()).sum();
    out.extend_from_slice(&OPTION_REPLY_MAGIC.to_be_bytes());
    // Names and descriptions are bounded: a length that does not fit cannot be.
    for word in [number, kind, u32::try_from(len).unwrap_or(0)] {
        out.extend_from_slice(&word.to_be_bytes());
    }
    for part in parts {
        out.extend_from_slice(part);
    }
}

#[cfg(test)]
mod tests;
