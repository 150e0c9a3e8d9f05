//! One connection, from the greeting to the client's leaving.

use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use super::error::NbdError;
use super::exports::Exports;
use super::negotiation::{Negotiation, Session, Step};
use super::options::NbdOptions;
use super::stream::{Input, Stream, gone, left};
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
/// `on_start` is called once a disk is chosen.
///
/// # Errors
/// When the client breaks the protocol or takes too long to begin, or the connection fails. A client that simply goes
/// away is no error, nor is a read that fails: the client is told of that, and goes on.
pub fn serve_connection(
    socket: OwnedFd,
    exports: &Exports,
    options: &NbdOptions,
    meter: Meter,
    on_start: impl FnOnce(),
) -> Result<Served, NbdError> {
    let stream = Stream::new(socket)?;
    let mut input = Input::new();
    match negotiate(&stream, &mut input, exports, options.negotiation)? {
        None => Ok(Served::Nobody),
        Some(session) => {
            on_start();
            let transmission = Transmission::new(stream, session, options, meter);
            transmission.run(input).map(Served::Client)
        }
    }
}

/// Until a disk is chosen, or the client leaves.
fn negotiate(
    stream: &Stream,
    input: &mut Input,
    exports: &Exports,
    limit: Duration,
) -> Result<Option<Session>, NbdError> {
    let deadline = Instant::now() + limit;
    let in_time = |error: io::Error| match error.kind() {
        ErrorKind::TimedOut => NbdError::Late {
            seconds: limit.as_secs(),
        },
        _ => error.into(),
    };
    let mut out = Vec::new();
    let mut negotiation = Negotiation::begin(exports, &mut out);
    loop {
        stream
            .send_before(&out, deadline)
            .or_else(left)
            .map_err(in_time)?;
        out.clear();
        match negotiation.step(input.bytes(), &mut out)? {
            Step::Took(count) => input.take(count),
            Step::More => {
                let receive = |room: &mut [u8]| stream.receive_before(room, deadline);
                if input.add(receive).or_else(gone).map_err(in_time)? == 0 {
                    return at_end(input, &negotiation);
                }
            }
            Step::Chosen(count, session) => {
                input.take(count);
                stream
                    .send_before(&out, deadline)
                    .or_else(left)
                    .map_err(in_time)?;
                return Ok(Some(session));
            }
            Step::Left => {
                // It need not wait for the answer.
                let _ = stream.send_before(&out, deadline);
                return Ok(None);
            }
        }
    }
}

/// The client has closed the connection.
fn at_end(input: &Input, negotiation: &Negotiation<'_>) -> Result<Option<Session>, NbdError> {
    if input.bytes().is_empty() || negotiation.is_untouched() {
        return Ok(None);
    }
    Err(NbdError::Cut)
}
