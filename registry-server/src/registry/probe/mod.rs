//! Active probing: the server requests each agent's health endpoint.
//!
//! Two failures in a row make an agent unhealthy, and one success makes it healthy again. A 404 says nothing
//! and changes nothing. If several servers share a database, only the holder of a lease probes. Probes run in
//! rounds of one interval, and each agent has its own offset within the round, so that there are no bursts.

mod address_filter;
mod client;

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use registry_sdk::contract::{AgentStatus, ProbeResult};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::Registry;
use super::change_log::ChangeLog;
use super::reports::Report;
use super::rules::Change;
use super::shared::Shared;
use super::view::Entry;
use crate::store::{StoreError, StoredAgent};
use address_filter::AddressFilter;
use client::{ProbeClient, ProbeOutcome, Verdict};

/// Lifetime of the lease, unless it is renewed.
const LEASE_DURATION: Duration = Duration::from_secs(10);

/// Interval at which the lease is requested or renewed.
const LEASE_RENEW_INTERVAL: Duration = Duration::from_secs(3);

/// Number of failures in a row that make an agent unhealthy.
const FAILURE_THRESHOLD: u32 = 2;

/// Interval at which changes are logged, so that many agents failing together share a line.
const LOG_INTERVAL: Duration = Duration::from_secs(5);

/// Probes agents and counts their failures.
struct Prober {
    registry: Arc<Registry>,
    client: ProbeClient,
    /// Current failure streaks, by agent id.
    failures: Mutex<HashMap<String, FailureStreak>>,
    /// Changes that have not been logged yet.
    log: Mutex<ChangeLog>,
}

struct FailureStreak {
    /// The agent at its first failure. A different address or process starts a new streak.
    agent: Arc<StoredAgent>,
    count: u32,
}

/// Name of the lease.
const LEASE_NAME: &str = "probe";

/// Probes all agents at every interval until the shutdown, and then releases the lease.
pub(super) async fn run(registry: Arc<Registry>, interval: Duration, shutdown: CancellationToken) {
    let config = &registry.shared.config;
    let client = match ProbeClient::new(AddressFilter::new(&config.probe_allow), config.probe_timeout) {
        Ok(client) => client,
        Err(error) => {
            tracing::error!(%error, "cannot set up the probe client, agents are not probed");
            return;
        }
    };
    let permits = Arc::new(Semaphore::new(config.probe_concurrency.get()));
    let shared = registry.shared.clone();
    let prober = Arc::new(Prober { registry, client, failures: Mutex::default(), log: Mutex::default() });
    let (leader_tx, is_leader) = watch::channel(false);
    tokio::select! {
        () = hold_lease(&shared, leader_tx) => {}
        () = run_rounds(&prober, interval, &permits, is_leader.clone()) => {}
        () = write_logs(&prober) => {}
        () = shutdown.cancelled() => {}
    }
    prober.write_log();
    if *is_leader.borrow() {
        // If this fails, the lease expires on its own.
        let _ = request_lease(&shared, Duration::ZERO).await;
    }
}

/// Requests, renews or releases the lease, and returns whether this server has it.
async fn request_lease(shared: &Shared, duration: Duration) -> Result<bool, StoreError> {
    let holder = format!("{:016x}", shared.server_id);
    shared.read(|session| session.acquire_lease(LEASE_NAME, &holder, duration)).await
}

/// Requests and renews the lease, and publishes whether this server holds it. Never returns.
async fn hold_lease(shared: &Shared, leader_tx: watch::Sender<bool>) {
    loop {
        let is_leader = request_lease(shared, LEASE_DURATION).await.unwrap_or(false);
        if leader_tx.send_replace(is_leader) != is_leader {
            let message = if is_leader {
                "acquired the probe lease, this server now probes the agents"
            } else {
                "lost the probe lease, another server now probes the agents"
            };
            tracing::info!("{message}");
        }
        sleep(LEASE_RENEW_INTERVAL).await;
    }
}

/// Logs the changes at every interval. Never returns.
async fn write_logs(prober: &Prober) {
    loop {
        sleep(LOG_INTERVAL).await;
        prober.write_log();
    }
}

async fn run_rounds(
    prober: &Arc<Prober>,
    interval: Duration,
    permits: &Arc<Semaphore>,
    mut is_leader: watch::Receiver<bool>,
) {
    let hasher = RandomState::new();
    let mut running_probes = JoinSet::new();
    loop {
        if is_leader.wait_for(|is_leader| *is_leader).await.is_err() {
            return;
        }
        let start = Instant::now();
        for (offset, agent_id) in prober.schedule(interval, &hasher) {
            sleep_until(start + offset).await;
            let Ok(permit) = permits.clone().acquire_owned().await else { return };
            if !*is_leader.borrow() {
                break;
            }
            let prober = prober.clone();
            running_probes.spawn(async move {
                prober.probe(&agent_id).await;
                drop(permit);
            });
            while running_probes.try_join_next().is_some() {}
        }
        sleep_until(start + interval).await;
    }
}

impl Prober {
    /// Returns the agents to probe, each with its offset from the start of the round.
    fn schedule(&self, interval: Duration, hasher: &RandomState) -> Vec<(Duration, String)> {
        let view = &self.registry.shared.view;
        let agent_ids = view.ids_where(should_probe);
        self.failures.lock().retain(|agent_id, _| view.entry(agent_id).is_some());
        let millis = u64::try_from(interval.as_millis()).unwrap_or(u64::MAX).max(1);
        let offset = |agent_id: &String| Duration::from_millis(hasher.hash_one(agent_id) % millis);
        let mut schedule: Vec<_> =
            agent_ids.into_iter().map(|agent_id| (offset(&agent_id), agent_id)).collect();
        schedule.sort_unstable();
        schedule
    }

    async fn probe(&self, agent_id: &str) {
        let shared = &self.registry.shared;
        let Some(probed) = shared.view.entry(agent_id).filter(|entry| should_probe(entry)) else { return };
        let outcome = self.client.probe(&probed.agent).await;
        let current = shared.view.entry(agent_id);
        // If the agent has registered again meanwhile, the outcome may concern another address.
        let is_meant =
            |current: &Arc<Entry>| should_probe(current) && current.agent.has_same_probes(&probed.agent);
        let Some(entry) = current.filter(is_meant) else { return };
        let failed = self.count(&entry.agent, &outcome);
        let ok = match &outcome.verdict {
            Verdict::Healthy => true,
            Verdict::CannotTell(_) => !entry.agent.probe_failed,
            Verdict::Failed(_) => false,
        };
        let detail = outcome.verdict.detail();
        let result = ProbeResult::new(shared.time.now(), outcome.elapsed, ok, detail.clone());
        shared.report(agent_id, Report { probe: Some(result), ..Report::default() });
        let Some(failed) = failed.filter(|failed| *failed != entry.agent.probe_failed) else { return };
        // If the change cannot be stored, the next probe retries it.
        match self.registry.submit_own(agent_id, Change::Probed { failed }).await {
            Ok(outcome) => {
                let change = if failed {
                    "mark unhealthy: its probes failed"
                } else {
                    "mark healthy: its probe succeeded"
                };
                self.log.lock().add(change, detail, outcome);
            }
            Err(error) => {
                tracing::debug!(agent_id, failed, %error, "cannot store the probe result, the next probe retries");
            }
        }
    }

    /// Logs the changes since the previous call.
    fn write_log(&self) {
        std::mem::take(&mut *self.log.lock()).write();
    }

    /// Counts an outcome. Returns whether the agent counts as failed from now on.
    ///
    /// `None` if nothing changes, because there were too few failures or the probe cannot tell.
    fn count(&self, agent: &Arc<StoredAgent>, outcome: &ProbeOutcome) -> Option<bool> {
        let mut failures = self.failures.lock();
        match outcome.verdict {
            Verdict::Healthy => {
                failures.remove(&agent.agent_id);
                return Some(false);
            }
            Verdict::CannotTell(_) => return None,
            Verdict::Failed(_) => {}
        }
        let new_streak = || FailureStreak { agent: agent.clone(), count: 0 };
        let streak = failures.entry(agent.agent_id.clone()).or_insert_with(new_streak);
        if !streak.agent.has_same_probes(agent) {
            *streak = new_streak();
        }
        streak.count = streak.count.saturating_add(1);
        (streak.count >= FAILURE_THRESHOLD).then_some(true)
    }
}

/// Whether an agent is probed: neither offline agents nor those that opted out are.
fn should_probe(entry: &Entry) -> bool {
    entry.agent.status != AgentStatus::Offline && entry.agent.may_be_probed()
}
