//! A connection, plain or with TLS, which several threads use.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use rustls::ServerConnection;

use super::certificates::TlsConfig;
use super::socket::Socket;

/// Maximum number of bytes to encrypt at once, because the encrypted bytes take as much memory again.
const TLS_PART_BYTES: usize = 64 << 10;

/// A connection. Bytes of one [`send`](Self::send) are not interleaved with those of other threads.
#[derive(Debug)]
pub(super) struct Stream {
    socket: Socket,
    /// Locked while bytes are encrypted or decrypted, but never while waiting for the client.
    tls: Option<Mutex<ServerConnection>>,
    /// Buffer for encrypted bytes. Locked while bytes are sent. Lock order: before `tls`.
    sending: Mutex<Vec<u8>>,
}

impl Stream {
    /// A connection without TLS.
    pub(super) fn plain(socket: OwnedFd) -> io::Result<Self> {
        Ok(Self {
            socket: Socket::new(socket)?,
            tls: None,
            sending: Mutex::default(),
        })
    }

    /// Starts TLS and waits for the handshake, until `deadline`.
    pub(super) fn encrypt(self, config: &TlsConfig, deadline: Instant) -> io::Result<Self> {
        let mut tls = config.connection()?;
        // send() limits what is buffered.
        tls.set_buffer_limit(None);
        let stream = Self {
            tls: Some(Mutex::new(tls)),
            ..self
        };
        stream.handshake(deadline)?;
        Ok(stream)
    }

    fn handshake(&self, deadline: Instant) -> io::Result<()> {
        let Some(tls) = &self.tls else { return Ok(()) };
        loop {
            self.flush(Some(deadline))?;
            if !lock(tls).is_handshaking() {
                return Ok(());
            }
            match self.read_tls(tls)? {
                None => self.socket.wait_for_bytes(Some(deadline))?,
                Some(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Some(_) => {}
            }
        }
    }

    /// Receives without blocking. `None` if there are no bytes yet, `Some(0)` at the end of the stream.
    pub(super) fn receive_now(&self, into: &mut [u8]) -> io::Result<Option<usize>> {
        let Some(tls) = &self.tls else {
            return self.socket.receive_now(into);
        };
        loop {
            match lock(tls).reader().read(into) {
                Ok(count) => return Ok(Some(count)),
                // Clients disconnect without TLS's close_notify. The protocol's messages show whether one was cut off.
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(Some(0)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            if self.read_tls(tls)?.is_none() {
                return Ok(None);
            }
        }
    }

    /// Waits for bytes until `deadline`, if there is one, and receives them. 0 is the end of the stream.
    pub(super) fn receive(&self, into: &mut [u8], deadline: Option<Instant>) -> io::Result<usize> {
        if self.tls.is_none() && deadline.is_none() {
            return self.socket.receive_blocking(into);
        }
        loop {
            if let Some(count) = self.receive_now(into)? {
                return Ok(count);
            }
            self.socket.wait_for_bytes(deadline)?;
        }
    }

    /// Sends all of `bytes`. Fails at `deadline`, if there is one.
    pub(super) fn send(&self, bytes: &[u8], deadline: Option<Instant>) -> io::Result<()> {
        let mut sending = lock(&self.sending);
        let Some(tls) = &self.tls else {
            return self.socket.send(bytes, deadline);
        };
        for part in bytes.chunks(TLS_PART_BYTES) {
            lock(tls).writer().write_all(part)?;
            self.send_tls(tls, &mut sending, deadline)?;
        }
        Ok(())
    }

    /// Ends the connection for all threads that use it.
    pub(super) fn shut_down(&self) {
        self.socket.shut_down();
    }

    /// Receives encrypted bytes without blocking. Returns their number; `None` if there are none yet, 0 at the end.
    fn read_tls(&self, tls: &Mutex<ServerConnection>) -> io::Result<Option<usize>> {
        let mut connection = lock(tls);
        let count = match connection.read_tls(&mut NonBlocking(&self.socket)) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
            done => done?,
        };
        let state = connection.process_new_packets();
        let has_answer = connection.wants_write();
        drop(connection);
        match state {
            Ok(_) if has_answer => self.flush(None)?,
            Ok(_) => {}
            Err(error) => {
                self.send_alert(tls);
                return Err(io::Error::new(ErrorKind::InvalidData, error));
            }
        }
        Ok(Some(count))
    }

    /// Sends a TLS alert, if that is possible without waiting.
    fn send_alert(&self, tls: &Mutex<ServerConnection>) {
        if let Ok(mut sending) = self.sending.try_lock() {
            let _ = self.send_tls(tls, &mut sending, Some(Instant::now()));
        }
    }

    /// Sends messages of TLS itself.
    fn flush(&self, deadline: Option<Instant>) -> io::Result<()> {
        let mut sending = lock(&self.sending);
        match &self.tls {
            Some(tls) => self.send_tls(tls, &mut sending, deadline),
            None => Ok(()),
        }
    }

    fn send_tls(
        &self,
        tls: &Mutex<ServerConnection>,
        out: &mut Vec<u8>,
        deadline: Option<Instant>,
    ) -> io::Result<()> {
        out.clear();
        let mut connection = lock(tls);
        while connection.wants_write() {
            connection.write_tls(out)?;
        }
        drop(connection);
        self.socket.send(out, deadline)
    }
}

/// A socket as a reader that does not block.
struct NonBlocking<'s>(&'s Socket);

impl Read for NonBlocking<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let received = self.0.receive_now(into)?;
        received.ok_or_else(|| ErrorKind::WouldBlock.into())
    }
}

/// Ignores poisoning: a panic of any thread ends the process.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ignores that the client has disconnected. The next attempt to receive reports it.
pub(super) fn ignore_reset(error: io::Error) -> io::Result<()> {
    reset_is_eof(error).map(|_| ())
}

/// Treats a reset connection like the end of the stream.
pub(super) fn reset_is_eof(error: io::Error) -> io::Result<usize> {
    match error.kind() {
        ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => Ok(0),
        _ => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use super::*;

    #[test]
    fn receiving_and_sending_end_at_the_deadline() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let stream = Stream::plain(ours.into()).unwrap();
        let deadline = Instant::now() + Duration::from_millis(20);
        let received = stream.receive(&mut [0], Some(deadline));
        assert_eq!(received.unwrap_err().kind(), ErrorKind::TimedOut);
        let sent = stream.send(&vec![0; 64 << 20], Some(deadline));
        assert_eq!(sent.unwrap_err().kind(), ErrorKind::TimedOut);
        drop(theirs);
    }
}
