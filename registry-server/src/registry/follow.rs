//! Keeps the view up to what other replicas change, and notices when the database goes away and comes back.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::Core;
use crate::store::{Followed, StoreError};

/// How often to look even where nothing was announced: an announcement may be lost with its connection, and
/// a database that went away announces nothing.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Follows the database from a revision on. Wakes at each announcement and every half second; never ends by
/// itself. It may be cancelled at any await: what is not yet taken over is read again by the next follower.
pub(super) async fn run(core: Arc<Core>, mut seen: i64) {
    let changed = core.store.changed();
    loop {
        // Whichever comes first; which of them it was does not matter.
        let _ = tokio::time::timeout(LOOK_EVERY, changed.notified()).await;
        let caught_up = catch_up(&core, &mut seen).await;
        core.noticed(&caught_up);
    }
}

/// Takes over all changes after `seen`.
async fn catch_up(core: &Core, seen: &mut i64) -> Result<(), StoreError> {
    loop {
        let followed = core.store.follow(*seen).await?;
        core.clock.observe(followed.now);
        if let Some(away) = core.availability.found(followed.now) {
            tracing::info!(away_seconds = away.as_secs_f64(), "the database is back");
        }
        let head = followed.revision;
        let oldest = followed.changed.first().map(|(revision, _)| *revision);
        // Revisions have no gaps: where the next one is not there, it was removed as too old, or the database
        // was set back.
        if oldest.map_or(head != *seen, |oldest| oldest != *seen + 1) {
            *seen = reload(core, *seen).await?;
            continue;
        }
        *seen = take_over(core, followed).await?.max(*seen);
        core.view.forget_removed(*seen);
        if *seen >= head {
            return Ok(());
        }
    }
}

async fn reload(core: &Core, seen: i64) -> Result<i64, StoreError> {
    let snapshot = core.store.load().await?;
    let revision = snapshot.revision;
    tracing::warn!(seen, revision, "too much has changed to follow step by step: read everything anew");
    core.clock.observe(snapshot.now);
    core.view.replace(snapshot, revision < seen);
    Ok(revision)
}

/// Takes over what changed, as it is now: an agent that changed several times is read once. Answers with the
/// last revision among the changes.
async fn take_over(core: &Core, followed: Followed) -> Result<i64, StoreError> {
    let last = followed.changed.last().map_or(0, |(revision, _)| *revision);
    let mut news: HashMap<String, i64> = HashMap::new();
    for (revision, agent_id) in followed.changed {
        if !core.view.has_seen(&agent_id, revision) {
            news.insert(agent_id, revision);
        }
    }
    if news.is_empty() {
        return Ok(last);
    }
    let agent_ids: Vec<String> = news.keys().cloned().collect();
    for agent in core.store.agents(&agent_ids).await? {
        news.remove(&agent.agent_id);
        core.view.put(agent);
    }
    // What changed and is not there was removed.
    for (agent_id, revision) in news {
        core.view.remove(&agent_id, revision);
    }
    Ok(last)
}
