//! Follows the changes of other servers, and polls the availability of the database.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout_at};

use super::availability::Part;
use super::broadcasts;
use super::history::entries_after;
use super::lane::{CONNECT_TIMEOUT, timed};
use super::shared::{RETRY_INTERVAL, Shared};
use crate::store::{Head, LogReader, Notification, Result, StoreError};

/// Interval at which the log is polled even without a notification.
///
/// Notifications may get lost, and an unavailable database sends none.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// Delay between a notification and the poll that it causes.
const NOTIFICATION_DELAY: Duration = Duration::from_millis(5);

/// Timeout of a poll.
const POLL_TIMEOUT: Duration = Duration::from_millis(1_250);

/// Follows the database: reads the log after each notification and at every poll interval. Never returns.
///
/// # Cancel safety
/// Cancel safe: the next follower reads entries again that were not applied.
pub(super) async fn run(shared: Arc<Shared>) {
    let mut is_replacement = false;
    loop {
        let (began, mut last_poll) = (Instant::now(), None);
        let Err(error) = follow(&shared, is_replacement, &mut last_poll).await else { continue };
        is_replacement = true;
        // Replace a session at once if it was just in use: nothing else may have been lost.
        if last_poll.is_none_or(|last_poll: Instant| last_poll.elapsed() > POLL_TIMEOUT) {
            shared.record_failure(Part::Follower, &error);
        }
        if last_poll.is_none() {
            sleep_until(began + RETRY_INTERVAL).await;
        }
    }
}

/// Follows on one session until it fails or all sessions are dropped.
async fn follow(shared: &Arc<Shared>, is_replacement: bool, last_poll: &mut Option<Instant>) -> Result<()> {
    let mut listener = timed(CONNECT_TIMEOUT, shared.database.listen()).await?;
    if is_replacement {
        // This may be another database, or one that has lost heartbeats.
        shared.drop_sessions();
    }
    // Servers that do not know this one respond, and only now can this server receive their responses.
    shared.replicas.introduce_soon();
    let generation = shared.generation();
    while shared.generation() == generation {
        let mut next_poll = Instant::now() + POLL_INTERVAL;
        let began = Instant::now();
        let head = catch_up(shared, &mut *listener).await?;
        shared.metrics.database.record_latency(Part::Follower.as_str(), began.elapsed());
        match head {
            Some(head) => shared.record_poll(head.now),
            None => shared.reload().await?,
        }
        *last_poll = Some(Instant::now());
        while let Ok(notification) = timeout_at(next_poll, listener.notified()).await {
            match notification? {
                // A busy server sends more notifications within this delay, so wait for them.
                Notification::Changed => next_poll = next_poll.min(Instant::now() + NOTIFICATION_DELAY),
                Notification::Broadcast(message) => broadcasts::receive(shared, &message),
            }
        }
    }
    Ok(())
}

/// Applies all unknown entries up to the head, and returns the head.
///
/// Most of this server's own entries are already known. `None` if the view does not match the database's
/// history.
pub(super) async fn catch_up(shared: &Shared, log: &mut dyn LogReader) -> Result<Option<Head>> {
    loop {
        let at = shared.view.position();
        let page = timed(POLL_TIMEOUT, log.read_log(at.position.revision)).await?;
        if !page.is_writable {
            return Err(StoreError::Unavailable("it is read-only, or a standby".into()));
        }
        shared.observe_head(&page.head);
        let head = page.head;
        let Some(entries) = entries_after(at.position, page) else { return Ok(None) };
        if !entries.is_empty() {
            shared.apply(at.epoch, &entries);
        }
        if shared.view.position().position.revision >= head.position.revision {
            return Ok(Some(head));
        }
    }
}
