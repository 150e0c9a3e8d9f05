//! The transmission phase: requests and replies.
//!
//! One thread receives requests and executes those that need not block. It sends the replies to requests that arrived
//! together with one system call. Requests that would block go to a pool of threads, which send their replies
//! themselves, so that a slow read does not delay later requests.
//!
//! Memory is limited: one segment per thread, one reply that is longer than a segment, and [`SLOTS_MAX`] requests in
//! the pool. If a client sends more requests, or does not read its replies, the server stops receiving.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::disk::NbdDisk;
use super::error::NbdError;
use super::execute::{Action, DiskRequest, ReplyProgress, SEGMENT_BYTES, dispatch};
use super::input::ReceiveBuffer;
use super::negotiation::Session;
use super::options::NbdOptions;
use super::reply::ReplyBuffer;
use super::request::parse;
use super::stream::{Stream, ignore_reset, reset_is_eof};
use super::wire::REQUEST_LEN_BYTES;
use crate::device::log_limit::{LogLimit, and_similar};
use crate::device::meter::{Counters, Meter, Stats};
use crate::device::vhost_blk::poller::Poller;
use crate::device::vhost_blk::pool::{Job, Pool};
use crate::image::ReadError;
use crate::source::IoMode;

/// Maximum number of requests in the pool, queued or running.
const SLOTS_MAX: usize = 256;

/// Replies are sent when they have this length, even if more requests are waiting.
const BATCH_BYTES: usize = 64 << 10;

/// Memory for replies that is kept.
const KEPT_BYTES: usize = BATCH_BYTES + SEGMENT_BYTES as usize + 4096;

/// A connection in the transmission phase.
pub(super) struct Transmission {
    session: Session,
    options: NbdOptions,
    state: Arc<SharedState>,
    pool: Pool<PoolJob>,
}

/// State shared by all threads of the connection.
struct SharedState {
    stream: Stream,
    disk: NbdDisk,
    limit: LogLimit,
    /// Locked while there is a reply longer than a segment.
    large_reply: Mutex<()>,
    slots_in_use: Mutex<usize>,
    slot_released: Condvar,
    meter: Meter,
}

/// A request for the pool.
struct PoolJob {
    request: DiskRequest,
    state: Arc<SharedState>,
    /// When the request was received.
    received_at: Instant,
}

impl Transmission {
    pub(super) fn new(
        stream: Stream,
        session: Session,
        options: &NbdOptions,
        meter: Meter,
    ) -> Self {
        let state = SharedState {
            stream,
            disk: NbdDisk::new(Arc::clone(&session.export.image)),
            limit: LogLimit::new(),
            large_reply: Mutex::default(),
            slots_in_use: Mutex::default(),
            slot_released: Condvar::new(),
            meter,
        };
        Self {
            session,
            options: options.clone(),
            state: Arc::new(state),
            pool: Pool::new(options.threads.get()),
        }
    }

    /// Serves requests until the client disconnects. `input` contains what was received after the handshake.
    pub(super) fn run(self, mut input: ReceiveBuffer) -> Result<Stats, NbdError> {
        let mut out = ReplyBuffer::default();
        let end = self.serve(&mut input, &mut out);
        // Requests before the disconnect still get their replies.
        self.pool.end();
        match end {
            // The client has disconnected without notice, which is no error.
            Err(NbdError::Connection(error)) => ignore_reset(error)?,
            other => other?,
        }
        Ok(self.state.meter.stats())
    }

    fn serve(&self, input: &mut ReceiveBuffer, out: &mut ReplyBuffer) -> Result<(), NbdError> {
        let mut poller = Poller::new(self.options.poll);
        loop {
            while let Some(bytes) = input.take_array::<REQUEST_LEN_BYTES>() {
                if !self.answer(&bytes, input, out)? {
                    return Ok(self.state.send(out)?);
                }
            }
            self.state.send(out)?;
            let receive = |buffer: &mut [u8]| self.state.receive(buffer, &mut poller);
            if input.add(receive).or_else(reset_is_eof)? == 0 {
                return match input.bytes() {
                    [] => Ok(()),
                    _ => Err(NbdError::UnexpectedEof),
                };
            }
        }
    }

    /// Answers a request or submits it to the pool. Returns false for a disconnect request.
    fn answer(
        &self,
        bytes: &[u8; REQUEST_LEN_BYTES],
        input: &mut ReceiveBuffer,
        out: &mut ReplyBuffer,
    ) -> Result<bool, NbdError> {
        let parsed = parse(bytes, &self.session)?;
        if parsed.payload_bytes > 0 {
            self.state.send(out)?;
            self.state.discard(parsed.payload_bytes, input)?;
        }
        match dispatch(&parsed, out) {
            Action::Answered => self.state.meter.of(0).count(Some(0)),
            Action::Refused(refusal) => self.state.refused(&refusal),
            Action::Execute(request) => self.try_without_blocking(request, out)?,
            Action::Disconnect => return Ok(false),
        }
        if out.bytes().len() >= BATCH_BYTES {
            self.state.send(out)?;
        }
        Ok(true)
    }

    /// Does what can be done without blocking; gives the rest to the pool.
    fn try_without_blocking(
        &self,
        mut request: DiskRequest,
        out: &mut ReplyBuffer,
    ) -> Result<(), NbdError> {
        let (received_at, counters) = (Instant::now(), self.state.meter.of(0));
        if request.is_slow() {
            return self.submit(request, received_at, out);
        }
        let len_bytes = request.len_bytes();
        loop {
            match request.advance(&self.state.disk, IoMode::NoWait, out) {
                Ok(ReplyProgress::Done) => {
                    counters.took_since(received_at, 1);
                    counters.count(Some(len_bytes));
                    return Ok(());
                }
                Ok(ReplyProgress::More) => self.state.send(out)?,
                Err(error) if error.would_block().is_some() => {
                    return self.submit(request, received_at, out);
                }
                Err(error) => {
                    self.state.failed(&request, &error, counters, out);
                    return Ok(());
                }
            }
        }
    }

    fn submit(
        &self,
        request: DiskRequest,
        received_at: Instant,
        out: &mut ReplyBuffer,
    ) -> Result<(), NbdError> {
        if !self.state.try_acquire_slot() {
            // The client may wait for these replies before it sends more. Waiting for a slot could take long.
            self.state.send(out)?;
            self.state.acquire_slot();
        }
        let job = PoolJob {
            request,
            state: Arc::clone(&self.state),
            received_at,
        };
        if let Err(job) = self.pool.submit(job) {
            // No thread could be started, so this one blocks.
            self.state.send(out)?;
            job.run();
        }
        Ok(())
    }
}

impl Job for PoolJob {
    fn run(self) {
        let _large = self
            .request
            .is_large()
            .then(|| lock(&self.state.large_reply));
        if self.state.finish(self.request, self.received_at).is_err() {
            // The receiving thread must end, too.
            self.state.stream.shut_down();
        }
        self.state.release_slot();
    }
}

impl SharedState {
    /// Executes `request`, blocking if necessary, and sends its reply.
    fn finish(&self, mut request: DiskRequest, received_at: Instant) -> io::Result<()> {
        let mut out = ReplyBuffer::default();
        let len_bytes = request.len_bytes();
        let counters = self.meter.last();
        loop {
            let progress = request.advance(&self.disk, IoMode::Blocking, &mut out);
            match &progress {
                Ok(ReplyProgress::Done) => counters.count(Some(len_bytes)),
                Ok(ReplyProgress::More) => {}
                Err(error) => self.failed(&request, error, counters, &mut out),
            }
            self.send(&mut out)?;
            if !matches!(progress, Ok(ReplyProgress::More)) {
                counters.took_since(received_at, 1);
                counters.set_plans(self.disk.plans_begun());
                return Ok(());
            }
        }
    }

    fn send(&self, out: &mut ReplyBuffer) -> io::Result<()> {
        if out.bytes().is_empty() {
            return Ok(());
        }
        self.stream.send(out.bytes(), None)?;
        out.clear(KEPT_BYTES);
        Ok(())
    }

    fn receive(&self, buffer: &mut [u8], poller: &mut Poller) -> io::Result<usize> {
        let mut received = None;
        let mut look = || {
            received = self.stream.receive_now(buffer).transpose();
            received.is_some()
        };
        if look() || poller.wait(&mut look) {
            return received.unwrap_or(Ok(0));
        }
        poller.sleeps();
        let received = self.stream.receive(buffer, None);
        poller.woke();
        received
    }

    /// Discards the payload of a refused request.
    fn discard(&self, len_bytes: u32, input: &mut ReceiveBuffer) -> Result<(), NbdError> {
        let mut left = usize::try_from(len_bytes).unwrap_or(usize::MAX);
        loop {
            let here = left.min(input.bytes().len());
            input.take(here);
            left -= here;
            if left == 0 {
                return Ok(());
            }
            let receive = |buffer: &mut [u8]| self.stream.receive(buffer, None);
            if input.add(receive).or_else(reset_is_eof)? == 0 {
                return Err(NbdError::UnexpectedEof);
            }
        }
    }

    fn try_acquire_slot(&self) -> bool {
        let mut in_use = lock(&self.slots_in_use);
        let is_free = *in_use < SLOTS_MAX;
        *in_use += usize::from(is_free);
        self.meter.last().took(usize::from(is_free));
        is_free
    }

    fn acquire_slot(&self) {
        let in_use = lock(&self.slots_in_use);
        let in_use = self
            .slot_released
            .wait_while(in_use, |in_use| *in_use >= SLOTS_MAX);
        *in_use.unwrap_or_else(PoisonError::into_inner) += 1;
        self.meter.last().took(1);
    }

    fn release_slot(&self) {
        *lock(&self.slots_in_use) -= 1;
        self.meter.last().left(1);
        self.slot_released.notify_one();
    }

    fn refused(&self, refusal: &super::request::Refusal) {
        self.meter.of(0).count(None);
        if let Some(dropped) = self.limit.pass_request(None) {
            let more = and_similar(dropped);
            tracing::warn!("an NBD request was refused: {refusal}{more}");
        }
    }

    fn failed(
        &self,
        request: &DiskRequest,
        error: &ReadError,
        counters: &Counters,
        out: &mut ReplyBuffer,
    ) {
        counters.count(None);
        request.fail(out);
        if let Some(dropped) = self.limit.pass_request(self.disk.culprit(error)) {
            let (offset, len_bytes) = (request.offset(), request.len_bytes());
            tracing::warn!(
                "read of {len_bytes} bytes at {offset} failed: {error}{}",
                and_similar(dropped)
            );
        }
    }
}

/// Ignores poisoning: all critical sections leave the state consistent.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
