//! Timeouts of one connection: tracks its phase, and closes the connection if the client is too slow.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, sleep_until};

/// Timeout for a request head, and for the first request after connecting.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// Timeout of an idle keep-alive connection.
///
/// Longer than SDK clients keep idle connections, so that the server never closes a connection that is being
/// reused.
const IDLE_TIMEOUT: Duration = Duration::from_secs(75);

/// Timeout while the client does not read the response.
const STALL_TIMEOUT: Duration = Duration::from_secs(30);

/// Timeouts of one connection. Reading the request body has a separate timeout.
#[derive(Debug)]
pub(super) struct Timeouts(Mutex<State>);

#[derive(Debug)]
struct State {
    phase: Phase,
    /// Start of the phase. In [`Phase::Idle`], the time of the last write.
    since: Instant,
    /// Time since which the client has not read anything.
    stalled_since: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Nothing of the first request has arrived yet.
    Connected,
    /// A part of a request head has arrived.
    ReadingHead,
    /// The request is being handled.
    Handling,
    /// The response is being sent, or was sent.
    Idle,
}

impl Timeouts {
    pub(super) fn new() -> Self {
        Self(Mutex::new(State { phase: Phase::Connected, since: Instant::now(), stalled_since: None }))
    }

    /// Records that a request head is complete.
    pub(super) fn request_received(&self) {
        self.0.lock().phase = Phase::Handling;
    }

    /// Records that the response has started.
    pub(super) fn response_started(&self) {
        let mut state = self.0.lock();
        (state.phase, state.since) = (Phase::Idle, Instant::now());
    }

    /// Waits until a timeout expires, and returns the reason for the log.
    pub(super) async fn expired(&self) -> &'static str {
        loop {
            let now = Instant::now();
            let (deadline, reason) = self.0.lock().deadline(now);
            if deadline <= now {
                return reason;
            }
            // A phase that starts meanwhile lasts at least this long.
            sleep_until(deadline.min(now + HEADER_TIMEOUT)).await;
        }
    }

    fn on_read(&self) {
        let mut state = self.0.lock();
        if matches!(state.phase, Phase::Connected | Phase::Idle) {
            if state.phase == Phase::Idle {
                state.since = Instant::now();
            }
            state.phase = Phase::ReadingHead;
        }
    }

    fn on_write(&self, has_progress: bool) {
        let mut state = self.0.lock();
        if has_progress {
            state.stalled_since = None;
            state.since = if state.phase == Phase::Idle { Instant::now() } else { state.since };
        } else {
            state.stalled_since.get_or_insert_with(Instant::now);
        }
    }
}

impl State {
    fn deadline(&self, now: Instant) -> (Instant, &'static str) {
        if let Some(since) = self.stalled_since {
            return (since + STALL_TIMEOUT, "the client does not read the response");
        }
        match self.phase {
            Phase::Connected => (self.since + HEADER_TIMEOUT, "no request was received"),
            Phase::ReadingHead => (self.since + HEADER_TIMEOUT, "the request head was not completed"),
            Phase::Idle => (self.since + IDLE_TIMEOUT, "idle"),
            Phase::Handling => (now + IDLE_TIMEOUT, "request in progress"),
        }
    }
}

/// A connection that reports reads and writes to its timeouts.
#[derive(Debug)]
pub(super) struct TimedIo<I> {
    io: I,
    timeouts: Arc<Timeouts>,
}

impl<I> TimedIo<I> {
    pub(super) fn new(io: I, timeouts: Arc<Timeouts>) -> Self {
        Self { io, timeouts }
    }

    fn record_write<T>(&self, outcome: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        self.timeouts.on_write(outcome.is_ready());
        outcome
    }

    /// Records only blocked flushes, since an empty flush is not progress.
    fn record_flush(&self, outcome: Poll<io::Result<()>>) -> Poll<io::Result<()>> {
        if outcome.is_pending() { self.record_write(outcome) } else { outcome }
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for TimedIo<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let outcome = Pin::new(&mut self.io).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.timeouts.on_read();
        }
        outcome
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for TimedIo<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.io).poll_write(cx, buf);
        self.record_write(outcome)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.record_write(outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.io).poll_flush(cx);
        self.record_flush(outcome)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.io).poll_shutdown(cx);
        self.record_flush(outcome)
    }
}
