//! The handshake: the state machine that ends with the choice of an export. It works on bytes and has no socket.
//!
//! The server sends a greeting. The client replies with flags and then sends options, until one of them starts the
//! transmission.

use super::error::NbdError;
use super::exports::{Export, ExportName, Exports};
use super::option::{ClientOption, ContextQuery, InfoRequest, parse};
use super::wire::{
    BASE_ALLOCATION, BASE_ALLOCATION_ID, GREETING_MAGIC, OPTION_LEN_BYTES, OPTION_MAGIC,
    OPTION_REPLY_MAGIC, handshake, info, option, option_reply, transmission,
};

/// Maximum length of an option's data: several names of 4,096 bytes. Longer options are discarded and refused.
pub const OPTION_DATA_MAX_BYTES: usize = 64 << 10;

/// Maximum number of options of one client. libnbd and QEMU send fewer than ten.
pub const OPTIONS_MAX: u32 = 64;

/// Maximum length of a read. Clients may rely on this one without asking (`doc/proto.md`, "Block size constraints").
pub const READ_MAX_BYTES: u32 = 32 << 20;

/// Minimum block size: reads need no alignment.
const BLOCK_MIN_BYTES: u32 = 1;

/// Preferred block size: that of EROFS.
const BLOCK_PREFERRED_BYTES: u32 = 4096;

/// Zeros at the end of the reply to `EXPORT_NAME`, unless `NO_ZEROES` was negotiated.
const PADDING: [u8; 124] = [0; 124];

/// Length of the client's flags.
const FLAGS_LEN_BYTES: usize = 4;

/// The result of the handshake.
#[derive(Debug, Clone)]
pub struct Session {
    /// The chosen export.
    pub export: Export,
    /// Structured replies were negotiated.
    pub structured: bool,
    /// The metadata context `base:allocation` was negotiated.
    pub base_allocation: bool,
}

/// What the caller must do after [`Negotiation::step`].
#[derive(Debug)]
pub enum Step {
    /// Receive more bytes: the message is incomplete.
    NeedMore,
    /// Remove this number of bytes from the input.
    Consumed(usize),
    /// Remove this number of bytes, send the reply, and start the transmission.
    Transmission(usize, Session),
    /// Remove this number of bytes, send the reply, and start TLS.
    StartTls(usize),
    /// Send the reply and close the connection.
    Abort,
}

/// The state of TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encryption {
    /// The server has no certificate.
    NotOffered,
    /// Not started. Until it is, the client gets no information.
    Required,
    /// Started.
    Active,
}

/// The next part of the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expected {
    ClientFlags,
    Option,
    /// This number of bytes of an option that is too long.
    Discard(u64),
}

/// The handshake with one client.
#[derive(Debug)]
pub struct Negotiation<'e> {
    exports: &'e Exports,
    encryption: Encryption,
    expected: Expected,
    fixed: bool,
    padding: bool,
    structured: bool,
    /// The export for which the client has selected `base:allocation`.
    context_of: Option<ExportName>,
    options: u32,
}

impl<'e> Negotiation<'e> {
    /// Starts the handshake: writes the greeting to `out`.
    pub fn begin(exports: &'e Exports, encryption: Encryption, out: &mut Vec<u8>) -> Self {
        out.extend_from_slice(&GREETING_MAGIC.to_be_bytes());
        out.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
        let flags = handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES;
        out.extend_from_slice(&flags.to_be_bytes());
        Self {
            exports,
            encryption,
            expected: Expected::ClientFlags,
            fixed: false,
            padding: true,
            structured: false,
            context_of: None,
            options: 0,
        }
    }

    /// TLS has started. Nothing was negotiated before.
    pub fn tls_started(&mut self) {
        self.encryption = Encryption::Active;
    }

    /// Whether the client's flags have not been received yet.
    pub fn awaits_client_flags(&self) -> bool {
        self.expected == Expected::ClientFlags
    }

    /// Processes the message at the beginning of `input`, and appends the reply to `out`.
    ///
    /// # Errors
    /// The handshake cannot continue. The connection must be closed.
    pub fn step(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<Step, NbdError> {
        match self.expected {
            Expected::ClientFlags => self.take_flags(input),
            Expected::Discard(left) => Ok(self.discard(left, input)),
            Expected::Option => self.take_option(input, out),
        }
    }

    fn take_flags(&mut self, input: &[u8]) -> Result<Step, NbdError> {
        let Some((flags, _)) = input.split_first_chunk() else {
            return Ok(Step::NeedMore);
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
        Ok(Step::Consumed(FLAGS_LEN_BYTES))
    }

    fn discard(&mut self, left: u64, input: &[u8]) -> Step {
        let here = left.min(input.len() as u64);
        self.expected = match left - here {
            0 => Expected::Option,
            rest => Expected::Discard(rest),
        };
        match usize::try_from(here) {
            Ok(1..) => Step::Consumed(input.len().min(usize::try_from(here).unwrap_or(usize::MAX))),
            _ => Step::NeedMore,
        }
    }

    fn take_option(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<Step, NbdError> {
        let Some((header, rest)) = input.split_first_chunk::<OPTION_LEN_BYTES>() else {
            return Ok(Step::NeedMore);
        };
        let (number, len_bytes) = read_header(header)?;
        if !self.fixed && number != option::EXPORT_NAME {
            return Err(NbdError::NotFixed { option: number });
        }
        let len = usize::try_from(len_bytes).unwrap_or(usize::MAX);
        if len > OPTION_DATA_MAX_BYTES {
            self.count_option()?;
            return self.refuse_oversized(number, len_bytes, out);
        }
        let Some(data) = rest.get(..len) else {
            return Ok(Step::NeedMore);
        };
        self.count_option()?;
        let taken = OPTION_LEN_BYTES + len;
        let asked = parse(number, data);
        match self.encryption {
            Encryption::Required => Self::answer_before_tls(number, &asked, taken, out),
            _ => self.answer(number, asked, taken, out),
        }
    }

    /// Answers an option while TLS is required and not started.
    fn answer_before_tls(
        number: u32,
        asked: &ClientOption,
        taken: usize,
        out: &mut Vec<u8>,
    ) -> Result<Step, NbdError> {
        match asked {
            ClientOption::StartTls => {
                reply(out, number, option_reply::ACK, &[]);
                return Ok(Step::StartTls(taken));
            }
            ClientOption::Abort => {
                reply(out, number, option_reply::ACK, &[]);
                return Ok(Step::Abort);
            }
            ClientOption::ExportName(_) => return Err(NbdError::TlsRequired),
            _ if number == option::STARTTLS => reply_malformed(number, &mut None, out),
            _ => {
                let text = "TLS is required";
                reply_error(out, number, option_reply::ERR_TLS_REQD, text);
            }
        }
        Ok(Step::Consumed(taken))
    }

    fn count_option(&mut self) -> Result<(), NbdError> {
        self.options += 1;
        if self.options > OPTIONS_MAX {
            return Err(NbdError::TooManyOptions { max: OPTIONS_MAX });
        }
        Ok(())
    }

    /// Replies before the data have been received, because the client may wait for the reply before it sends them.
    fn refuse_oversized(
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
        self.expected = Expected::Discard(len_bytes.into());
        Ok(Step::Consumed(OPTION_LEN_BYTES))
    }

    fn answer(
        &mut self,
        number: u32,
        asked: ClientOption,
        taken: usize,
        out: &mut Vec<u8>,
    ) -> Result<Step, NbdError> {
        match asked {
            ClientOption::ExportName(name) => return self.export_name(&name, taken, out),
            ClientOption::Go(info_request) => {
                if let Some(export) = self.send_info(number, &info_request, out) {
                    return Ok(Step::Transmission(taken, self.session(export)));
                }
            }
            ClientOption::Abort => {
                reply(out, number, option_reply::ACK, &[]);
                return Ok(Step::Abort);
            }
            ClientOption::Info(info_request) => _ = self.send_info(number, &info_request, out),
            ClientOption::List => self.list(number, out),
            ClientOption::StructuredReply => {
                self.structured = true;
                reply(out, number, option_reply::ACK, &[]);
            }
            ClientOption::ListMetaContext(query) => self.list_contexts(number, &query, out),
            ClientOption::SetMetaContext(query) => self.set_contexts(number, &query, out),
            ClientOption::StartTls if self.encryption == Encryption::Active => {
                let text = "TLS is in use already";
                reply_error(out, number, option_reply::ERR_INVALID, text);
            }
            ClientOption::StartTls => {
                let text = "TLS is not offered";
                reply_error(out, number, option_reply::ERR_POLICY, text);
            }
            ClientOption::Unknown => {
                reply_error(out, number, option_reply::ERR_UNSUP, "unknown option");
            }
            ClientOption::Malformed => reply_malformed(number, &mut self.context_of, out),
        }
        Ok(Step::Consumed(taken))
    }

    /// `EXPORT_NAME`: starts the transmission without a regular reply.
    fn export_name(&self, name: &[u8], taken: usize, out: &mut Vec<u8>) -> Result<Step, NbdError> {
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
        Ok(Step::Transmission(taken, self.session(export)))
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

    /// `INFO` and `GO`: describes an export.
    fn send_info(
        &self,
        number: u32,
        info_request: &InfoRequest,
        out: &mut Vec<u8>,
    ) -> Option<&'e Export> {
        let Some(export) = self.exports.find(&info_request.name) else {
            reply_unknown_export(number, &info_request.name, out);
            return None;
        };
        let len = export.image.len_bytes().to_be_bytes();
        let parts = [
            &info::EXPORT.to_be_bytes()[..],
            &len,
            &self.flags().to_be_bytes(),
        ];
        reply(out, number, option_reply::INFO, &parts);
        if info_request.canonical_name {
            let parts = [&info::NAME.to_be_bytes(), export.name.as_bytes()];
            reply(out, number, option_reply::INFO, &parts);
        }
        if info_request.description {
            let parts = [
                &info::DESCRIPTION.to_be_bytes(),
                export.description.as_bytes(),
            ];
            reply(out, number, option_reply::INFO, &parts);
        }
        if info_request.block_size {
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
            return reply_unknown_export(number, &query.name, out);
        }
        if query.is_empty || query.base || query.base_allocation {
            reply_meta_context(out, number, 0);
        }
        reply(out, number, option_reply::ACK, &[]);
    }

    fn set_contexts(&mut self, number: u32, query: &ContextQuery, out: &mut Vec<u8>) {
        self.context_of = None;
        if !self.structured {
            let text = "NBD_OPT_STRUCTURED_REPLY must come first";
            return reply_error(out, number, option_reply::ERR_INVALID, text);
        }
        let Some(export) = self.exports.find(&query.name) else {
            return reply_unknown_export(number, &query.name, out);
        };
        if query.base_allocation {
            self.context_of = Some(export.name.clone());
            reply_meta_context(out, number, BASE_ALLOCATION_ID);
        }
        reply(out, number, option_reply::ACK, &[]);
    }
}

/// Returns the number and the length of an option.
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

fn reply_meta_context(out: &mut Vec<u8>, number: u32, id: u32) {
    let parts = [&id.to_be_bytes(), BASE_ALLOCATION];
    reply(out, number, option_reply::META_CONTEXT, &parts);
}

/// A `SET_META_CONTEXT` that fails also clears earlier selections (`doc/proto.md`).
fn reply_malformed(number: u32, context_of: &mut Option<ExportName>, out: &mut Vec<u8>) {
    if number == option::SET_META_CONTEXT {
        *context_of = None;
    }
    let text = "the option's data are malformed";
    reply_error(out, number, option_reply::ERR_INVALID, text);
}

fn reply_unknown_export(number: u32, name: &[u8], out: &mut Vec<u8>) {
    let text = match name {
        [] => "there is no default export: ask for one by its name",
        _ => "there is no export of that name",
    };
    reply_error(out, number, option_reply::ERR_UNKNOWN, text);
}

fn reply_error(out: &mut Vec<u8>, number: u32, kind: u32, text: &str) {
    reply(out, number, kind, &[text.as_bytes()]);
}

fn reply(out: &mut Vec<u8>, number: u32, kind: u32, parts: &[&[u8]]) {
    let len: usize = parts.iter().map(|part| part.len()).sum();
    out.extend_from_slice(&OPTION_REPLY_MAGIC.to_be_bytes());
    // Names and descriptions are limited, so the length always fits.
    for word in [number, kind, u32::try_from(len).unwrap_or(0)] {
        out.extend_from_slice(&word.to_be_bytes());
    }
    for part in parts {
        out.extend_from_slice(part);
    }
}

#[cfg(test)]
mod tests;
