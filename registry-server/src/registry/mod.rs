//! The registry: its rules, and a view of every agent in memory.
//!
//! Writes go to the database first; reads come from memory.

mod availability;
mod changes;
mod error;
mod events;
mod follower;
mod heartbeats;
mod history;
mod lane;
mod probe;
mod queue;
mod reconciler;
mod reports;
mod rules;
mod shared;
mod supervision;
mod sweeper;
mod time;
mod view;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use registry_sdk::contract::{
    AgentHealth, AgentStatus, CHANGED_BY_REGISTRY, HealthStatus, Heartbeat, HeartbeatAck, MaintenanceRequest,
    Registration, RegistryStats, ServerHealth, StatusUpdate, Timestamp, heartbeat_timeout, is_valid_agent_id,
};
use registry_sdk::{AgentFilter, ListQuery, PreparedSearch};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::admission::Admission;
use crate::config::Config;
use crate::drain::Drain;
use crate::metrics::{Gauges, Metrics};
use crate::store::{Database, Position, Purpose, Session, StoreError, StoredAgent, Writes};
use availability::Part;
use changes::ChangeQueue;
pub(crate) use error::Error;
pub(crate) use events::{Cursor, LogRead, StreamStart};
use heartbeats::HeartbeatQueue;
use lane::timed;
use reports::Report;
use rules::{Change, Outcome, accepts_instance};
use shared::{LOAD_TIMEOUT, Shared};
pub(crate) use supervision::Supervisor;
pub(crate) use view::{CHUNK_BYTES, Chunk, Json, Page, Rest};
use view::{Entry, Read, ReadContext, View};

/// Time for which the statistics of `GET /metrics` are cached.
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
            supervisor.spawn("reports", reports::broadcast(shared.clone()));
        }
        if let Some(interval) = shared.config.probe_interval {
            let shutdown = supervisor.shutdown().clone();
            let probes = probe::run(registry.clone(), interval, shutdown.clone());
            supervisor.spawn_until("probes", shutdown, probes);
        }
        Ok(registry)
    }

    /// Rejects new writes, and completes those that are queued.
    pub(crate) fn close(&self) {
        self.closing.cancel();
    }

    /// Creates or updates an agent. A registration that changes nothing is as cheap as a heartbeat.
    ///
    /// `changed_by` is the name of the caller's token, here and in the other changes.
    pub(crate) async fn register(
        &self,
        registration: Registration,
        changed_by: Option<&Arc<str>>,
    ) -> Result<Json, Error> {
        let arrived = Instant::now();
        let instance_age = registration.instance_age;
        let draft = StoredAgent::from_registration(registration).map_err(|error| {
            tracing::error!(%error, "cannot encode a registration, answering 500");
            Error::Internal
        })?;
        if let Some(entry) = self.shared.view.entry(&draft.agent_id)
            && entry.agent.has_same_registration(&draft)
            // The start of a new instance has to be stored, and a late request of an ended one rejected.
            && draft.instance_id.as_deref().is_none_or(|id| {
                entry.agent.instances.is_noted(id, instance_age, self.shared.time.now())
            })
            // The start of a later process under the same name may end it.
            && entry.agent.maintenance.as_ref().is_none_or(|maintenance| maintenance.instance_id.is_none())
            && let Some(last_heartbeat) = self.write_heartbeat(&entry, arrived).await?
        {
            return Ok(entry.record(&self.shared.read_context(), last_heartbeat));
        }
        let agent_id = draft.agent_id.clone();
        let agent = self
            .submit_and_get(
                &agent_id,
                Change::Register { draft: Box::new(draft), instance_age },
                changed_by,
                arrived,
            )
            .await?;
        Ok(self.shared.record(&agent))
    }

    /// Whether an agent is registered with a URL.
    pub(crate) fn is_registered_at(&self, agent_id: &str, base_url: &str) -> bool {
        self.shared.view.entry(agent_id).is_some_and(|entry| entry.agent.base_url == base_url)
    }

    /// Records a heartbeat, with an optional status and load.
    pub(crate) async fn heartbeat(
        &self,
        agent_id: &str,
        heartbeat: Heartbeat,
        changed_by: Option<&Arc<str>>,
    ) -> Result<HeartbeatAck, Error> {
        let arrived = Instant::now();
        let report = Report { load: heartbeat.load, active_tasks: heartbeat.active_tasks, probe: None };
        let timeout = |interval| heartbeat_timeout(self.shared.heartbeat_timeout(), interval);
        if let Some(entry) = self.shared.view.entry(agent_id)
            && entry.agent.status != AgentStatus::Offline
            && heartbeat.status.is_none_or(|status| status == entry.agent.status)
            && accepts_instance(&entry.agent, heartbeat.instance_id.as_deref())
            && let Some(last_heartbeat) = self.write_heartbeat(&entry, arrived).await?
        {
            self.shared.report(agent_id, report);
            let (status, interval) = (entry.agent.status, entry.agent.heartbeat_interval);
            let ack = HeartbeatAck::new(agent_id.to_owned(), status, last_heartbeat, timeout(interval));
            return Ok(ack.registration_tag(entry.registration_tag().to_string()));
        }
        let change = Change::Heartbeat(heartbeat);
        let agent = self.submit_and_get(agent_id, change, changed_by, arrived).await?;
        self.shared.report(agent_id, report);
        let timeout = timeout(agent.heartbeat_interval);
        let ack = HeartbeatAck::new(agent_id.to_owned(), agent.status, agent.last_heartbeat, timeout);
        Ok(ack.registration_tag(agent.registration_tag().to_string()))
    }

    pub(crate) async fn update_status(
        &self,
        agent_id: &str,
        update: StatusUpdate,
        changed_by: Option<&Arc<str>>,
    ) -> Result<Json, Error> {
        self.submit_and_record(agent_id, Change::SetStatus(update), changed_by).await
    }

    /// Takes an agent out for a while, in place of an earlier maintenance.
    pub(crate) async fn set_maintenance(
        &self,
        agent_id: &str,
        request: MaintenanceRequest,
        changed_by: Option<&Arc<str>>,
    ) -> Result<Json, Error> {
        self.submit_and_record(agent_id, Change::SetMaintenance(request), changed_by).await
    }

    /// Ends maintenance of an agent, if there is any.
    pub(crate) async fn end_maintenance(
        &self,
        agent_id: &str,
        changed_by: Option<&Arc<str>>,
    ) -> Result<Json, Error> {
        self.submit_and_record(agent_id, Change::EndMaintenance, changed_by).await
    }

    pub(crate) async fn deregister(
        &self,
        agent_id: &str,
        changed_by: Option<&Arc<str>>,
    ) -> Result<(), Error> {
        match self.submit(agent_id, Change::Remove, changed_by.cloned(), Instant::now()).await? {
            Outcome::NotFound => Err(Error::NotFound(agent_id.to_owned())),
            Outcome::Applied(_) | Outcome::Removed | Outcome::Superseded { .. } => Ok(()),
            Outcome::Locked => Err(Error::Locked(agent_id.to_owned())),
        }
    }

    pub(crate) async fn get_agent(&self, agent_id: &str) -> Result<Json, Error> {
        let found = self.read(|context| self.shared.view.get(agent_id, context)).await;
        found.ok_or_else(|| Error::NotFound(agent_id.to_owned()))
    }

    pub(crate) async fn check_health(&self, agent_id: &str) -> Result<AgentHealth, Error> {
        let found = self.read(|context| self.shared.view.health(agent_id, context)).await;
        found.ok_or_else(|| Error::NotFound(agent_id.to_owned()))
    }

    /// Returns the beginning of a list or a page.
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

    /// Returns the beginning of the matches, or of one page of them.
    pub(crate) async fn search_capabilities(&self, search: Arc<PreparedSearch>) -> Result<Page, Error> {
        if self.shared.view.is_quick(&search) {
            return self.read_quick(|view, context| view.search(&search, context)).await;
        }
        self.read_expensive(move |view, context| view.search(&search, context)).await
    }

    pub(crate) async fn get_stats(&self) -> Result<RegistryStats, Error> {
        self.read_expensive(View::stats).await
    }

    /// Returns the limits for expensive requests, bodies and clients.
    pub(crate) fn admission(&self) -> &Admission {
        &self.shared.admission
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.shared.metrics
    }

    /// Records how long a heartbeat took.
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
            revision: shared.view.position().position.revision,
            replica_lag: shared.availability.replica_lag(),
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

    /// Returns a cursor where a stream begins, and the last position that is known then.
    ///
    /// Waits a moment for a position that this server does not know yet: the watcher may have read from another one.
    pub(crate) async fn cursor(&self, start: StreamStart) -> (Cursor, Position) {
        if let StreamStart::After(position) = start {
            self.shared.view.reach(position.revision).await;
        }
        self.shared.view.cursor(start)
    }

    /// Reads the events after the cursor, and advances it.
    pub(crate) fn read_events(&self, cursor: &mut Cursor) -> LogRead {
        self.shared.view.read_events(cursor)
    }

    /// Returns a receiver that is notified when there may be more events to read.
    pub(crate) fn subscribe(&self) -> watch::Receiver<()> {
        self.shared.view.subscribe()
    }

    pub(crate) fn config(&self) -> &Config {
        &self.shared.config
    }

    pub(crate) fn drain(&self) -> &Drain {
        self.supervisor.drain()
    }

    /// Returns how long the database has been unavailable, if it is.
    pub(crate) fn stale_for(&self) -> Option<Duration> {
        self.shared.availability.unavailable_for()
    }

    /// Reads from the view. Missed deadlines are confirmed by the database before they are believed.
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

    /// Reads again if deadlines had to be confirmed.
    async fn confirmed<T, E, F>(&self, run: impl Fn() -> F) -> Result<T, E>
    where
        F: Future<Output = Result<Read<T>, E>>,
    {
        let first = run().await?;
        if first.unconfirmed.is_empty() {
            return Ok(first.value);
        }
        // Afterwards the deadlines are confirmed; one that cannot be does not count.
        self.shared.confirm_deadlines(&first.unconfirmed).await;
        Ok(run().await?.value)
    }

    /// Writes a plain heartbeat and returns its time, or `None` if the heartbeat changes more than the time.
    async fn write_heartbeat(&self, entry: &Entry, arrived: Instant) -> Result<Option<Timestamp>, Error> {
        let (last_heartbeat, interval) = (entry.liveness.last_heartbeat(), entry.agent.heartbeat_interval);
        let context = self.shared.read_context();
        if entry.agent.missed_deadline
            || context.policy.is_nearly_overdue(last_heartbeat, interval, context.now)
        {
            return Ok(None);
        }
        self.shared.check_available(Part::Heartbeats)?;
        self.heartbeats.write(entry, arrived).await
    }

    async fn submit_and_record(
        &self,
        agent_id: &str,
        change: Change,
        changed_by: Option<&Arc<str>>,
    ) -> Result<Json, Error> {
        let agent = self.submit_and_get(agent_id, change, changed_by, Instant::now()).await?;
        Ok(self.shared.record(&agent))
    }

    async fn submit_and_get(
        &self,
        agent_id: &str,
        change: Change,
        changed_by: Option<&Arc<str>>,
        arrived: Instant,
    ) -> Result<Arc<StoredAgent>, Error> {
        match self.submit(agent_id, change, changed_by.cloned(), arrived).await? {
            Outcome::Applied(agent) => Ok(agent),
            Outcome::Superseded { owner, has_ended: false } => {
                Err(Error::Superseded { agent_id: agent_id.to_owned(), owner })
            }
            Outcome::Superseded { owner, has_ended: true } => {
                Err(Error::ShutDown { agent_id: agent_id.to_owned(), owner })
            }
            Outcome::Removed | Outcome::NotFound => Err(Error::NotFound(agent_id.to_owned())),
            Outcome::Locked => Err(Error::Locked(agent_id.to_owned())),
        }
    }

    /// Makes a change of the registry's own.
    async fn submit_own(&self, agent_id: &str, change: Change) -> Result<Outcome, Error> {
        self.submit(agent_id, change, Some(CHANGED_BY_REGISTRY.into()), Instant::now()).await
    }

    async fn submit(
        &self,
        agent_id: &str,
        change: Change,
        changed_by: Option<Arc<str>>,
        arrived: Instant,
    ) -> Result<Outcome, Error> {
        // An invalid id cannot be registered, so the database need not be asked, unless another program wrote it there.
        if !is_valid_agent_id(agent_id) && self.shared.view.entry(agent_id).is_none() {
            return Ok(Outcome::NotFound);
        }
        self.shared.check_available(Part::Changes)?;
        self.changes.submit(agent_id.to_owned(), change, changed_by, arrived).await
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
