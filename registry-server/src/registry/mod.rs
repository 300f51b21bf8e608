//! The registry: its rules, and an in-memory view of all agents.
//!
//! Writes go to the database first; reads come from memory.

mod availability;
mod broadcasts;
mod change_log;
mod changes;
mod error;
mod events;
mod find;
mod follower;
mod heartbeats;
mod history;
mod lane;
mod probe;
mod queue;
mod reconciler;
mod replicas;
mod reports;
mod rules;
mod shared;
mod supervision;
mod sweeper;
mod time;
mod view;
mod writes;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use registry_sdk::contract::{AgentHealth, HealthStatus, RegistryStats, ServerHealth, Timestamp};
use registry_sdk::internal::PreparedSearch;
use registry_sdk::{AgentFilter, ListQuery};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::admission::Admission;
use crate::config::Config;
use crate::drain::Drain;
use crate::metrics::{Gauges, Metrics};
use crate::store::{Database, Position, Purpose, Session, StoreError, Writes};
use changes::ChangeQueue;
pub(crate) use error::Error;
pub(crate) use events::{Cursor, LogRead, StreamStart};
use heartbeats::HeartbeatQueue;
use lane::timed;
use shared::{LOAD_TIMEOUT, Shared};
pub(crate) use supervision::Supervisor;
pub(crate) use view::{CHUNK_BYTES, Chunk, Find, FoundAgent, FoundAgents, Json, Page, Rest};
use view::{Read, ReadContext, View};
pub(crate) use writes::Written;

/// Time for which the statistics for `GET /metrics` are cached.
const STATS_TTL: Duration = Duration::from_secs(1);

/// The registry. Its tasks end with [`Registry::close`] and with the supervisor's shutdown.
pub(crate) struct Registry {
    shared: Arc<Shared>,
    heartbeats: HeartbeatQueue,
    changes: ChangeQueue,
    /// Closes the write queues.
    closing: CancellationToken,
    supervisor: Supervisor,
}

impl Registry {
    /// Loads all agents and starts the registry's tasks.
    pub(crate) async fn start(
        database: Arc<dyn Database>,
        config: Config,
        metrics: Metrics,
        supervisor: &Supervisor,
    ) -> Result<Arc<Self>, StoreError> {
        let mut session = timed(LOAD_TIMEOUT, database.connect(Purpose::Reads)).await?;
        let timeout = config.heartbeat_timeout;
        let now = timed(LOAD_TIMEOUT, set_heartbeat_timeout(&mut *session, timeout)).await?;
        let shared = Arc::new(Shared::new(database, config, metrics, now));
        shared.load(session).await?;
        sweeper::warn_of_forgotten_agents(&shared);
        let closing = CancellationToken::new();
        let (heartbeats, heartbeat_writer) = HeartbeatQueue::new(shared.clone(), closing.clone());
        let (changes, change_writer) = ChangeQueue::new(shared.clone(), closing.clone());
        let registry = Arc::new(Self {
            shared: shared.clone(),
            heartbeats,
            changes,
            closing: closing.clone(),
            supervisor: supervisor.clone(),
        });
        supervisor.spawn_until("heartbeats", closing.clone(), heartbeat_writer.run());
        supervisor.spawn_until("changes", closing, change_writer.run());
        supervisor.spawn("follower", follower::run(shared.clone()));
        supervisor.spawn("sweeper", sweeper::run(registry.clone()));
        supervisor.spawn("reconciler", reconciler::run(registry.clone()));
        if shared.database.is_shared() {
            supervisor.spawn("broadcasts", broadcasts::run(shared.clone()));
        }
        if let Some(interval) = shared.config.probe_interval {
            let shutdown = supervisor.shutdown().clone();
            let probes = probe::run(registry.clone(), interval, shutdown.clone());
            supervisor.spawn_until("probes", shutdown, probes);
        }
        Ok(registry)
    }

    /// Rejects new writes and completes the queued ones.
    pub(crate) fn close(&self) {
        self.closing.cancel();
    }

    /// Whether an agent is registered with the given URL.
    pub(crate) fn is_registered_at(&self, agent_id: &str, base_url: &str) -> bool {
        self.shared.view.entry(agent_id).is_some_and(|entry| entry.agent.base_url == base_url)
    }

    pub(crate) async fn get_agent(&self, agent_id: &str) -> Result<Json, Error> {
        let found = self.read(|context| self.shared.view.get(agent_id, context)).await;
        found.ok_or_else(|| Error::NotFound(agent_id.to_owned()))
    }

    /// Returns the card of an agent. Cards are read from the database, since they are not kept in memory.
    pub(crate) async fn get_card(&self, agent_id: &str) -> Result<String, Error> {
        let entry = self.shared.view.entry(agent_id).ok_or_else(|| Error::NotFound(agent_id.to_owned()))?;
        let no_card = || Error::NoCard(agent_id.to_owned());
        if entry.agent.card_digest.is_none() {
            return Err(no_card());
        }
        let card = self.shared.read(|session| session.read_card(agent_id)).await;
        card.map_err(|error| Error::from(&error))?.ok_or_else(no_card)
    }

    pub(crate) async fn check_health(&self, agent_id: &str) -> Result<AgentHealth, Error> {
        let found = self.read(|context| self.shared.view.health(agent_id, context)).await;
        found.ok_or_else(|| Error::NotFound(agent_id.to_owned()))
    }

    /// Returns the first chunk of a list or of one of its pages.
    pub(crate) async fn list_agents(&self, query: ListQuery) -> Result<Page, Error> {
        if query.filter == AgentFilter::default() {
            return self.read_quick(|view, context| view.list(&query, context)).await;
        }
        self.read_expensive(move |view, context| view.list(&query, context)).await
    }

    /// Returns the next chunk of a list, a page or a search.
    pub(crate) async fn next_chunk(&self, rest: Rest) -> Result<Chunk, Error> {
        if !rest.is_expensive() {
            return Ok(self.read(|context| self.shared.view.next_chunk(&rest, context)).await);
        }
        let rest = Arc::new(rest);
        let run = || {
            let (shared, rest) = (self.shared.clone(), rest.clone());
            let read = move || shared.view.next_chunk(&rest, &shared.read_context());
            self.shared.admission.read_further(read)
        };
        self.confirmed(run).await
    }

    /// Returns the first chunk of a search's matches, or of one page of them.
    pub(crate) async fn search_capabilities(&self, search: Arc<PreparedSearch>) -> Result<Page, Error> {
        if self.shared.view.is_quick(&search) {
            return self.read_quick(|view, context| view.search(&search, context)).await;
        }
        self.read_expensive(move |view, context| view.search(&search, context)).await
    }

    pub(crate) async fn get_stats(&self) -> Result<RegistryStats, Error> {
        self.read_expensive(View::stats).await
    }

    /// Returns the limits on expensive requests, bodies and clients.
    pub(crate) fn admission(&self) -> &Admission {
        &self.shared.admission
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.shared.metrics
    }

    /// Records the latency of a heartbeat.
    pub(crate) fn record_heartbeat_latency(&self, agent_id: &str, elapsed: Duration) {
        self.shared.metrics.record_heartbeat(agent_id, elapsed, || self.shared.is_present(agent_id));
    }

    /// Returns the metrics in Prometheus' text format.
    pub(crate) async fn metrics_text(&self) -> Result<String, Error> {
        let shared = &self.shared;
        let cached = *shared.cached_stats.lock();
        let stats =
            if let Some((stats, _)) = cached.filter(|(_, computed_at)| computed_at.elapsed() < STATS_TTL) {
                stats
            } else {
                let stats = self.read(|context| shared.view.stats(context)).await;
                *shared.cached_stats.lock() = Some((stats, Instant::now()));
                stats
            };
        let gauges = Gauges {
            stats,
            last_sweep_age: shared.availability.last_sweep_age(),
            is_database_up: shared.availability.unavailable_for().is_none(),
            outage_time: shared.availability.take_outage_time(),
            revision: shared.view.position().position.revision,
            replica_lag: shared.availability.replica_lag(),
            replicas: shared.replicas.counts(),
            connections: shared.admission.connections().usage(),
            event_streams: shared.admission.event_streams().usage(),
            queued_heartbeats: self.heartbeats.usage(),
            queued_changes: self.changes.usage(),
        };
        shared.metrics.encode(&gauges).map_err(|error| {
            tracing::error!(%error, "cannot encode the metrics, answering 500");
            Error::Internal
        })
    }

    /// Returns the health of the server itself.
    pub(crate) fn server_health(&self) -> ServerHealth {
        let shared = &self.shared;
        let status = if self.supervisor.has_failed() {
            HealthStatus::Unhealthy
        } else {
            shared.availability.health(shared.config.sweep_interval)
        };
        let uptime = shared.started_at.elapsed();
        ServerHealth::new(status, env!("CARGO_PKG_VERSION"), shared.database.name(), uptime)
    }

    /// Returns the cursor at which a stream starts, and the last known position at that time.
    ///
    /// Waits briefly for a position that this server does not know yet, since the watcher may have read from
    /// another server.
    pub(crate) async fn cursor(&self, start: StreamStart) -> (Cursor, Position) {
        if let StreamStart::After(position) = start {
            self.shared.view.reach(position.revision).await;
        }
        self.shared.view.cursor(start)
    }

    /// Reads the events after the cursor, and advances the cursor.
    pub(crate) fn read_events(&self, cursor: &mut Cursor) -> LogRead {
        self.shared.view.read_events(cursor)
    }

    /// Returns a receiver that is notified when there may be new events.
    pub(crate) fn subscribe(&self) -> watch::Receiver<()> {
        self.shared.view.subscribe()
    }

    pub(crate) fn config(&self) -> &Config {
        &self.shared.config
    }

    pub(crate) fn drain(&self) -> &Drain {
        self.supervisor.drain()
    }

    /// Returns how long the database has been unavailable. `None` if it is available.
    pub(crate) fn stale_for(&self) -> Option<Duration> {
        self.shared.availability.unavailable_for()
    }

    /// Reads from the view. Missed deadlines are confirmed with the database first.
    async fn read<T>(&self, read: impl Fn(&ReadContext) -> Read<T>) -> T {
        let run = || std::future::ready(Ok::<_, Infallible>(read(&self.shared.read_context())));
        let Ok(value) = self.confirmed(run).await;
        value
    }

    /// Like `read`, for reads that take up to a millisecond.
    async fn read_quick<T>(&self, read: impl Fn(&View, &ReadContext) -> Read<T>) -> Result<T, Error> {
        let run = || {
            let read = || read(&self.shared.view, &self.shared.read_context());
            self.shared.admission.read_quick(read)
        };
        self.confirmed(run).await
    }

    /// Like `read`, for reads that may take longer.
    async fn read_expensive<T, R>(&self, read: R) -> Result<T, Error>
    where
        T: Send + 'static,
        R: Fn(&View, &ReadContext) -> Read<T> + Send + Sync + 'static,
    {
        let read = Arc::new(read);
        let run = || {
            let (shared, read) = (self.shared.clone(), read.clone());
            self.shared.admission.read(move || read(&shared.view, &shared.read_context()))
        };
        self.confirmed(run).await
    }

    /// Runs a read, and repeats it if deadlines had to be confirmed.
    async fn confirmed<T, E, F>(&self, run: impl Fn() -> F) -> Result<T, E>
    where
        F: Future<Output = Result<Read<T>, E>>,
    {
        let first = run().await?;
        if first.unconfirmed.is_empty() {
            return Ok(first.value);
        }
        // The second read accepts the deadlines as they are: those that could not be confirmed do not count
        // as missed.
        self.shared.confirm_deadlines(&first.unconfirmed).await;
        Ok(run().await?.value)
    }
}

/// Sets the heartbeat timeout of all servers over the database. Returns the database's time.
async fn set_heartbeat_timeout(
    session: &mut dyn Session,
    timeout: Duration,
) -> Result<Timestamp, StoreError> {
    let (_, head) = changes::begin(session).await?;
    session.set_heartbeat_timeout(timeout).await?;
    session.commit(&Writes::default()).await?;
    Ok(head.now)
}
