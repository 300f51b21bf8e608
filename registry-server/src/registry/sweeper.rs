//! Persists missed deadlines, and removes agents that have been offline for long enough.
//!
//! Readers do not depend on the sweeper: for them a missed deadline counts at once. The sweeper persists and
//! announces it.

use std::sync::Arc;

use futures_util::future::join_all;
use registry_sdk::contract::{AgentStatus, Timestamp};
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use super::Registry;
use super::rules::Change;

/// Maximum number of changes submitted at a time, so that the queue has room for those of clients.
const MAX_CONCURRENT_CHANGES: usize = 500;

/// Number of revisions whose events are kept: a replica further behind reloads everything.
const RETAINED_REVISIONS: i64 = 20_000;

/// Sweeps at every sweep interval. Never returns.
///
/// # Cancel safety
/// Cancel safe: every change is complete or not made at all.
pub(super) async fn run(registry: Arc<Registry>) {
    let interval = registry.shared.config.sweep_interval;
    let mut ticks = interval_at(Instant::now() + interval, interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        sweep(&registry).await;
    }
}

async fn sweep(registry: &Registry) {
    let shared = &registry.shared;
    if shared.availability.unavailable_for().is_some() {
        // During an outage nothing can be written, and silence does not count.
        shared.availability.record_sweep();
        return;
    }
    if shared.store.is_shared() {
        confirm_upcoming(registry).await;
    }
    let context = shared.read_context();
    let deadline_context = context.earlier(context.policy.expiry_margin);
    let expired = shared
        .view
        .ids_where(|entry| entry.agent.status != AgentStatus::Offline && entry.is_overdue(&deadline_context));
    submit_all(registry, expired, || Change::Expire, "marked agents offline after a missed deadline").await;
    if let Some(limit) = shared.config.remove_after {
        let is_expired = |since: Timestamp| context.now.since(since) > limit;
        let purged = shared.view.ids_where(|entry| entry.agent.offline_since.is_some_and(is_expired));
        submit_all(
            registry,
            purged,
            || Change::Purge,
            "removed agents that were offline for longer than --remove-after",
        )
        .await;
    }
    let pruned = shared.store.prune_events(RETAINED_REVISIONS).await;
    shared.record_outcome(&pruned);
    shared.availability.record_sweep();
}

/// Confirms deadlines that fall before the next sweep, so that readers rarely have to.
async fn confirm_upcoming(registry: &Registry) {
    let shared = &registry.shared;
    let next_sweep = shared.read_context().later(shared.config.sweep_interval);
    let due = shared
        .view
        .ids_where(|entry| entry.agent.status != AgentStatus::Offline && entry.is_overdue(&next_sweep));
    if !due.is_empty() {
        shared.confirm_deadlines(&due).await;
    }
}

async fn submit_all(registry: &Registry, agent_ids: Vec<String>, change: impl Fn() -> Change, message: &str) {
    let mut changed = 0;
    for chunk in agent_ids.chunks(MAX_CONCURRENT_CHANGES) {
        let submitted =
            chunk.iter().map(|agent_id| registry.submit(agent_id, change(), std::time::Instant::now()));
        changed += join_all(submitted).await.into_iter().flatten().count();
    }
    if changed > 0 {
        tracing::info!(agents = changed, "{message}");
    }
}
