//! Serves one connection, from the greeting to its end.

use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use super::error::NbdError;
use super::exports::{Export, Exports};
use super::input::ReceiveBuffer;
use super::negotiation::{Encryption, Negotiation, Session, Step};
use super::options::NbdOptions;
use super::stream::{Stream, ignore_reset, reset_is_eof};
use super::transmission::Transmission;
use crate::device::meter::{Meter, Stats};

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Served {
    /// The client chose an export; what it read.
    Client(Stats),
    /// The client disconnected without choosing an export, for instance after it had listed them.
    NoExport,
}

/// Serves one of `exports` to the client that is connected to the stream socket `socket`, until it disconnects.
///
/// Calls `on_start` with the export that the client has chosen, before the first request is received.
///
/// # Errors
/// The client violates the protocol, the handshake takes too long, or the connection fails. It is no error that the
/// client disconnects without notice. Nor is a failed read: the client gets an error reply and the connection stays.
pub fn serve_connection(
    socket: OwnedFd,
    exports: &Exports,
    options: &NbdOptions,
    meter: Meter,
    on_start: impl FnOnce(&Export),
) -> Result<Served, NbdError> {
    let stream = Stream::plain(socket)?;
    let mut input = ReceiveBuffer::new();
    match negotiate(stream, &mut input, exports, options)? {
        None => Ok(Served::NoExport),
        Some((stream, session)) => {
            on_start(&session.export);
            let transmission = Transmission::new(stream, session, options, meter);
            transmission.run(input).map(Served::Client)
        }
    }
}

/// Runs the handshake. `None` if the client disconnects without choosing an export.
fn negotiate(
    mut stream: Stream,
    input: &mut ReceiveBuffer,
    exports: &Exports,
    options: &NbdOptions,
) -> Result<Option<(Stream, Session)>, NbdError> {
    let deadline = Instant::now() + options.negotiation;
    let map_timeout = |error| map_timeout(error, options.negotiation);
    let send = |stream: &Stream, out: &[u8]| {
        let sent = stream.send(out, Some(deadline)).or_else(ignore_reset);
        sent.map_err(map_timeout)
    };
    let encryption = match &options.tls {
        Some(_) => Encryption::Required,
        None => Encryption::NotOffered,
    };
    let mut out = Vec::new();
    let mut negotiation = Negotiation::begin(exports, encryption, &mut out);
    loop {
        send(&stream, &out)?;
        out.clear();
        match negotiation.step(input.bytes(), &mut out)? {
            Step::Consumed(count) => input.take(count),
            Step::NeedMore => {
                let receive = |buffer: &mut [u8]| stream.receive(buffer, Some(deadline));
                if input
                    .add(receive)
                    .or_else(reset_is_eof)
                    .map_err(map_timeout)?
                    == 0
                {
                    check_eof(input, &negotiation)?;
                    return Ok(None);
                }
            }
            Step::Transmission(count, session) => {
                input.take(count);
                send(&stream, &out)?;
                return Ok(Some((stream, session)));
            }
            Step::StartTls(count) => {
                input.take(count);
                send(&stream, &out)?;
                out.clear();
                stream = encrypt(stream, input, options, deadline)?;
                negotiation.tls_started();
            }
            Step::Abort => {
                // The client may disconnect without waiting for the reply.
                let _ = stream.send(&out, Some(deadline));
                return Ok(None);
            }
        }
    }
}

/// Starts TLS. Fails if the client has sent more bytes after `STARTTLS`: an attacker on the network could have added
/// them, and they would count as encrypted.
fn encrypt(
    stream: Stream,
    input: &ReceiveBuffer,
    options: &NbdOptions,
    deadline: Instant,
) -> Result<Stream, NbdError> {
    let Some(tls) = options.tls.as_ref().filter(|_| input.bytes().is_empty()) else {
        return Err(NbdError::UnencryptedData);
    };
    stream
        .encrypt(tls, deadline)
        .map_err(|error| match error.kind() {
            ErrorKind::TimedOut => map_timeout(error, options.negotiation),
            ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => {
                NbdError::UnexpectedEof
            }
            _ => NbdError::TlsHandshake(error),
        })
}

fn map_timeout(error: io::Error, limit: Duration) -> NbdError {
    match error.kind() {
        ErrorKind::TimedOut => NbdError::HandshakeTimeout {
            seconds: limit.as_secs(),
        },
        _ => error.into(),
    }
}

/// Checks that the client has not closed the connection in the middle of a message.
fn check_eof(input: &ReceiveBuffer, negotiation: &Negotiation<'_>) -> Result<(), NbdError> {
    if input.bytes().is_empty() || negotiation.awaits_client_flags() {
        return Ok(());
    }
    Err(NbdError::UnexpectedEof)
}
