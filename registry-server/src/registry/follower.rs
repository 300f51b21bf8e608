//! Keeps the view up to what other replicas change, and notices when the database goes away and comes back.

use std::sync::Arc;
use std::time::Duration;

use super::Shared;
use crate::store::{Event, Store, StoreError};

/// How often to look even where nothing was announced: an announcement may be lost with its connection, and
/// a database that went away announces nothing.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// How many of the latest changes are read at the start, for watchers that come back: enough for those of a minute
/// or so, and few enough not to hold up the start.
const MAX_REPLAYED_EVENTS: i64 = 4_096;

/// Follows the database. Wakes at each announcement and every half second; never ends by itself. It may be
/// cancelled at any await: what is not yet taken over is read again by the next follower.
pub(super) async fn run(shared: Arc<Shared>) {
    let changed = shared.store.change_notify();
    loop {
        // Whichever comes first; which of them it was does not matter.
        let _ = tokio::time::timeout(POLL_INTERVAL, changed.notified()).await;
        let caught_up = catch_up(&shared).await;
        shared.record_outcome(&caught_up);
    }
}

/// Takes over all changes that are not known yet: those that this server made itself mostly are.
async fn catch_up(shared: &Shared) -> Result<(), StoreError> {
    loop {
        let head = shared.events.head();
        let batch = shared.store.read_events(head).await?;
        shared.observe_clock(batch.now);
        if shared.availability.unavailable_for().is_some() {
            // Its disk may be full, say: then it answers, but takes nothing.
            shared.store.check_writable().await?;
        }
        if let Some(outage) = shared.availability.mark_available(batch.now) {
            tracing::info!(
                unavailable_seconds = outage.as_secs_f64(),
                "the database is available again, accepting writes"
            );
        }
        let next = batch.events.first().map(|event| event.agent.revision);
        // Revisions have no gaps: where the next one is not there, it was removed as too old, or it cannot be
        // read, or the database was set back.
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

/// The latest changes before a revision, as far as they are still there, so that watchers who come back find them.
pub(super) async fn recent_events(store: &dyn Store, revision: i64) -> Result<Vec<Event>, StoreError> {
    let mut replayed: Vec<Event> = Vec::new();
    let mut after = (revision - MAX_REPLAYED_EVENTS).max(0);
    while after < revision {
        let mut events = store.read_events(after).await?.events;
        let Some(last) = events.last() else { break };
        after = last.agent.revision;
        replayed.append(&mut events);
    }
    // Others may have gone on writing.
    replayed.retain(|event| event.agent.revision <= revision);
    Ok(replayed)
}
