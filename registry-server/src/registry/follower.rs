//! Follows the changes of other replicas, and detects when the database becomes available again.

use std::sync::Arc;
use std::time::Duration;

use super::Shared;
use crate::store::{Event, Store, StoreError};

/// Interval at which events are polled even without a notification.
///
/// Notifications can get lost, and an unavailable database sends none.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// Maximum number of events replayed at start for resuming watchers.
///
/// Enough for about a minute of changes, and few enough not to delay the start.
const MAX_REPLAYED_EVENTS: i64 = 4_096;

/// Follows the database: wakes at each notification and at every poll interval. Never returns.
///
/// # Cancel safety
/// Cancel safe: events that were not applied are read again by the next follower.
pub(super) async fn run(shared: Arc<Shared>) {
    let changed = shared.store.change_notify();
    loop {
        // A notification and the timeout mean the same: look for events.
        let _ = tokio::time::timeout(POLL_INTERVAL, changed.notified()).await;
        let caught_up = catch_up(&shared).await;
        shared.record_outcome(&caught_up);
    }
}

/// Applies all events that are not known yet. Most of this server's own events are.
async fn catch_up(shared: &Shared) -> Result<(), StoreError> {
    loop {
        let head = shared.events.head();
        let batch = shared.store.read_events(head).await?;
        shared.observe_clock(batch.now);
        if shared.availability.unavailable_for().is_some() {
            // A database with a full disk, for example, answers reads but rejects writes.
            shared.store.check_writable().await?;
        }
        if let Some(outage) = shared.availability.mark_available(batch.now) {
            tracing::info!(
                unavailable_seconds = outage.as_secs_f64(),
                "the database is available again, accepting writes"
            );
        }
        let next = batch.events.first().map(|event| event.agent.revision);
        // Revisions have no gaps. If the next one is missing, it was pruned or cannot be decoded, or the
        // database was rolled back.
        if next.map_or(batch.revision != head, |next| next != head + 1) {
            reload(shared, head).await?;
            continue;
        }
        shared.apply(&batch.events);
        let head = shared.events.head();
        shared.view.prune_tombstones(head);
        if head >= batch.revision {
            return Ok(());
        }
    }
}

async fn reload(shared: &Shared, head: i64) -> Result<(), StoreError> {
    let snapshot = shared.store.load().await?;
    let revision = snapshot.revision;
    tracing::warn!(
        known_revision = head,
        revision,
        "cannot follow the events one by one, reloaded all agents"
    );
    shared.observe_clock(snapshot.now);
    shared.view.replace(snapshot, revision < head);
    shared.events.reset(revision);
    Ok(())
}

/// Reads the latest events up to a revision that are still stored, for watchers that resume.
pub(super) async fn recent_events(store: &dyn Store, revision: i64) -> Result<Vec<Event>, StoreError> {
    let mut replayed: Vec<Event> = Vec::new();
    let mut after = (revision - MAX_REPLAYED_EVENTS).max(0);
    while after < revision {
        let mut events = store.read_events(after).await?.events;
        let Some(last) = events.last() else { break };
        after = last.agent.revision;
        replayed.append(&mut events);
    }
    // Other replicas may have written more in the meantime.
    replayed.retain(|event| event.agent.revision <= revision);
    Ok(replayed)
}
