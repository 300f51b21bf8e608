//! How far a connection is, and since when: so that a client which dawdles is noticed.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, sleep_until};

/// How long a client may take until the head of its request is whole; also the first one, from connecting on.
const HEAD: Duration = Duration::from_secs(10);

/// How long a connection may wait for its next request. Longer than clients of the SDK keep one they do not use, so that it
/// is not closed just when it is used again.
const IDLE: Duration = Duration::from_secs(75);

/// How long a client may take in nothing of what it is sent.
const STALLED: Duration = Duration::from_secs(30);

/// The pace of one connection. Bodies are not its matter: who reads them sets a time for that.
#[derive(Debug)]
pub(super) struct Pace(Mutex<State>);

#[derive(Debug)]
struct State {
    phase: Phase,
    /// Since when; in [`Phase::Idle`], when something was last sent.
    since: Instant,
    /// Since when the client takes in nothing.
    stalled_since: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Nothing of the first request is there.
    Connected,
    /// A request has begun to come.
    Head,
    /// A request is being answered.
    Answering,
    /// The answer is being sent, or has been.
    Idle,
}

impl Pace {
    pub(super) fn new() -> Self {
        Self(Mutex::new(State { phase: Phase::Connected, since: Instant::now(), stalled_since: None }))
    }

    /// The head of a request is whole.
    pub(super) fn begins_to_answer(&self) {
        self.0.lock().phase = Phase::Answering;
    }

    /// The answer has begun.
    pub(super) fn answers(&self) {
        let mut state = self.0.lock();
        (state.phase, state.since) = (Phase::Idle, Instant::now());
    }

    /// Waits until the client has kept the connection waiting for too long, and says at what.
    pub(super) async fn overdue(&self) -> &'static str {
        loop {
            let now = Instant::now();
            let (limit, why) = self.0.lock().limit(now);
            if limit <= now {
                return why;
            }
            // Whatever begins meanwhile has at least so long.
            sleep_until(limit.min(now + HEAD)).await;
        }
    }

    fn read(&self) {
        let mut state = self.0.lock();
        if matches!(state.phase, Phase::Connected | Phase::Idle) {
            if state.phase == Phase::Idle {
                state.since = Instant::now();
            }
            state.phase = Phase::Head;
        }
    }

    fn wrote(&self, taken: bool) {
        let mut state = self.0.lock();
        if taken {
            state.stalled_since = None;
            state.since = if state.phase == Phase::Idle { Instant::now() } else { state.since };
        } else {
            state.stalled_since.get_or_insert_with(Instant::now);
        }
    }
}

impl State {
    fn limit(&self, now: Instant) -> (Instant, &'static str) {
        if let Some(since) = self.stalled_since {
            return (since + STALLED, "the client does not read its answer");
        }
        match self.phase {
            Phase::Connected => (self.since + HEAD, "no request came"),
            Phase::Head => (self.since + HEAD, "the head of a request did not come to its end"),
            Phase::Idle => (self.since + IDLE, "no further request came"),
            Phase::Answering => (now + IDLE, "it is being answered"),
        }
    }
}

/// A connection that tells its pace.
#[derive(Debug)]
pub(super) struct Paced<I> {
    io: I,
    pace: Arc<Pace>,
}

impl<I> Paced<I> {
    pub(super) fn new(io: I, pace: Arc<Pace>) -> Self {
        Self { io, pace }
    }

    fn wrote<T>(&self, outcome: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        self.pace.wrote(outcome.is_ready());
        outcome
    }

    /// Nothing to flush is no progress: only what is held up counts.
    fn flushed(&self, outcome: Poll<io::Result<()>>) -> Poll<io::Result<()>> {
        if outcome.is_pending() { self.wrote(outcome) } else { outcome }
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Paced<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let outcome = Pin::new(&mut self.io).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.pace.read();
        }
        outcome
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Paced<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.io).poll_write(cx, buf);
        self.wrote(outcome)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.wrote(outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.io).poll_flush(cx);
        self.flushed(outcome)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.io).poll_shutdown(cx);
        self.flushed(outcome)
    }
}
