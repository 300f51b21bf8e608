//! Active probing: the server asks each agent itself how it is. Two failures in a row make an agent unhealthy, one
//! success heals it.
//!
//! Of several servers over one database one asks: whoever holds the lease. Agents are asked in laps of one
//! interval, each at its own moment of the lap, so that there are no bursts.

mod ask;
mod guard;

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

use super::reports::Report;
use super::rules::Change;
use super::view::Held;
use super::{Core, Registry};
use ask::{Answered, Asker};
use guard::Guard;

/// For how long a server may ask before it has to renew its lease.
const LEASE: Duration = Duration::from_secs(10);

/// How often the lease is renewed, or asked for.
const RENEW: Duration = Duration::from_secs(3);

/// How many failures in a row make an agent unhealthy.
const FAILURES: u32 = 2;

/// What one who asks agents needs.
struct Prober {
    registry: Arc<Registry>,
    asker: Asker,
    /// Who failed lately, and how often in a row.
    failing: Mutex<HashMap<String, Failing>>,
}

struct Failing {
    /// What was asked: another address, or another process, begins anew.
    base_url: String,
    instance_id: Option<String>,
    times: u32,
}

/// What the lease is called.
const LEASE_NAME: &str = "probe";

/// Asks all agents every interval, until it is told to stop. Then another server may take over at once.
pub(super) async fn run(registry: Arc<Registry>, interval: Duration, stop: CancellationToken) {
    let config = &registry.core.config;
    let asker = match Asker::new(Guard::new(&config.probe_allow), config.probe_timeout) {
        Ok(asker) => asker,
        Err(error) => {
            tracing::error!(%error, "agents cannot be probed");
            return;
        }
    };
    let at_once = Arc::new(Semaphore::new(config.probe_concurrency.get()));
    let core = registry.core.clone();
    let prober = Arc::new(Prober { registry, asker, failing: Mutex::default() });
    let (leads, leading) = watch::channel(false);
    tokio::select! {
        () = lead(&core, leads) => {}
        () = laps(&prober, interval, &at_once, leading.clone()) => {}
        () = stop.cancelled() => {}
    }
    if *leading.borrow() {
        // Where it cannot be given back it runs out.
        let _ = core.store.acquire_lease(LEASE_NAME, &holder(&core), Duration::ZERO).await;
    }
}

fn holder(core: &Core) -> String {
    format!("{:016x}", core.server_id)
}

/// Asks for the lease again and again, and tells whether this server has it.
async fn lead(core: &Core, leads: watch::Sender<bool>) {
    let holder = holder(core);
    loop {
        let held = core.store.acquire_lease(LEASE_NAME, &holder, LEASE).await;
        core.noticed(&held);
        let held = held.unwrap_or(false);
        if leads.send_replace(held) != held {
            let what =
                if held { "this server probes the agents" } else { "another server probes the agents" };
            tracing::info!("{what}");
        }
        sleep(RENEW).await;
    }
}

async fn laps(
    prober: &Arc<Prober>,
    interval: Duration,
    at_once: &Arc<Semaphore>,
    mut leading: watch::Receiver<bool>,
) {
    let spread = RandomState::new();
    let mut asking = JoinSet::new();
    loop {
        if leading.wait_for(|leads| *leads).await.is_err() {
            return;
        }
        let start = Instant::now();
        for (moment, agent_id) in prober.lap(interval, &spread) {
            sleep_until(start + moment).await;
            let Ok(permit) = at_once.clone().acquire_owned().await else { return };
            if !*leading.borrow() {
                break;
            }
            let prober = prober.clone();
            asking.spawn(async move {
                prober.probe(&agent_id).await;
                drop(permit);
            });
            while asking.try_join_next().is_some() {}
        }
        sleep_until(start + interval).await;
    }
}

impl Prober {
    /// Whom to ask, and how long after the lap's beginning.
    fn lap(&self, interval: Duration, spread: &RandomState) -> Vec<(Duration, String)> {
        let view = &self.registry.core.view;
        let everyone = view.ids_where(is_asked);
        self.failing.lock().retain(|agent_id, _| view.held(agent_id).is_some());
        let millis = u64::try_from(interval.as_millis()).unwrap_or(u64::MAX).max(1);
        let moment = |agent_id: &String| Duration::from_millis(spread.hash_one(agent_id) % millis);
        let mut lap: Vec<_> = everyone.into_iter().map(|agent_id| (moment(&agent_id), agent_id)).collect();
        lap.sort_unstable();
        lap
    }

    async fn probe(&self, agent_id: &str) {
        let core = &self.registry.core;
        let Some(asked) = core.view.held(agent_id).filter(|held| is_asked(held)) else { return };
        let answered = self.asker.ask(&asked.agent.base_url).await;
        let now = core.view.held(agent_id);
        // Where it has registered anew meanwhile, with another address perhaps, this is not about it.
        let Some(held) = now.filter(|now| is_same(now, &asked)) else { return };
        let failed = self.count(&held, &answered);
        core.report(agent_id, Report { probe: Some(result(&answered, core)), ..Report::default() });
        let Some(failed) = failed.filter(|failed| *failed != held.agent.probe_failed) else { return };
        // Where it cannot be written now, the next probe finds the same.
        match self.registry.submit(agent_id, Change::Probed { failed }, std::time::Instant::now()).await {
            Ok(_) => {
                tracing::info!(agent_id, failed, detail = ?answered.outcome.err(), "a probe found something new");
            }
            Err(error) => tracing::debug!(agent_id, failed, %error, "could not write what a probe found"),
        }
    }

    /// Counts an outcome. Whether the agent counts as failed from now on; `None` where one failure is not enough to
    /// say so.
    fn count(&self, held: &Held, answered: &Answered) -> Option<bool> {
        let mut failing = self.failing.lock();
        let agent = &held.agent;
        if answered.outcome.is_ok() {
            failing.remove(&agent.agent_id);
            return Some(false);
        }
        let anew =
            || Failing { base_url: agent.base_url.clone(), instance_id: agent.instance_id.clone(), times: 0 };
        let entry = failing.entry(agent.agent_id.clone()).or_insert_with(anew);
        if entry.base_url != agent.base_url || entry.instance_id != agent.instance_id {
            *entry = anew();
        }
        entry.times = entry.times.saturating_add(1);
        (entry.times >= FAILURES).then_some(true)
    }
}

/// Who is offline is not asked.
fn is_asked(held: &Held) -> bool {
    held.agent.status != AgentStatus::Offline
}

fn is_same(one: &Held, other: &Held) -> bool {
    one.agent.base_url == other.agent.base_url && one.agent.instance_id == other.agent.instance_id
}

fn result(answered: &Answered, core: &Core) -> ProbeResult {
    let failure = answered.outcome.as_ref().err();
    ProbeResult::new(core.clock.now(), answered.took, failure.map(String::as_str))
}
