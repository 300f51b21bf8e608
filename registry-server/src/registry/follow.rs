//! Keeps the view up to what other replicas change, and notices when the database goes away and comes back.

use std::sync::Arc;
use std::time::Duration;

use super::Core;
use crate::store::{Event, Store, StoreError};

/// How often to look even where nothing was announced: an announcement may be lost with its connection, and
/// a database that went away announces nothing.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// How many of the latest changes are read at the start, for watchers that come back: enough for those of a minute
/// or so, and few enough not to hold up the start.
const RECALLED: i64 = 4_096;

/// Follows the database. Wakes at each announcement and every half second; never ends by itself. It may be
/// cancelled at any await: what is not yet taken over is read again by the next follower.
pub(super) async fn run(core: Arc<Core>) {
    let changed = core.store.change_notify();
    loop {
        // Whichever comes first; which of them it was does not matter.
        let _ = tokio::time::timeout(LOOK_EVERY, changed.notified()).await;
        let caught_up = catch_up(&core).await;
        core.noticed(&caught_up);
    }
}

/// Takes over all changes that are not known yet: those that this server made itself mostly are.
async fn catch_up(core: &Core) -> Result<(), StoreError> {
    loop {
        let seen = core.events.head();
        let batch = core.store.read_events(seen).await?;
        core.observe(batch.now);
        if core.availability.away_for().is_some() {
            // Its disk may be full, say: then it answers, but takes nothing.
            core.store.check_writable().await?;
        }
        if let Some(away) = core.availability.found(batch.now) {
            tracing::info!(away_seconds = away.as_secs_f64(), "the database is back");
        }
        let next = batch.events.first().map(|event| event.agent.revision);
        // Revisions have no gaps: where the next one is not there, it was removed as too old, or it cannot be
        // read, or the database was set back.
        if next.map_or(batch.revision != seen, |next| next != seen + 1) {
            reload(core, seen).await?;
            continue;
        }
        core.take_over(&batch.events);
        let seen = core.events.head();
        core.view.forget_removed(seen);
        if seen >= batch.revision {
            return Ok(());
        }
    }
}

async fn reload(core: &Core, seen: i64) -> Result<(), StoreError> {
    let snapshot = core.store.load().await?;
    let revision = snapshot.revision;
    tracing::warn!(seen, revision, "too much has changed to follow step by step: read everything anew");
    core.observe(snapshot.now);
    core.view.replace(snapshot, revision < seen);
    core.events.break_off(revision);
    Ok(())
}

/// The latest changes before a revision, as far as they are still there, so that watchers who come back find them.
pub(super) async fn recent(store: &dyn Store, revision: i64) -> Result<Vec<Event>, StoreError> {
    let mut found: Vec<Event> = Vec::new();
    let mut after = (revision - RECALLED).max(0);
    while after < revision {
        let mut events = store.read_events(after).await?.events;
        let Some(last) = events.last() else { break };
        after = last.agent.revision;
        found.append(&mut events);
    }
    // Others may have gone on writing.
    found.retain(|event| event.agent.revision <= revision);
    Ok(found)
}
