//! A connection, plain or encrypted, that several threads use.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use rustls::ServerConnection;

use super::certificates::TlsConfig;
use super::socket::Socket;

/// Most bytes that are encrypted at once: they take as much memory again.
const TLS_PART_BYTES: usize = 64 << 10;

/// A connection. What is sent at once is not torn apart by what another thread sends.
#[derive(Debug)]
pub(super) struct Stream {
    socket: Socket,
    /// Held for as long as encrypting takes, and never while something waits for the client.
    tls: Option<Mutex<ServerConnection>>,
    /// Held while something is sent: bytes that are encrypted, on their way out. Taken before `tls`.
    sending: Mutex<Vec<u8>>,
}

impl Stream {
    /// Takes the socket over.
    pub(super) fn plain(socket: OwnedFd) -> io::Result<Self> {
        Ok(Self {
            socket: Socket::new(socket)?,
            tls: None,
            sending: Mutex::default(),
        })
    }

    /// The same connection, encrypted from here on. Waits for the client until `deadline`.
    pub(super) fn encrypt(self, config: &TlsConfig, deadline: Instant) -> io::Result<Self> {
        let mut tls = config.connection()?;
        // It is sent in small parts anyway.
        tls.set_buffer_limit(None);
        let stream = Self {
            tls: Some(Mutex::new(tls)),
            ..self
        };
        stream.shake_hands(deadline)?;
        Ok(stream)
    }

    fn shake_hands(&self, deadline: Instant) -> io::Result<()> {
        let Some(tls) = &self.tls else { return Ok(()) };
        loop {
            self.flush(Some(deadline))?;
            if !lock(tls).is_handshaking() {
                return Ok(());
            }
            match self.pull(tls)? {
                None => self.socket.wait_for_bytes(Some(deadline))?,
                Some(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Some(_) => {}
            }
        }
    }

    /// Receives what is there, at the end nothing. None if nothing is there yet.
    pub(super) fn receive_now(&self, into: &mut [u8]) -> io::Result<Option<usize>> {
        let Some(tls) = &self.tls else {
            return self.socket.receive_now(into);
        };
        loop {
            match lock(tls).reader().read(into) {
                Ok(count) => return Ok(Some(count)),
                // Clients leave without a word.
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(Some(0)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            if self.pull(tls)?.is_none() {
                return Ok(None);
            }
        }
    }

    /// Waits for bytes, with a deadline until then; at the end there are none.
    pub(super) fn receive(&self, into: &mut [u8], deadline: Option<Instant>) -> io::Result<usize> {
        if self.tls.is_none() && deadline.is_none() {
            return self.socket.receive_in_the_end(into);
        }
        loop {
            if let Some(count) = self.receive_now(into)? {
                return Ok(count);
            }
            self.socket.wait_for_bytes(deadline)?;
        }
    }

    /// Sends all of `bytes`, until `deadline` if there is one.
    pub(super) fn send(&self, bytes: &[u8], deadline: Option<Instant>) -> io::Result<()> {
        let mut sending = lock(&self.sending);
        let Some(tls) = &self.tls else {
            return self.socket.send(bytes, deadline);
        };
        for part in bytes.chunks(TLS_PART_BYTES) {
            lock(tls).writer().write_all(part)?;
            self.push(tls, &mut sending, deadline)?;
        }
        Ok(())
    }

    /// Ends the connection for all threads that use it.
    pub(super) fn shut_down(&self) {
        self.socket.shut_down();
    }

    /// Decrypts some of what is there: how many bytes that was; at the end 0.
    fn pull(&self, tls: &Mutex<ServerConnection>) -> io::Result<Option<usize>> {
        let mut connection = lock(tls);
        let count = match connection.read_tls(&mut Now(&self.socket)) {
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
                self.say_why(tls);
                return Err(io::Error::new(ErrorKind::InvalidData, error));
            }
        }
        Ok(Some(count))
    }

    /// An alert, if it can be sent without waiting.
    fn say_why(&self, tls: &Mutex<ServerConnection>) {
        if let Ok(mut sending) = self.sending.try_lock() {
            let _ = self.push(tls, &mut sending, Some(Instant::now()));
        }
    }

    /// Sends what TLS itself has to say.
    fn flush(&self, deadline: Option<Instant>) -> io::Result<()> {
        let mut sending = lock(&self.sending);
        match &self.tls {
            Some(tls) => self.push(tls, &mut sending, deadline),
            None => Ok(()),
        }
    }

    fn push(
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

/// Reads what is there, and does not wait.
struct Now<'s>(&'s Socket);

impl Read for Now<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let received = self.0.receive_now(into)?;
        received.ok_or_else(|| ErrorKind::WouldBlock.into())
    }
}

/// A panic of another thread ends the process.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Who cannot be sent anything has left: the next attempt to receive says so, too.
pub(super) fn left(error: io::Error) -> io::Result<()> {
    gone(error).map(|_| ())
}

/// A connection that was reset is at its end.
pub(super) fn gone(error: io::Error) -> io::Result<usize> {
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
    fn a_deadline_ends_what_would_wait_for_ever() {
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
