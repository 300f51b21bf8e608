//! Paced group commit: while one batch is written, the next one gathers.
//!
//! A batch begins when the previous one has ended and either enough requests are queued or the interval has passed since
//! the previous one began. So the database gets few statements however many requests there are, and a single request does
//! not wait.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};

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

/// When the batches of a queue begin.
pub(super) struct Pace {
    /// Time since the last batch began after which the next one need not wait.
    interval: Duration,
    /// Maximum number of requests in a batch.
    max: usize,
    last_began: Instant,
}

impl Pace {
    pub(super) fn new(interval: Duration, max: usize) -> Self {
        Self { interval, max, last_began: Instant::now() }
    }

    /// Fills a batch that has its first requests until it may begin: at once if it has `enough`. Stops waiting if the queue
    /// is closed.
    pub(super) async fn fill<T>(&mut self, queue: &mut mpsc::Receiver<T>, batch: &mut Vec<T>, enough: usize) {
        let begins = self.last_began + self.interval;
        while batch.len() < enough && Instant::now() < begins {
            let missing = enough - batch.len();
            tokio::select! {
                biased;
                received = queue.recv_many(batch, missing) => if received == 0 { break },
                () = sleep_until(begins) => {}
            }
        }
        let room = self.max.saturating_sub(batch.len());
        batch.extend(std::iter::from_fn(|| queue.try_recv().ok()).take(room));
        self.last_began = Instant::now();
    }
}
