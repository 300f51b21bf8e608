//! Writes down who has missed its deadline, and removes who has been offline long enough.
//!
//! Readers do not wait for the sweeper: for them a missed deadline counts at once. The sweeper makes it last,
//! and announces it.

use std::sync::Arc;

use futures_util::future::join_all;
use registry_sdk::contract::{AgentStatus, Timestamp};
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use super::Registry;
use super::rules::Change;

/// How many changes are asked for at once, so that those of agents find room among them.
const AT_ONCE: usize = 500;

/// How many changes a replica may fall behind before it has to read everything anew.
const KEEP_EVENTS: i64 = 20_000;

/// Sweeps every sweep interval. Never ends by itself; may be cancelled at any await, since every change is
/// whole.
pub(super) async fn run(registry: Arc<Registry>) {
    let every = registry.core.config.sweep_interval;
    let mut ticks = interval_at(Instant::now() + every, every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        sweep(&registry).await;
    }
}

async fn sweep(registry: &Registry) {
    let core = &registry.core;
    if core.availability.away_for().is_some() {
        // Nothing can be written, and nobody's silence counts.
        core.availability.swept();
        return;
    }
    if core.store.is_shared() {
        look_ahead(registry).await;
    }
    let moment = core.moment();
    let before = moment.earlier(moment.patience.margin);
    let expired =
        core.view.ids_where(|held| held.agent.status != AgentStatus::Offline && held.is_overdue(&before));
    change_all(registry, expired, || Change::Expire, "marked agents offline that missed their deadline")
        .await;
    if let Some(limit) = core.config.remove_after {
        let old = |since: Timestamp| moment.now.since(since) > limit;
        let purged = core.view.ids_where(|held| held.agent.offline_since.is_some_and(old));
        change_all(registry, purged, || Change::Purge, "removed agents that stayed offline").await;
    }
    let pruned = core.store.prune_events(KEEP_EVENTS).await;
    core.noticed(&pruned);
    core.availability.swept();
}

/// Asks the database about agents whose deadline comes before the next sweep, as far as this process knows:
/// then readers rarely have to.
async fn look_ahead(registry: &Registry) {
    let core = &registry.core;
    let soon = core.moment().later(core.config.sweep_interval);
    let due = core.view.ids_where(|held| held.agent.status != AgentStatus::Offline && held.is_overdue(&soon));
    if !due.is_empty() {
        core.confirm(&due).await;
    }
}

async fn change_all(registry: &Registry, agent_ids: Vec<String>, change: impl Fn() -> Change, what: &str) {
    let mut changed = 0;
    for some in agent_ids.chunks(AT_ONCE) {
        let asked =
            some.iter().map(|agent_id| registry.submit(agent_id, change(), std::time::Instant::now()));
        changed += join_all(asked).await.into_iter().flatten().count();
    }
    if changed > 0 {
        tracing::info!(agents = changed, "{what}");
    }
}
