//! State shared by all tasks of the registry.

use std::collections::BTreeSet;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use registry_sdk::contract::{AgentStatus, RegistryStats, Timestamp};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::availability::{Availability, Part};
use super::error::Error;
use super::lane::{Lane, timed};
use super::replicas::Replicas;
use super::reports::DirtyReports;
use super::rules::DeadlinePolicy;
use super::time::DatabaseTime;
use super::view::{Json, ReadContext, Record, View};
use crate::admission::Admission;
use crate::config::Config;
use crate::metrics::Metrics;
use crate::store::{
    AgentSender, Database, Head, LastHeartbeats, LogEntry, Purpose, Result, Session, StoreError, StoredAgent,
};

/// Interval at which a part whose session failed retries, measured between starts.
pub(super) const RETRY_INTERVAL: Duration = Duration::from_millis(500);

/// Timeout of a short read.
const READ_TIMEOUT: Duration = Duration::from_secs(1);

/// Time for which the database may send nothing while a server starts or loads all agents again.
///
/// Until then, the server does not follow the database, so it would not notice that its host has disappeared.
/// The time for the whole load is not limited, since a million agents take long.
pub(super) const LOAD_TIMEOUT: Duration = Duration::from_secs(5);

/// State shared by all tasks of the registry.
pub(super) struct Shared {
    pub(super) database: Arc<dyn Database>,
    pub(super) view: View,
    pub(super) time: DatabaseTime,
    pub(super) availability: Availability,
    pub(super) config: Config,
    pub(super) started_at: Instant,
    pub(super) dirty_reports: DirtyReports,
    pub(super) replicas: Replicas,
    /// Agents whose rows may differ from the view.
    pub(super) suspects: Mutex<BTreeSet<String>>,
    /// Notified when there are suspects.
    pub(super) has_suspects: Notify,
    pub(super) admission: Admission,
    pub(super) metrics: Metrics,
    /// Statistics for `GET /metrics` and when they were computed, since several Prometheus servers may
    /// scrape.
    pub(super) cached_stats: Mutex<Option<(RegistryStats, Instant)>>,
    /// Distinguishes this server from others over the same database.
    pub(super) server_id: u64,
    /// Heartbeat timeout of all servers over the database, in milliseconds.
    timeout_millis: AtomicU64,
    /// Number of times that all sessions were dropped. Sessions of an earlier generation are no longer used.
    generation: watch::Sender<u64>,
    /// The session for reads, leases and broadcasts.
    reads: tokio::sync::Mutex<Lane>,
}

impl Shared {
    pub(super) fn new(database: Arc<dyn Database>, config: Config, metrics: Metrics, now: Timestamp) -> Self {
        Self {
            database,
            view: View::new(),
            time: DatabaseTime::new(now),
            availability: Availability::new(),
            started_at: Instant::now(),
            dirty_reports: DirtyReports::default(),
            replicas: Replicas::new(config.heartbeat_timeout),
            suspects: Mutex::default(),
            has_suspects: Notify::new(),
            admission: Admission::new(config.max_connections, config.rate_limit),
            metrics,
            cached_stats: Mutex::default(),
            server_id: RandomState::new().hash_one(std::process::id()),
            timeout_millis: AtomicU64::new(millis(config.heartbeat_timeout)),
            generation: watch::Sender::new(0),
            reads: tokio::sync::Mutex::new(Lane::new(Purpose::Reads)),
            config,
        }
    }

    /// Returns the heartbeat timeout of all servers over the database.
    pub(super) fn heartbeat_timeout(&self) -> Duration {
        Duration::from_millis(self.timeout_millis.load(Ordering::Relaxed))
    }

    /// Returns the context of a read: everything that it depends on besides the agents.
    pub(super) fn read_context(&self) -> ReadContext {
        let (now, silence) = self.time.judge();
        let expiry_margin = self.config.sweep_interval.min(Duration::from_secs(1));
        let timeout = self.heartbeat_timeout();
        let policy =
            DeadlinePolicy { timeout, silence, expiry_margin, remove_after: self.config.remove_after };
        let is_probing = self.config.probe_interval.is_some();
        ReadContext { now, policy, needs_confirmation: self.database.is_shared(), is_probing }
    }

    /// Rejects a write at once while the database is known to fail, instead of waiting for a timeout.
    pub(super) fn check_available(&self, part: Part) -> std::result::Result<(), Error> {
        if self.availability.is_failing(part) { Err(Error::Unavailable) } else { Ok(()) }
    }

    /// Returns the record of an agent that was just stored.
    pub(super) fn record(&self, agent: &StoredAgent) -> Json {
        let load = self.view.entry(&agent.agent_id).map(|entry| entry.liveness.load()).unwrap_or_default();
        let record = Record::current(agent, agent.last_heartbeat, load, &self.read_context());
        record.json(agent.registration_tag())
    }

    /// Adopts the values of the state row other than the position.
    pub(super) fn observe_head(&self, head: &Head) {
        self.time.observe(head.now);
        let Some(timeout) = head.heartbeat_timeout else { return };
        let previous = self.timeout_millis.swap(millis(timeout), Ordering::Relaxed);
        if previous != millis(timeout) {
            // Servers that differ log a warning themselves: see `Replicas`.
            tracing::info!(
                ?timeout,
                previous = ?Duration::from_millis(previous),
                "another server that shares this database was started with a different --heartbeat-timeout, which now applies to all"
            );
        }
    }

    /// Records that the database failed a part.
    pub(super) fn record_failure(&self, part: Part, error: &StoreError) {
        self.metrics.database.record_error(part.as_str());
        if self.availability.record_failure(part, error) {
            self.metrics.database.record_outage();
        }
    }

    /// Records a successful poll, after which the view has every change.
    ///
    /// Silence only counts while the writers can use the database as well.
    pub(super) fn record_poll(&self, now: Timestamp) {
        self.availability.record_success(Part::Follower);
        self.availability.record_agreement();
        if self.availability.unavailable_for().is_none() {
            self.time.record_poll(now);
        }
    }

    /// Applies committed entries to the view, unless it was reloaded since `epoch`. Returns whether they were
    /// applied.
    pub(super) fn apply(&self, epoch: u64, entries: &[LogEntry]) -> bool {
        if !self.view.apply(epoch, entries, &self.read_context()) {
            return false;
        }
        for LogEntry { position, agent_id, event } in entries {
            if !self.is_present(agent_id) {
                self.metrics.remove_agent(agent_id);
            }
            if event.is_none() {
                tracing::error!(
                    agent_id,
                    revision = position.revision,
                    "cannot decode a change that another server wrote, reading the agent's row instead"
                );
                self.suspects.lock().insert(agent_id.clone());
                self.has_suspects.notify_one();
            }
        }
        true
    }

    /// Whether an agent is registered and not offline.
    pub(super) fn is_present(&self, agent_id: &str) -> bool {
        self.view.entry(agent_id).is_some_and(|entry| entry.agent.status != AgentStatus::Offline)
    }

    /// Returns the generation of the sessions that may be used.
    pub(super) fn generation(&self) -> u64 {
        *self.generation.borrow()
    }

    /// Drops all sessions, since the database may be another one than before, or may have lost heartbeats.
    pub(super) fn drop_sessions(&self) {
        self.generation.send_modify(|generation| *generation += 1);
    }

    /// Returns a receiver that is notified when all sessions were dropped.
    pub(super) fn sessions_dropped(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    /// Loads all agents and resets all watchers. Fails if the database sends nothing for [`LOAD_TIMEOUT`].
    pub(super) async fn load(self: &Arc<Self>, mut session: Box<dyn Session>) -> Result<()> {
        let known = self.view.position().position;
        let (agents_tx, agents_rx) = AgentSender::channel();
        let progress = agents_tx.progress();
        let (shared, now) = (self.clone(), self.time.now());
        // Build in a separate task, since reading and indexing each take half of the time.
        let building = tokio::spawn(async move { shared.view.build(agents_rx, now).await });
        let snapshot = tokio::select! {
            snapshot = session.load(agents_tx) => snapshot?,
            () = stalled(progress, LOAD_TIMEOUT) => {
                let silent = format!("it has sent nothing for {LOAD_TIMEOUT:?}");
                return Err(StoreError::Unavailable(silent.into()));
            }
        };
        let agents = building.await.map_err(|error| StoreError::Unavailable(error.into()))?;
        let (count, head) = (agents.len(), snapshot.head);
        let is_elsewhere =
            |entry: &LogEntry| entry.position.revision == known.revision && entry.position != known;
        if head.position.revision < known.revision || snapshot.log.iter().any(is_elsewhere) {
            // The database has lost changes, and heartbeats with them.
            self.time.restart();
        }
        self.view.replace(agents, &snapshot, &self.read_context());
        self.metrics.retain_agents(|agent_id| self.is_present(agent_id));
        tracing::info!(agents = count, revision = head.position.revision, "loaded all agents");
        Ok(())
    }

    /// Reloads all agents, since the view's position is not in the database's history.
    pub(super) async fn reload(self: &Arc<Self>) -> Result<()> {
        tracing::warn!(
            known_revision = self.view.position().position.revision,
            "the database's history differs from this server's, or the changes in between are no longer kept; \
             reloading all agents and resetting all watchers"
        );
        let session = Lane::new(Purpose::Reads).take(self).await?.session;
        self.load(session).await?;
        self.drop_sessions();
        Ok(())
    }

    /// Reads the agents' last heartbeats from the database, as written by any process, and updates the view.
    pub(super) async fn confirm_deadlines(&self, agent_ids: &[String]) {
        if self.availability.unavailable_for().is_some() {
            return;
        }
        let known = self.view.position().position;
        let LastHeartbeats { head, times } =
            match self.read(|session| session.last_heartbeats(agent_ids)).await {
                Ok(last_heartbeats) => last_heartbeats,
                Err(error) => return tracing::debug!(%error, "cannot confirm missed deadlines"),
            };
        self.view.reach(head.position.revision).await;
        // A database with another history, or one that lags behind (a promoted standby), confirms nothing.
        if head.position.revision >= known.revision && self.view.has_event(head.position) == Some(true) {
            self.time.observe(head.now);
            self.view.confirm(&times, agent_ids, &self.read_context());
        }
    }

    /// Runs a short operation on the session for reads, leases and broadcasts.
    ///
    /// Opens a new session if the idle one turns out to be lost.
    pub(super) async fn read<'a, T>(
        &self,
        operation: impl for<'s> Fn(&'s mut (dyn Session + 'a)) -> BoxFuture<'s, Result<T>>,
    ) -> Result<T> {
        let outcome = timed(READ_TIMEOUT, async {
            let mut lane = self.reads.lock().await;
            loop {
                let may_be_lost = lane.has_session();
                let mut session = lane.take(self).await?;
                let began = Instant::now();
                match operation(&mut *session.session).await {
                    Err(_) if may_be_lost => {}
                    Err(error) => return Err(error),
                    Ok(value) => {
                        self.metrics.database.record_latency("reads", began.elapsed());
                        lane.give_back(session);
                        return Ok(value);
                    }
                }
            }
        })
        .await;
        if outcome.is_err() {
            self.metrics.database.record_error("reads");
        }
        outcome
    }
}

/// Waits until there has been no progress for a time.
async fn stalled(mut progress: watch::Receiver<()>, limit: Duration) {
    // The sender lives until everything is loaded.
    while let Ok(Ok(())) = tokio::time::timeout(limit, progress.changed()).await {}
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
