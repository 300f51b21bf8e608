//! Persists missed deadlines and ended maintenance, and removes agents that were offline for long enough.
//!
//! Readers do not depend on the sweeper: for them, a missed deadline or the end of maintenance takes effect
//! at once. The sweeper persists and announces it.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use registry_sdk::contract::AgentStatus;
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use super::Registry;
use super::change_log::ChangeLog;
use super::rules::{Change, DeadlinePolicy, has_leftover_maintenance};
use super::shared::{RETRY_INTERVAL, Shared};
use super::view::Entry;

/// Maximum number of changes submitted at a time, so that the queue keeps room for clients.
const MAX_CONCURRENT_CHANGES: usize = 500;

/// If more than this many agents have been offline for longer than this time, probably not all of them are
/// expected back.
const MANY_FORGOTTEN: usize = 100;
const FORGOTTEN_AFTER: Duration = Duration::from_secs(7 * 86_400);

/// Suggests `--remove-after` in the log if it is not set and many agents have been offline for long.
pub(super) fn warn_of_forgotten_agents(shared: &Shared) {
    if shared.config.remove_after.is_some() {
        return;
    }
    let now = shared.time.now();
    let is_forgotten = |Entry { agent, .. }: &Entry| {
        agent.status == AgentStatus::Offline
            && agent.offline_since.is_some_and(|since| now.since(since) >= FORGOTTEN_AFTER)
    };
    let agents = shared.view.ids_where(is_forgotten).len();
    if agents > MANY_FORGOTTEN {
        tracing::warn!(
            agents,
            "many agents have been offline for more than a week and are kept: --remove-after 7d would remove them"
        );
    }
}

/// Sweeps at every sweep interval, and soon after an outage that prevented it. Never returns.
///
/// # Cancel safety
/// Cancel safe: every change is made completely or not at all.
pub(super) async fn run(registry: Arc<Registry>) {
    let interval = registry.shared.config.sweep_interval;
    let mut ticks = interval_at(Instant::now() + interval, interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let availability = &registry.shared.availability;
        // During an outage, nothing can be written, and silence does not count.
        if availability.unavailable_for().is_some() {
            ticks.reset_after(interval.min(RETRY_INTERVAL));
        } else {
            sweep(&registry).await;
        }
        availability.record_sweep();
    }
}

async fn sweep(registry: &Arc<Registry>) {
    let shared = &registry.shared;
    if shared.database.is_shared() {
        confirm_upcoming(registry).await;
    }
    let context = shared.read_context();
    let (policy, now) = (&context.policy, context.now);
    let is_expired = |Entry { agent, liveness, .. }: &Entry| {
        let (heard, interval) = (liveness.last_heartbeat(), agent.heartbeat_interval);
        agent.status != AgentStatus::Offline
            && policy.is_past_deadline_by(policy.expiry_margin, heard, interval, now)
    };
    let expired = shared.view.ids_where(is_expired);
    let description = "set the status offline: it missed its deadline";
    submit_all(registry, expired, || Change::Expire, description).await;
    let over = shared.view.ids_where(|entry| has_leftover_maintenance(&entry.agent, now));
    let description = "end maintenance: its time is over";
    submit_all(registry, over, || Change::ExpireMaintenance, description).await;
    let purged = shared.view.ids_where(|entry| policy.is_purgeable(&entry.agent, now));
    let description = "remove: it was offline for longer than --remove-after";
    submit_all(registry, purged, || Change::Purge, description).await;
}

/// Confirms deadlines that are due before the next sweep, so that readers rarely have to.
async fn confirm_upcoming(registry: &Registry) {
    let shared = &registry.shared;
    let (now, silence) = shared.time.judge_later(shared.config.sweep_interval);
    let policy = DeadlinePolicy { silence, ..shared.read_context().policy };
    let is_due = |Entry { agent, liveness, .. }: &Entry| {
        agent.status != AgentStatus::Offline
            && policy.is_overdue(liveness.last_heartbeat(), agent.heartbeat_interval, now)
    };
    let due = shared.view.ids_where(is_due);
    if !due.is_empty() {
        shared.confirm_deadlines(&due).await;
    }
}

/// Submits a change of each agent, and logs the changes that were made.
pub(super) async fn submit_all(
    registry: &Registry,
    agent_ids: Vec<String>,
    change: impl Fn() -> Change,
    description: &'static str,
) {
    let mut log = ChangeLog::default();
    for chunk in agent_ids.chunks(MAX_CONCURRENT_CHANGES) {
        let submitted = chunk.iter().map(|agent_id| registry.submit_own(agent_id, change()));
        // The next sweep retries failed changes.
        join_all(submitted)
            .await
            .into_iter()
            .flatten()
            .for_each(|outcome| log.add(description, None, outcome));
    }
    log.write();
}
