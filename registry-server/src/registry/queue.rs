//! Paced group commit: while one batch is written, the next one gathers.
//!
//! A batch begins when the previous one has ended and either enough requests are queued or the interval has passed since
//! the previous one began. So the database gets few statements however many requests there are, and a single request does
//! not wait.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::Error;

/// A queued request, and the channel for its result.
pub(super) struct Pending<T, A> {
    pub(super) request: T,
    pub(super) reply_tx: ReplySender<A>,
}

pub(super) type ReplySender<A> = oneshot::Sender<Result<A, Error>>;

/// Queues a request, and waits for its result.
pub(super) async fn submit<T, A>(queue: &mpsc::Sender<Pending<T, A>>, request: T) -> Result<A, Error> {
    let (reply_tx, reply_rx) = oneshot::channel();
    queue.try_send(Pending { request, reply_tx }).map_err(|error| match error {
        mpsc::error::TrySendError::Full(_) => Error::Overloaded,
        mpsc::error::TrySendError::Closed(_) => Error::ShuttingDown,
    })?;
    // Whoever had the request ended in the middle of it.
    reply_rx.await.unwrap_or(Err(Error::Unsettled))
}

/// Takes the requests out of a queue, in batches.
pub(super) struct Batches<T, A> {
    queue: mpsc::Receiver<Pending<T, A>>,
    /// Closes the queue.
    closing: CancellationToken,
    /// Time since the last batch began after which the next one need not wait.
    interval: Duration,
    /// Maximum number of requests in a batch.
    max: usize,
    last_began: Instant,
}

impl<T, A> Batches<T, A> {
    pub(super) fn new(
        queue: mpsc::Receiver<Pending<T, A>>,
        closing: CancellationToken,
        interval: Duration,
        max: usize,
    ) -> Self {
        Self { queue, closing, interval, max, last_began: Instant::now() }
    }

    /// Waits for a batch, and for the time to begin it: at once if it has `enough` requests or the queue is closed.
    ///
    /// Returns an empty batch if `woken` ends before there is a request, and `None` after the last one.
    pub(super) async fn next(
        &mut self,
        enough: usize,
        woken: impl Future<Output = ()>,
    ) -> Option<Vec<Pending<T, A>>> {
        let mut batch = Vec::new();
        tokio::pin!(woken);
        while batch.is_empty() {
            tokio::select! {
                biased;
                received = self.queue.recv_many(&mut batch, self.max) => if received == 0 { return None },
                () = self.closing.cancelled(), if !self.queue.is_closed() => self.queue.close(),
                () = &mut woken => return Some(batch),
            }
        }
        self.fill(&mut batch, enough).await;
        Some(batch)
    }

    async fn fill(&mut self, batch: &mut Vec<Pending<T, A>>, enough: usize) {
        let begins = self.last_began + self.interval;
        while batch.len() < enough && Instant::now() < begins {
            let missing = enough - batch.len();
            tokio::select! {
                biased;
                received = self.queue.recv_many(batch, missing) => if received == 0 { break },
                () = sleep_until(begins) => {}
            }
        }
        let room = self.max.saturating_sub(batch.len());
        batch.extend(std::iter::from_fn(|| self.queue.try_recv().ok()).take(room));
        self.last_began = Instant::now();
    }
}
