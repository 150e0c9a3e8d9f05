//! One connection, from the greeting to the client's leaving.

use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use super::error::NbdError;
use super::exports::{Export, Exports};
use super::input::Input;
use super::negotiation::{Encryption, Negotiation, Session, Step};
use super::options::NbdOptions;
use super::stream::{Stream, gone, left};
use super::transmission::Transmission;
use crate::device::meter::{Meter, Stats};

/// What came of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Served {
    /// A client had the disk.
    Client(Stats),
    /// Someone connected and left without having chosen a disk: a look at the list, or a probe for a living socket.
    Nobody,
}

/// Serves one of `exports` to the client at the other end of `socket`, a connected stream socket, until the client
/// leaves.
///
/// `on_start` is called with the disk that the client has chosen, before its first request is taken.
///
/// # Errors
/// When the client breaks the protocol or takes too long to begin, or the connection fails. A client that simply goes
/// away is no error, nor is a read that fails: the client is told of that, and goes on.
pub fn serve_connection(
    socket: OwnedFd,
    exports: &Exports,
    options: &NbdOptions,
    meter: Meter,
    on_start: impl FnOnce(&Export),
) -> Result<Served, NbdError> {
    let stream = Stream::plain(socket)?;
    let mut input = Input::new();
    match negotiate(stream, &mut input, exports, options)? {
        None => Ok(Served::Nobody),
        Some((stream, session)) => {
            on_start(&session.export);
            let transmission = Transmission::new(stream, session, options, meter);
            transmission.run(input).map(Served::Client)
        }
    }
}

/// Until a disk is chosen, or the client leaves.
fn negotiate(
    mut stream: Stream,
    input: &mut Input,
    exports: &Exports,
    options: &NbdOptions,
) -> Result<Option<(Stream, Session)>, NbdError> {
    let deadline = Instant::now() + options.negotiation;
    let in_time = |error| in_time(error, options.negotiation);
    let send = |stream: &Stream, out: &[u8]| {
        let sent = stream.send(out, Some(deadline)).or_else(left);
        sent.map_err(in_time)
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
            Step::Took(count) => input.take(count),
            Step::More => {
                let receive = |room: &mut [u8]| stream.receive(room, Some(deadline));
                if input.add(receive).or_else(gone).map_err(in_time)? == 0 {
                    at_end(input, &negotiation)?;
                    return Ok(None);
                }
            }
            Step::Chosen(count, session) => {
                input.take(count);
                send(&stream, &out)?;
                return Ok(Some((stream, session)));
            }
            Step::Encrypt(count) => {
                input.take(count);
                send(&stream, &out)?;
                out.clear();
                stream = encrypt(stream, input, options, deadline)?;
                negotiation.encrypted();
            }
            Step::Left => {
                // It need not wait for the answer.
                let _ = stream.send(&out, Some(deadline));
                return Ok(None);
            }
        }
    }
}

/// The client may send nothing with its wish for TLS, or somebody on the way could add to what it says afterwards.
fn encrypt(
    stream: Stream,
    input: &Input,
    options: &NbdOptions,
    deadline: Instant,
) -> Result<Stream, NbdError> {
    let Some(tls) = options.tls.as_ref().filter(|_| input.bytes().is_empty()) else {
        return Err(NbdError::BeforeTls);
    };
    stream
        .encrypt(tls, deadline)
        .map_err(|error| match error.kind() {
            ErrorKind::TimedOut => in_time(error, options.negotiation),
            ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => {
                NbdError::Cut
            }
            _ => NbdError::Handshake(error),
        })
}

fn in_time(error: io::Error, limit: Duration) -> NbdError {
    match error.kind() {
        ErrorKind::TimedOut => NbdError::Late {
            seconds: limit.as_secs(),
        },
        _ => error.into(),
    }
}

/// The client has closed the connection.
fn at_end(input: &Input, negotiation: &Negotiation<'_>) -> Result<(), NbdError> {
    if input.bytes().is_empty() || negotiation.is_untouched() {
        return Ok(());
    }
    Err(NbdError::Cut)
}
