//! The transmission: requests and replies, until the client leaves.
//!
//! One thread receives. It answers at once what is in memory, all requests that came together with one call to send
//! their replies; what would block goes to a few other threads, which send their replies themselves. So a client that
//! has many requests in flight costs few calls, and none of its requests waits for another's disk.
//!
//! Memory is bounded: a segment for each thread, one long reply at a time, and [`WAITING_MAX`] requests that wait. A
//! client that sends more than that, or does not read its replies, is not read from, either.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::answer::{Progress, SEGMENT_BYTES, Task, Work, begin};
use super::disk::Disk;
use super::error::NbdError;
use super::input::Input;
use super::negotiation::Session;
use super::options::NbdOptions;
use super::reply::Outbox;
use super::request::parse;
use super::stream::{Stream, gone, left};
use super::wire::REQUEST_LEN_BYTES;
use crate::device::log_limit::{LogLimit, more_like_it};
use crate::device::meter::{Counters, Meter, Stats};
use crate::device::vhost_blk::poller::Poller;
use crate::device::vhost_blk::pool::{Job, Pool};
use crate::image::ReadError;
use crate::source::IoMode;

/// Requests that wait for a thread, or are being worked on by one.
const WAITING_MAX: usize = 256;

/// Replies are sent when there are so many bytes of them, though more requests are at hand.
const BATCH_BYTES: usize = 64 << 10;

/// Room for replies that is kept.
const KEPT_BYTES: usize = BATCH_BYTES + SEGMENT_BYTES as usize + 4096;

/// A connection whose client has chosen a disk.
pub(super) struct Transmission {
    session: Session,
    options: NbdOptions,
    shared: Arc<Shared>,
    pool: Pool<Waiting>,
}

/// What all threads use.
struct Shared {
    stream: Stream,
    disk: Disk,
    limit: LogLimit,
    /// Held while there is a reply longer than a segment.
    large: Mutex<()>,
    waiting: Mutex<usize>,
    fewer_waiting: Condvar,
    meter: Meter,
}

/// Work for one of the other threads.
struct Waiting {
    work: Work,
    shared: Arc<Shared>,
    /// When the request was read.
    taken: Instant,
}

impl Transmission {
    pub(super) fn new(
        stream: Stream,
        session: Session,
        options: &NbdOptions,
        meter: Meter,
    ) -> Self {
        let shared = Shared {
            stream,
            disk: Disk::new(Arc::clone(&session.export.image)),
            limit: LogLimit::new(),
            large: Mutex::default(),
            waiting: Mutex::default(),
            fewer_waiting: Condvar::new(),
            meter,
        };
        Self {
            session,
            options: options.clone(),
            shared: Arc::new(shared),
            pool: Pool::new(options.threads.get()),
        }
    }

    /// Until the client leaves. `input` is what came with the negotiation.
    pub(super) fn run(self, mut input: Input) -> Result<Stats, NbdError> {
        let mut out = Outbox::default();
        let end = self.serve(&mut input, &mut out);
        // Answers what was asked before the client said that it leaves.
        self.pool.end();
        match end {
            // Who cannot be sent anything has left.
            Err(NbdError::Connection(error)) => left(error)?,
            other => other?,
        }
        Ok(self.shared.meter.stats())
    }

    fn serve(&self, input: &mut Input, out: &mut Outbox) -> Result<(), NbdError> {
        let mut poller = Poller::new(self.options.poll);
        loop {
            while let Some(bytes) = input.take_array::<REQUEST_LEN_BYTES>() {
                if !self.answer(&bytes, input, out)? {
                    return Ok(self.shared.send(out)?);
                }
            }
            self.shared.send(out)?;
            let receive = |room: &mut [u8]| self.shared.receive(room, &mut poller);
            if input.add(receive).or_else(gone)? == 0 {
                return match input.bytes() {
                    [] => Ok(()),
                    _ => Err(NbdError::Cut),
                };
            }
        }
    }

    /// Answers a request, or has it answered. False if the client leaves.
    fn answer(
        &self,
        bytes: &[u8; REQUEST_LEN_BYTES],
        input: &mut Input,
        out: &mut Outbox,
    ) -> Result<bool, NbdError> {
        let parsed = parse(bytes, &self.session)?;
        if parsed.payload_bytes > 0 {
            self.shared.send(out)?;
            self.shared.throw_away(parsed.payload_bytes, input)?;
        }
        match begin(&parsed, out) {
            Task::Done => self.shared.meter.of(0).count(Some(0)),
            Task::Refused(refusal) => self.shared.refused(&refusal),
            Task::Work(work) => self.try_now(work, out)?,
            Task::Leave => return Ok(false),
        }
        if out.filled().len() >= BATCH_BYTES {
            self.shared.send(out)?;
        }
        Ok(true)
    }

    /// Does what can be done without waiting, and leaves the rest to other threads.
    fn try_now(&self, mut work: Work, out: &mut Outbox) -> Result<(), NbdError> {
        let (taken, counters) = (Instant::now(), self.shared.meter.of(0));
        if work.is_heavy() {
            return self.hand_over(work, taken, out);
        }
        let len_bytes = work.len_bytes();
        loop {
            match work.advance(&self.shared.disk, IoMode::NoWait, out) {
                Ok(Progress::Done) => {
                    counters.took_since(taken, 1);
                    counters.count(Some(len_bytes));
                    return Ok(());
                }
                Ok(Progress::Part) => self.shared.send(out)?,
                Err(error) if error.would_block().is_some() => {
                    return self.hand_over(work, taken, out);
                }
                Err(error) => {
                    self.shared.failed(&work, &error, counters, out);
                    return Ok(());
                }
            }
        }
    }

    fn hand_over(&self, work: Work, taken: Instant, out: &mut Outbox) -> Result<(), NbdError> {
        if !self.shared.try_begin_waiting() {
            // Those that wait may be what the client waits for.
            self.shared.send(out)?;
            self.shared.begin_waiting();
        }
        let waiting = Waiting {
            work,
            shared: Arc::clone(&self.shared),
            taken,
        };
        if let Err(waiting) = self.pool.submit(waiting) {
            // No thread could be started: this one waits for the disk.
            self.shared.send(out)?;
            waiting.run();
        }
        Ok(())
    }
}

impl Job for Waiting {
    fn run(self) {
        let _large = self.work.is_large().then(|| lock(&self.shared.large));
        if self.shared.finish(self.work, self.taken).is_err() {
            // The thread that receives has to know, too.
            self.shared.stream.shut_down();
        }
        self.shared.end_waiting();
    }
}

impl Shared {
    /// Does all of `work`, however long it takes, and sends the reply.
    fn finish(&self, mut work: Work, taken: Instant) -> io::Result<()> {
        let mut out = Outbox::default();
        let len_bytes = work.len_bytes();
        let counters = self.meter.last();
        loop {
            let progress = work.advance(&self.disk, IoMode::Blocking, &mut out);
            match &progress {
                Ok(Progress::Done) => counters.count(Some(len_bytes)),
                Ok(Progress::Part) => {}
                Err(error) => self.failed(&work, error, counters, &mut out),
            }
            self.send(&mut out)?;
            if !matches!(progress, Ok(Progress::Part)) {
                counters.took_since(taken, 1);
                counters.set_plans(self.disk.plans_begun());
                return Ok(());
            }
        }
    }

    fn send(&self, out: &mut Outbox) -> io::Result<()> {
        if out.filled().is_empty() {
            return Ok(());
        }
        self.stream.send(out.filled(), None)?;
        out.clear(KEPT_BYTES);
        Ok(())
    }

    fn receive(&self, room: &mut [u8], poller: &mut Poller) -> io::Result<usize> {
        let mut received = None;
        let mut look = || {
            received = self.stream.receive_now(room).transpose();
            received.is_some()
        };
        if look() || poller.wait(&mut look) {
            return received.unwrap_or(Ok(0));
        }
        poller.sleeps();
        let received = self.stream.receive(room, None);
        poller.woke();
        received
    }

    /// Bytes that a client sends with what it may not do.
    fn throw_away(&self, len_bytes: u32, input: &mut Input) -> Result<(), NbdError> {
        let mut left = usize::try_from(len_bytes).unwrap_or(usize::MAX);
        loop {
            let here = left.min(input.bytes().len());
            input.take(here);
            left -= here;
            if left == 0 {
                return Ok(());
            }
            let receive = |room: &mut [u8]| self.stream.receive(room, None);
            if input.add(receive).or_else(gone)? == 0 {
                return Err(NbdError::Cut);
            }
        }
    }

    fn try_begin_waiting(&self) -> bool {
        let mut waiting = lock(&self.waiting);
        let has_room = *waiting < WAITING_MAX;
        *waiting += usize::from(has_room);
        self.meter.last().took(usize::from(has_room));
        has_room
    }

    fn begin_waiting(&self) {
        let waiting = lock(&self.waiting);
        let waiting = self
            .fewer_waiting
            .wait_while(waiting, |waiting| *waiting >= WAITING_MAX);
        *waiting.unwrap_or_else(PoisonError::into_inner) += 1;
        self.meter.last().took(1);
    }

    fn end_waiting(&self) {
        *lock(&self.waiting) -= 1;
        self.meter.last().left(1);
        self.fewer_waiting.notify_one();
    }

    fn refused(&self, refusal: &super::request::Refusal) {
        self.meter.of(0).count(None);
        if let Some(dropped) = self.limit.pass_request(None) {
            let more = more_like_it(dropped);
            tracing::warn!("an NBD request was refused: {refusal}{more}");
        }
    }

    fn failed(&self, work: &Work, error: &ReadError, counters: &Counters, out: &mut Outbox) {
        counters.count(None);
        work.fail(out);
        if let Some(dropped) = self.limit.pass_request(self.disk.culprit(error)) {
            let (offset, len_bytes) = (work.offset(), work.len_bytes());
            tracing::warn!(
                "read of {len_bytes} bytes at {offset} failed: {error}{}",
                more_like_it(dropped)
            );
        }
    }
}

/// Nothing here is ever half-changed: a panic of another thread changes nothing.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
